"""What is frozen is computed once, to the same numbers as in every epoch."""

import csv
import os
import signal
from collections import namedtuple
from unittest import mock

import pytest
import torch
from crash_tools import Killed, assert_same_run, kill_at
from tiny_runs import CIFAR, train, write_images

from ride_timm.records.checkpoint import read_checkpoint
from ride_timm.training import run as runs
from ride_timm.training.fast import features

VIT = 'backbone=vit_tiny_patch16_dinov3_qkvb', 'num_experts=2', 'embed_dim=16', 'depth=2', 'num_heads=2'
CASES = {
    'rotary tables cross': (
        32,
        ('--model', 'ride', '--model-kwargs', *VIT, 'split=blocks.0'),
        ('--train-only', 'experts'),
    ),
    'maps cross': (8, ('--model', CIFAR), ('--train-only', 'experts.0', 'experts.2', '--channels-last')),
    'pre-logits': (8, ('--model', CIFAR), ('--train-only', 'experts.1.fc', '--amp', '--amp-dtype', 'bfloat16')),
    'router': (8, ('--model', CIFAR), ('--stage', 'router', '--sampler', 'balanced')),
    'heads': (8, ('--model', CIFAR), ('--stage', 'heads', '--smoothing', '0.1')),
}
FLIP = ('--augmentation', 'flip', '--epochs', '3', '--val-interval', '3')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return {size: write_images(tmp_path_factory.mktemp('images'), size=size) for size in (8, 32)}


@pytest.fixture(scope='module')
def experts(data, tmp_path_factory):
    made = {}
    for size, model, _ in CASES.values():
        if model not in made:
            made[model] = train(data[size], tmp_path_factory.mktemp('init'), 'experts', *model, size=size)
    return made


def losses(folder):
    with (folder / 'summary.csv').open(newline='') as file:
        return [float(row['train_loss']) for row in csv.DictReader(file)]


@pytest.fixture
def kept(monkeypatch):
    """Whether features were computed once, a value for each run."""
    seen, compute = [], runs.compute_once

    def spied(config, data, trainer, folder):
        compute(config, data, trainer, folder)
        seen.append(getattr(trainer.task, 'features', None) is not None)

    monkeypatch.setattr(runs, 'compute_once', spied)
    return seen


@pytest.mark.parametrize('case', CASES)
def test_the_numbers_are_those_of_computing_it_in_every_epoch(data, experts, tmp_path, monkeypatch, kept, case):
    size, model, more = CASES[case]
    hflip = '0' if case == 'maps cross' else '0.5'
    options = ('--init', str(experts[model]), *more, *FLIP, '--hflip', hflip, '--lr', '0.005', '--warmup-epochs', '0')
    once = train(data[size], tmp_path, 'once', *options, size=size)
    assert kept == [True]
    monkeypatch.setattr(runs, 'compute_once', lambda *_: None)
    each = train(data[size], tmp_path, 'each', *options, size=size)
    assert losses(once) == pytest.approx(losses(each), rel=1e-5)
    found, expected = (read_checkpoint(folder / 'last.pth.tar')['state_dict'] for folder in (once, each))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert {path.name for path in once.iterdir()} == {path.name for path in each.iterdir()}, (
        'the file has no name and stays nowhere'
    )


ON_EXPERTS = ('--train-only', 'experts', *FLIP)


def test_it_is_computed_in_every_epoch_where_images_change(data, experts, tmp_path, kept):
    """Or where it would not pay, or hold."""
    init = ('--init', str(experts['--model', CIFAR]))
    for index, more in enumerate((
        ('--augmentation', 'timm'), ('--mixup', '0.4', '--loss', 'balpoe'), ('--reprob', '0.2'), ('--epochs', '2'),
        ('--train-only', 'layer1', 'experts'),
    )):  # fmt: skip
        train(data[8], tmp_path, str(index), *init, *ON_EXPERTS, *more)
    assert kept == [False] * 5


@pytest.mark.parametrize('trouble', ['full', 'read-only'])
def test_a_disk_that_cannot_hold_it(data, experts, tmp_path, monkeypatch, kept, trouble):
    """The training goes on as if nothing was tried, with the same images."""
    init, more = ('--init', str(experts['--model', CIFAR])), ('--hflip', '0.5')
    if trouble == 'full':
        usage = namedtuple('usage', 'total used free')
        monkeypatch.setattr(features.shutil, 'disk_usage', lambda _: usage(1000, 900, 100))
    else:
        monkeypatch.setattr(features.tempfile, 'TemporaryFile', mock.Mock(side_effect=OSError(30, 'Read-only')))
    tried = train(data[8], tmp_path, 'tried', *init, *ON_EXPERTS, *more)
    assert kept == [False]
    monkeypatch.setattr(runs, 'compute_once', lambda *_: None)
    assert losses(tried) == losses(train(data[8], tmp_path, 'plain', *init, *ON_EXPERTS, *more))


def test_resumed_is_never_interrupted(data, experts, tmp_path, monkeypatch, kept):
    more = ('--init', str(experts['--model', CIFAR]), *ON_EXPERTS, '--hflip', '0.5', '--resume', 'auto')
    straight = train(data[8], tmp_path, 'straight', *more)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, epoch=2, batch=1)
        train(data[8], tmp_path, 'broken', *more)
    torch.manual_seed(123)
    assert_same_run(straight, train(data[8], tmp_path, 'broken', *more))
    assert kept == [True] * 3


def test_a_signal_meanwhile(data, experts, tmp_path, monkeypatch, kept):
    more = ('--init', str(experts['--model', CIFAR]), *ON_EXPERTS, '--resume', 'auto')
    opened = features.tempfile.TemporaryFile
    with monkeypatch.context() as patch, pytest.raises(AssertionError):
        signalled = lambda **kwargs: os.kill(os.getpid(), signal.SIGTERM) or opened(**kwargs)  # noqa: E731
        patch.setattr(features.tempfile, 'TemporaryFile', signalled)
        train(data[8], tmp_path, 'broken', *more)
    assert (kept, read_checkpoint(tmp_path / 'broken/last.pth.tar')['epoch']) == ([], -1)
    assert_same_run(train(data[8], tmp_path, 'straight', *more), train(data[8], tmp_path, 'broken', *more))
