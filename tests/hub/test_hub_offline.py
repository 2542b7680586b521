"""Without a way to the Hub: what lies in the cache is used, and the rest is one sentence, both at once."""

import socket
import threading
import time

import pytest
import timm
import torch
from published import REPO, make_weight
from safetensors.torch import save_file

from ride_timm import RideError, from_pretrained
from ride_timm import hub as hub_module
from ride_timm.engine.initial import read_initial
from ride_timm.publish import main as publish_main


@pytest.fixture
def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


@pytest.fixture
def gone(hub, monkeypatch, free_port):
    """From here on nothing listens where the Hub was."""

    def go():
        nowhere = f'http://127.0.0.1:{free_port}'
        monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', nowhere)
        template = f'{nowhere}/{{repo_id}}/resolve/{{revision}}/{{filename}}'
        monkeypatch.setattr('huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE', template)

    return go


def test_the_cache_is_used_at_once(hub, hub_login, gone, client_naps, tmp_path):
    publish_main([str(make_weight(tmp_path / 'weights')), REPO])
    state = from_pretrained(f'hf-hub:{REPO}').state_dict()
    gone()
    again = from_pretrained(f'hf-hub:{REPO}').state_dict()
    assert all(torch.equal(again[key], value) for key, value in state.items())
    assert client_naps == []


def test_what_is_not_there_is_told_at_once(gone, client_naps):
    gone()
    with pytest.raises(RideError, match='the Hub cannot be reached; connect once'):
        from_pretrained('hf-hub:me/nothing')
    assert client_naps == []


@pytest.mark.parametrize(
    'name, model, wanted',
    [
        ('resnet18.a1_in1k', None, 'ride_resnet18_3e'),
        ('resnet18.a1_in1k', 'ride_resnet18_2e', 'ride_resnet18_2e'),
        ('efficientnet_b0.ra_in1k', None, 'efficientnet_b0'),
    ],
)
def test_weights_to_initialise_from_name_the_way_by_a_file(gone, client_naps, name, model, wanted):
    gone()
    with pytest.raises(RideError, match='cannot be reached') as caught:
        read_initial(name, model)
    assert str(caught.value).endswith(f'give that file: --init FILE --model {wanted}.')
    assert client_naps == []


@pytest.mark.parametrize('model', ['ride_resnet18_3e', 'resnet18'])
def test_the_way_by_a_file(tmp_path, model):
    save_file(timm.create_model('resnet18').state_dict(), tmp_path / 'model.safetensors')
    found = read_initial(tmp_path / 'model.safetensors', model)
    assert 'layer4.1.conv2.weight' in found.model.state_dict()


def test_the_client_is_as_before_after_that(gone):
    from huggingface_hub import constants

    gone()
    with hub_module.without_retries():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_a_lookup_that_never_ends(monkeypatch):
    over = threading.Event()

    def look_up(*_):
        over.wait(30)
        raise OSError

    monkeypatch.setattr(hub_module, '_PATIENCE', 0.1)
    monkeypatch.setattr(socket, 'create_connection', look_up)
    began = time.monotonic()
    assert not hub_module._reachable('https://huggingface.co')
    assert time.monotonic() - began < 5
    over.set()


@pytest.mark.parametrize('proxy', ['http://127.0.0.1:{port}', '127.0.0.1:{port}', 'socks5://127.0.0.1:{port}'])
def test_a_proxy_is_what_must_be_reached(monkeypatch, proxy):
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        server.listen()
        address = proxy.format(port=server.getsockname()[1])
        monkeypatch.setenv('no_proxy', '')
        monkeypatch.setenv('https_proxy', address)
        assert hub_module._reachable('https://hub.invalid')
    assert not hub_module._reachable('https://hub.invalid')
