"""Trained weights as the start of a training that names none."""

import http.server
import logging
import socket
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import timm
from configs import resolved
from huggingface_hub import constants
from tiny_runs import CIFAR, write_images

from ride_timm.commands.train import main
from ride_timm.errors import RideError
from ride_timm.inference.hub import UnreachableError
from ride_timm.inference.load import TrainedNet
from ride_timm.records.checkpoint import read_checkpoint
from ride_timm.training import starts
from ride_timm.training.starts import PACKAGED, STARTS, choose_start, own_weights

LITE = 'tf_efficientnet_lite0.in1k'


@pytest.fixture
def reading(monkeypatch):
    """Which weights were asked for; those in the set `absent` cannot be had."""
    asked = SimpleNamespace(names=[], absent=set())

    def read(source, model=None, **options):
        asked.names.append(source)
        if source in asked.absent:
            raise UnreachableError('no way there')
        architecture = source.partition('.')[0]
        return TrainedNet(SimpleNamespace(pretrained_cfg={'architecture': architecture}), source, source=source)

    monkeypatch.setattr(starts, 'read_initial', read)
    return asked


def chosen(side, *options, device='cpu'):
    config, init = choose_start(resolved(['--data-dir', 'x', *options]).but(device=device), side)
    assert (init is None) == (config.init is None)
    return config


@pytest.mark.parametrize(
    'side, device, wanted',
    [
        (32, 'cpu', (PACKAGED, 'ride_resnet32_3e', None)),
        (32, 'cuda:1', (PACKAGED, 'ride_resnet32_3e', None)),
        (300, 'cpu', (LITE, 'ride_tf_efficientnet_lite0_3e', 224)),
        (150, 'cpu', (LITE, 'ride_tf_efficientnet_lite0_3e', 160)),
        (50, 'cuda:1', ('convnext_nano.in12k_ft_in1k', 'ride_convnext_nano_3e', 128)),
    ],
)  # fmt: skip
def test_the_start_follows_from_images_and_hardware(reading, side, device, wanted):
    config = chosen(side, device=device)
    assert (config.init, config.model, config.img_size) == wanted
    assert reading.names == [config.init]


def test_each_start_is_a_network_of_three_experts():
    for start in STARTS:
        assert timm.get_pretrained_cfg(start.weights) is not None
        architecture = timm.get_pretrained_cfg(starts._architecture(start), allow_unregistered=True)
        assert architecture is not None and not architecture.fixed_input_size
        assert starts._architecture(start).endswith('_3e')
    assert STARTS[-1] == starts.Start(PACKAGED, STARTS[-1].why)  # for any images and device


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_without_the_hub_there_is_always_the_package(reading, caplog, device):
    reading.absent = {start.weights for start in STARTS} - {PACKAGED}
    config = chosen(300, device=device)
    assert (config.init, config.model, config.img_size) == (PACKAGED, 'ride_resnet32_3e', None)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert reading.names[0] in warning and 'cannot be reached' in warning
    reading.absent.add(PACKAGED)
    assert chosen(300).model is None


def test_named_options_leave_the_start_open(reading):
    for options in (
        ['--epochs', '7'],
        ['--img-size', '96'],
        ['--loss', 'ce'],
        ['-b', '4'],
        ['--lr', '0.1'],
        ['--pretrained'],
    ):
        assert chosen(300, *options).init == LITE
    assert not chosen(300, '--pretrained').pretrained  # done
    assert chosen(300, '--img-size', '96').img_size == 96
    assert chosen(300, '--opt', 'adam', device='cuda').opt == 'adam'


@pytest.mark.parametrize(
    'model, wanted',
    [
        ('ride_resnet32_3e', PACKAGED), ('ride_resnet32_4e', 'ride_resnet32_4e'),
        ('ride_resnet32_3e.ride_cifar100lt', 'ride_resnet32_3e.ride_cifar100lt'),
        ('ride_convnext_tiny_2e', 'convnext_tiny.in12k_ft_in1k'), ('ride_resnet50_3e', 'resnet50'),
        ('resnet18', 'resnet18'), ('resnet18.a1_in1k', 'resnet18.a1_in1k'), ('hf-hub:me/net', 'hf-hub:me/net'),
        (CIFAR, None), ('ride_resnet32_2e', None), ('resnetblur18', None),
    ],
)  # fmt: skip
def test_a_named_model_starts_from_its_own_weights(reading, caplog, model, wanted):
    assert own_weights(model, {}) == wanted
    assert chosen(300, '--model', model).init == wanted
    assert ('no pretrained weights for' in caplog.text) == (wanted is None)


