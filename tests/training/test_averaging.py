"""The mean over the last epochs: of which weights, with which statistics, and what measures and loads it."""

import pytest
import torch
from configs import resolved
from crash_tools import load, options, rows, run_command
from tiny_runs import write_images

from ride_timm.commands.validate import build_parser, validate
from ride_timm.errors import RideError
from ride_timm.training import averaging
from ride_timm.training.averaging import EpochMean, setup_average
from ride_timm.training.saver import RunSaver

STATISTICS = ('running_mean', 'running_var', 'num_batches_tracked')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


def weights_of(state):
    return {name: value for name, value in state.items() if not name.endswith(STATISTICS)}


def test_weights_are_the_mean_of_the_last_epochs(data, tmp_path, monkeypatch):
    ends, save = [], RunSaver.save_checkpoint

    def noted(self, epoch, metric=None):
        found = save(self, epoch, metric)
        ends.append(load(self.last))
        return found

    monkeypatch.setattr(RunSaver, 'save_checkpoint', noted)
    more = ('--average-epochs', '2', '--lr', '0.5', '--warmup-epochs', '0', '--epochs', '4')
    assert run_command(options(data, tmp_path, 'run', *more)) == 0
    for end in ends[:3]:  # before them, and with one epoch alone, it is the network itself
        assert all(torch.equal(value, end['state_dict_ema'][name]) for name, value in end['state_dict'].items())
    last, mean = ends[3]['state_dict'], ends[3]['state_dict_ema']
    for name, value in weights_of(mean).items():
        torch.testing.assert_close(value, (ends[2]['state_dict'][name] + last[name]) / 2, msg=name)
    assert any(not torch.equal(value, last[name]) for name, value in weights_of(mean).items())


def test_statistics_are_those_of_the_mean(data, tmp_path):
    """They come from one pass over the training images, wherever the mean of several epochs is measured."""
    seen = []

    def noted(loader, model):
        update_bn(loader, model)
        seen.append(model)

    update_bn = averaging.update_bn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(averaging, 'update_bn', noted)
        more = ('--average-epochs', '3', '--epochs', '3', '--val-interval', '2')
        assert run_command(options(data, tmp_path, 'run', *more)) == 0
    assert len(seen) == 2  # after the second epoch and the third
    mean = load(tmp_path / 'run/last.pth.tar')['state_dict_ema']
    counted = {int(value) for name, value in mean.items() if name.endswith('num_batches_tracked')}
    assert counted == {sum(1 for _ in (data / 'train').rglob('*.png')) // 8}  # batches of one pass
    assert not seen[-1].training
    assert all(m.momentum is not None for m in seen[-1].modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_it_is_what_is_measured_and_loaded(data, tmp_path):
    more = ('--average-epochs', '2', '--lr', '0.5', '--warmup-epochs', '0')
    assert run_command(options(data, tmp_path, 'run', *more)) == 0
    figures = {k.removeprefix('eval_'): float(v) for k, v in rows(tmp_path / 'run')[-1].items() if k[:5] == 'eval_'}
    argv = ['--checkpoint', str(tmp_path / 'run'), '--data-dir', str(data), '--device', 'cpu', '-b', '8']
    found = validate(build_parser().parse_args(argv))
    assert figures == {name: found[name] for name in figures}


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (('--model-ema', '--average-epochs', '2'), '--model-ema and --average-epochs both average'),
        (('--average-epochs', '60', '--epochs', '50'), '--average-epochs 60 was given, but --epochs is 50'),
        (('--stage', 'heads', '--average-epochs', '2'), '--average-epochs is for the stage experts'),
    ],
)
def test_refusals(given, message):
    with pytest.raises(RideError, match=message):
        setup_average(resolved(['--model', 'x', '--data-dir', 'x', *given]), None, None)


def test_steps_change_nothing():
    net = torch.nn.Linear(2, 2)
    mean = EpochMean(net)
    before = mean.module.weight.clone()
    net.weight.data.add_(1.0)
    mean.update(net, step=5)
    assert torch.equal(mean.module.weight, before)
    mean.add(net, 0)
    assert torch.equal(mean.module.weight, net.weight)
    net.weight.data.add_(3.0)
    mean.add(net, 1)
    torch.testing.assert_close(mean.module.weight, net.weight - 1.5)
