"""A loss, a gradient or a weight that is not finite ends the run, and says where it came from."""

import math
import re

import pytest
import timm
import torch
from crash_tools import Killed, assert_same, assert_same_run, kill_at, load, options, rows, run_command
from tiny_runs import write_images

from ride_timm.errors import RideError
from ride_timm.losses import create_loss
from ride_timm.tasks import RideTask
from ride_timm.training import run
from ride_timm.training.divergence import check_scale, check_weights
from ride_timm.training.pace import Pace
from ride_timm.training.stages.base import Stage


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


@pytest.fixture(autouse=True)
def no_measured_steps(monkeypatch):
    """The steps that are measured before a training would count as training batches here."""
    paces = lambda parts, config, device, ways: [Pace(0.001, 10, 0.001)] * len(ways)  # noqa: E731
    monkeypatch.setattr(run, '_measure_paces', paces)


def prepare_network(monkeypatch, change):
    """Let `change(network)` see the run's network before the training."""
    build = Stage.build_network

    def built(*args):
        network = build(*args)
        change(network)
        return network

    monkeypatch.setattr(Stage, 'build_network', built)


def poison_logits(monkeypatch, experts, call, value=math.nan):
    """Give experts bad logits from their given training batch on."""

    def change(network):
        for k in experts:
            calls = []

            def hook(module, inputs, output, calls=calls):
                if module.training:
                    calls.append(None)
                return torch.full_like(output, value) if len(calls) > call else output

            network.experts[k].fc.register_forward_hook(hook)

    prepare_network(monkeypatch, change)


def poison_gradient(monkeypatch, part, call, value=math.inf):
    def change(network):
        calls = []

        def hook(gradient):
            calls.append(None)
            return torch.full_like(gradient, value) if len(calls) > call else gradient

        next(network.get_submodule(part).parameters()).register_hook(hook)

    prepare_network(monkeypatch, change)


def error_of(capsys, command):
    assert run_command(command) == 2
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if 'error:' in line]
    assert len(lines) == 1
    assert 'Traceback' not in said
    return lines[0]


@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('expert', [0, 2])
def test_bad_logits_name_their_batch(data, tmp_path, monkeypatch, capsys, expert, value):
    poison_logits(monkeypatch, [expert], call=7, value=value)
    said = error_of(capsys, options(data, tmp_path, 'run'))
    assert 'epoch 1, batch 2 (step 8, lr ' in said
    assert f'The loss became {value:g}' in said or 'The loss became nan' in said
    lr = float(re.search(r'lr (\S+?)\)', said)[1])
    assert lr == pytest.approx(0.02 * (1 + math.cos(math.pi / 3)) / 2, rel=0.01)
    assert load(tmp_path / 'run/last.pth.tar')['epoch'] == 0
    assert len(rows(tmp_path / 'run')) == 1


def test_going_on_after_the_cause_is_gone(data, tmp_path, monkeypatch, capsys):
    assert run_command(options(data, tmp_path, 'straight')) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        poison_logits(patch, [0, 1], call=7)
        said = error_of(capsys, options(data, tmp_path, 'run'))
    assert 'epoch 1, batch 2' in said
    assert run_command(options(data, tmp_path, 'run')) == 0
    assert_same_run(tmp_path / 'straight', tmp_path / 'run')


@pytest.mark.parametrize('more', [[], ['--clip-grad', '1'], ['--grad-accum-steps', '2']], ids=' '.join)
def test_bad_gradients(data, tmp_path, monkeypatch, capsys, more):
    poison_gradient(monkeypatch, 'experts.1', call=6)
    said = error_of(capsys, options(data, tmp_path, 'run', *more))
    assert 'The gradients are not finite' in said
    assert load(tmp_path / 'run/last.pth.tar')['epoch'] == 0


def test_no_step_is_taken(data, tmp_path, monkeypatch):
    """The weights at the time of the error are those before the batch."""
    found = {}
    poison_logits(monkeypatch, [1], call=5)
    seen = Stage.build_network

    def built(*args):
        found['network'] = seen(*args)
        return found['network']

    monkeypatch.setattr(Stage, 'build_network', built)
    assert run_command(options(data, tmp_path, 'run')) == 2
    saved = load(tmp_path / 'run/last.pth.tar')['state_dict']
    weights = {name: p.detach() for name, p in found['network'].named_parameters()}
    assert_same(weights, {name: saved[name] for name in weights})