def test_a_named_model_has_the_size_of_its_weights(reading):
    assert chosen(50, '--model', 'ride_convnext_nano_2e').img_size == 128


def test_a_named_model_whose_weights_cannot_be_had(reading, caplog):
    reading.absent = {'resnet18'}
    config = chosen(300, '--model', 'resnet18')
    assert (config.model, config.init) == ('resnet18', None)
    assert 'resnet18' in caplog.text and 'random' in caplog.text
    assert own_weights('ride', {'backbone': 'resnet18.a1_in1k'}) == 'resnet18.a1_in1k'


def test_random_weights_on_demand(reading):
    assert chosen(300, '--from-scratch').init is None
    assert chosen(300, '--model', 'resnet18', '--pretrained').pretrained  # which must be had
    assert not reading.names
    for other in (['--init', 'run'], ['--pretrained']):
        with pytest.raises(RideError, match='--from-scratch'):
            resolved(['--data-dir', 'x', '--from-scratch', *other])


def test_a_run_goes_on_with_what_it_was_started_from(tmp_path, caplog, monkeypatch):
    """Also when better weights can be had meanwhile, with or without a name of the run."""
    caplog.set_level(logging.INFO)
    data = write_images(tmp_path / 'data', {'ant': 20, 'bee': 8}, size=48)
    options = ['--data-dir', str(data), '--output', str(tmp_path / 'out'), '--device', 'cpu', '-b', '14', '-j', '0']
    for more in ([], ['--experiment', 'named']):
        assert main([*options, '--epochs', '1', *more]) == 0
    folder = tmp_path / 'out/named'
    first = read_checkpoint(folder / 'last.pth.tar')['args']
    assert (first['init'], first['model'], first['data_config']['input_size']) == (
        PACKAGED,
        'ride_resnet32_3e',
        (3, 32, 32),
    )
    assert 'Weights of ride_resnet32_3e.balpoe_cifar100lt (new heads' in caplog.text
    monkeypatch.setattr(starts, 'STARTS', (starts.Start('ride_resnet32_4e.ride_cifar100lt', 'better'), *STARTS))
    for more in ([], ['--experiment', 'named']):
        assert main([*options, '--epochs', '2', '--resume', 'auto', *more]) == 0
    found = sorted(path.name for path in (tmp_path / 'out').iterdir())
    assert len(found) == 2
    for name in found:
        checkpoint = read_checkpoint(tmp_path / 'out' / name / 'last.pth.tar')
        assert (checkpoint['epoch'], checkpoint['arch'], checkpoint['args']['init']) == (
            1,
            'ride_resnet32_3e',
            PACKAGED,
        )


class _Overloaded(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_error(503)

    def log_message(self, *args):
        """Nothing."""


@contextmanager
def refusing():
    with socket.socket() as closed:
        closed.bind(('127.0.0.1', 0))
        yield closed.getsockname()[1]


@contextmanager
def swallowing():
    """What accepts and never answers, as a firewall that drops packets."""
    with socket.socket() as hole:
        hole.bind(('127.0.0.1', 0))
        hole.listen()
        yield hole.getsockname()[1]


@contextmanager
def overloaded():
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Overloaded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize('hub', [refusing, swallowing, overloaded])
def test_a_hub_that_does_not_answer_is_found_out_in_seconds(hub, tmp_path, monkeypatch, caplog):
    with hub() as port:
        address = f'http://127.0.0.1:{port}'
        monkeypatch.setattr(constants, 'ENDPOINT', address)
        monkeypatch.setattr(
            constants, 'HUGGINGFACE_CO_URL_TEMPLATE', address + '/{repo_id}/resolve/{revision}/{filename}'
        )
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
        monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
        began = time.monotonic()
        config = chosen(300)
        assert time.monotonic() - began < 5 + 3  # the machine may be busy; the client would take 46
    assert config.init == PACKAGED
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
