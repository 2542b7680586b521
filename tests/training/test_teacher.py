"""Which weights a teacher is: of a run's folder those that its figures are of, of a file those that it names first."""

from types import SimpleNamespace

import pytest
import torch
from tiny_runs import CIFAR, COUNTS, train, write_images

from ride_timm.records.checkpoint import read_checkpoint
from ride_timm.training.config import ResolvedConfig
from ride_timm.training.teacher import build_teacher


@pytest.fixture(scope='module')
def averaged(tmp_path_factory):
    """A run that keeps a moving average of its weights, far from the weights themselves."""
    root = tmp_path_factory.mktemp('averaged')
    options = ('--model-ema', '--model-ema-decay', '0.5', '--lr', '0.5', '--warmup-epochs', '0')
    return train(write_images(root / 'data'), root, 'run', '--model', CIFAR, *options)


@pytest.mark.parametrize(('file', 'key'), [('', 'state_dict_ema'), ('last.pth.tar', 'state_dict')])
def test_a_run_is_the_moving_average_and_a_file_is_not(averaged, file, key):
    args = ResolvedConfig(
        teacher=str(averaged / file), model=CIFAR, in_chans=3, distill_weight=1.0, distill_temperature=1.5
    )
    names = sorted(COUNTS, reverse=True)  # another order than the run's
    split = SimpleNamespace(class_names=names, num_classes=len(names), source='data')
    teacher = build_teacher(args, split, {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)})
    saved = read_checkpoint(averaged / 'last.pth.tar')
    assert not torch.equal(saved['state_dict']['conv1.weight'], saved['state_dict_ema']['conv1.weight'])
    assert all(torch.equal(tensor, teacher.model.state_dict()[name]) for name, tensor in saved[key].items())
    assert [sorted(COUNTS)[index] for index in teacher.order.tolist()] == names