def test_first_epoch_leaves_the_folder_free(data, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        poison_logits(patch, [0], call=0)
        error_of(capsys, options(data, tmp_path, 'run', '--resume', ''))
    assert not (tmp_path / 'run/last.pth.tar').exists()
    assert run_command(options(data, tmp_path, 'run', '--resume', '')) == 0


def overflow(monkeypatch, calls):
    """In float16 training: gradients that overflow in the given backward passes."""

    def change(network):
        seen = []

        def hook(gradient):
            seen.append(None)
            return gradient * math.inf if len(seen) - 1 in calls else gradient

        network.conv1.weight.register_hook(hook)

    prepare_network(monkeypatch, change)


HALF = ['--amp', '--amp-dtype', 'float16']


def test_float16_leaves_single_steps_out(data, tmp_path, monkeypatch):
    overflow(monkeypatch, {1, 2, 6})
    assert run_command(options(data, tmp_path, 'run', *HALF)) == 0
    state = load(tmp_path / 'run/last.pth.tar')
    assert state['amp_scaler']['scale'] <= 65536 / 2**3  # the loss of this tiny network may overflow by itself too
    assert all(t.isfinite().all() for t in state['state_dict'].values())


def test_float16_stops_for_a_bad_loss(data, tmp_path, monkeypatch, capsys):
    poison_logits(monkeypatch, [2], call=7)
    said = error_of(capsys, options(data, tmp_path, 'run', *HALF))
    assert 'epoch 1, batch 2 (step 8' in said
    assert load(tmp_path / 'run/last.pth.tar')['epoch'] == 0


def test_float16_that_gets_nowhere():
    class Scaler:
        def __init__(self, scale):
            self.scale = scale

        def state_dict(self):
            return {'scale': self.scale}

    for scaler in (None, Scaler(1.0), Scaler(1e-6)):
        check_scale(scaler, 3)
    with pytest.raises(RideError, match='In epoch 3 the gradients overflowed'):
        check_scale(Scaler(65536 / 2**50), 3)


def test_weights_that_the_last_step_broke_are_not_saved(data, tmp_path, monkeypatch, capsys):
    """A finite gradient can still take the weights away; the next batch would be too late."""
    step = torch.optim.SGD.step
    steps = []

    def broken(self, *args, **kwargs):
        step(self, *args, **kwargs)
        steps.append(None)
        if len(steps) == 10:  # the last of epoch 1
            self.param_groups[0]['params'][0].data.fill_(math.inf)

    monkeypatch.setattr(torch.optim.SGD, 'step', broken)
    said = error_of(capsys, options(data, tmp_path, 'run'))
    assert 'After epoch 1' in said
    assert 'not finite' in said
    assert load(tmp_path / 'run/last.pth.tar')['epoch'] == 0


def test_statistics_count_as_weights():
    torch.manual_seed(0)
    net = timm.create_model('test_ride_resnet_cifar_3e', num_classes=3)
    task = RideTask(net, create_loss('ce'))
    check_weights(task, 0)
    net.experts[1].layer2[0].bn1.running_var[3] = math.inf
    with pytest.raises(RideError, match=r'experts\.1\.layer2\.0\.bn1\.running_var'):
        check_weights(task, 0)


@pytest.mark.parametrize('metric', ['loss', 'top1'])
def test_nan_is_never_the_best(data, tmp_path, monkeypatch, metric):
    """A figure that is no number, in the first epoch, in the middle and after a resumption."""
    import ride_timm.training.run as module

    evaluate = module._evaluate
    scores = iter([math.nan, 5.0, math.nan, 7.0, math.nan if metric == 'loss' else 6.0])  # results have a top1

    def scored(run, last):
        return evaluate(run, last) | {metric: next(scores)}

    monkeypatch.setattr(module, '_evaluate', scored)
    command = options(data, tmp_path, 'run', '--epochs', '5', '--eval-metric', metric, '--checkpoint-hist', '2')
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, epoch=2, batch=1)
        run_command(command)
    assert load(tmp_path / 'run/model_best.pth.tar')['epoch'] == 1
    assert run_command(command) == 0
    assert load(tmp_path / 'run/model_best.pth.tar')['epoch'] == (1 if metric == 'loss' else 3)
