"""The few steps that are measured before a training."""

import logging
import random
import time

import numpy as np
import pytest
import torch
from configs import resolved
from tiny_runs import CIFAR, train, write_images

from ride_timm import RideError, TrainConfig
from ride_timm.commands.train import main, parse
from ride_timm.options import duration
from ride_timm.records.checkpoint import read_checkpoint
from ride_timm.tasks.heads import HeadModule
from ride_timm.training import pace as pace_module
from ride_timm.training import picks
from ride_timm.training import run as run_module
from ride_timm.training.pace import Pace, spoken


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('data'))


def weights(run):
    return read_checkpoint(run / 'last.pth.tar')['state_dict']


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


def test_measured_steps_leave_no_trace(data, tmp_path, monkeypatch):
    """Mixup draws from NumPy, dropout from PyTorch, augmentation from both and from random."""
    options = ['--model', CIFAR, '--mixup', '0.4', '--drop', '0.2', '--epochs', '2']
    states = []

    def noted(*args):
        found = measure(*args)
        states.append((random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()))
        return found

    measure = run_module.measure_paces
    monkeypatch.setattr(run_module, 'measure_paces', noted)
    measured = train(data, tmp_path, 'measured', *options)
    monkeypatch.setattr(run_module, 'measure_paces', lambda config, ways, *rest: noted_alone(ways))

    def noted_alone(ways):
        states.append((random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()))
        return [Pace(1.0, 1, 1.0)] * len(ways)

    blind = train(data, tmp_path, 'blind', *options)
    assert states[0] == states[1]
    assert same(weights(measured), weights(blind))


def test_a_run_keeps_what_was_measured(data, tmp_path, monkeypatch, caplog):
    """Ten seconds an epoch at first; on going on nothing is measured, and a machine that is slower changes nothing."""
    caplog.set_level(logging.INFO)
    paces = {'found': lambda ways: [Pace(1.0, 5, 5.0)] + [Pace(0.1, 5, 5.0)] * (len(ways) - 1)}
    monkeypatch.setattr(run_module, 'measure_paces', lambda config, ways, *rest: paces['found'](ways))
    command = ['--data-dir', str(data), '--model', CIFAR, '--img-size', '8', '-b', '8', '--device', 'cpu', '-j', '0']
    command += ['--output', str(tmp_path), '--time-budget', '17']
    monkeypatch.setattr(picks, 'bfloat16_on_cpu', lambda: ['avx512_bf16'])
    assert main([*command, '--experiment', 'whole']) == 0
    whole = read_checkpoint(tmp_path / 'whole/last.pth.tar')
    assert (whole['args']['epochs'], whole['args']['channels_last'], whole['epoch']) == (3, True, 2)
    stopped = KeyError('stopped')

    def save(self, epoch, metric=None):
        real(self, epoch, metric)
        if epoch == 0:
            raise stopped

    real = run_module.RunSaver.save_checkpoint
    monkeypatch.setattr(run_module.RunSaver, 'save_checkpoint', save)
    with pytest.raises(KeyError):
        main([*command, '--experiment', 'stopped'])
    monkeypatch.setattr(run_module.RunSaver, 'save_checkpoint', real)
    paces['found'] = None
    caplog.clear()
    assert main([*command, '--experiment', 'stopped', '--resume', 'auto']) == 0
    assert 'Different from the checkpoint' not in caplog.text
    assert same(whole['state_dict'], weights(tmp_path / 'stopped'))


def test_a_step_that_takes_time_is_seen(data, tmp_path, monkeypatch):
    """Steps, loading and evaluation each count, and evaluation images are as many as there are."""
    found = []

    def noted(*args):
        found.extend(measure(*args))
        return found

    measure = run_module.measure_paces
    monkeypatch.setattr(run_module, 'measure_paces', noted)
    step = pace_module.lone_step
    monkeypatch.setattr(pace_module, 'lone_step', lambda *args: (time.sleep(0.1), step(*args)))
    train(data, tmp_path, 'slow', '--model', CIFAR, '-vb', '3')
    (pace,) = found
    assert 0.1 < pace.step < 2
    assert pace.steps == 5
    assert 0 < pace.evaluation < 10


@pytest.mark.parametrize('augmentation', ['flip', 'timm'])
def test_a_frozen_trunk_counts_as_often_as_it_is_computed(data, tmp_path, monkeypatch, augmentation):
    """Once for each image and its mirror image; where images change, in every step."""
    found, before = [], HeadModule.before

    def noted(*args):
        with monkeypatch.context() as slow:
            slow.setattr(HeadModule, 'before', lambda *args: (time.sleep(0.3), before(*args))[1])
            found.extend(measure(*args))
        return found

    init = train(data, tmp_path, 'init', '--model', CIFAR)
    measure = run_module.measure_paces
    monkeypatch.setattr(run_module, 'measure_paces', noted)
    train(data, tmp_path, 'part', '--init', str(init), '--train-only', 'experts', '--augmentation', augmentation)
    (pace,) = found
    assert (pace.step > 0.3) == (augmentation == 'timm')
    passes = 2 * 41 / 8  # batches of 8
    assert pace.once == 0.0 if augmentation == 'timm' else 0.3 * passes < pace.once < 0.6 * passes


def test_a_way_that_does_not_fit_into_memory_is_not_taken(data, tmp_path, monkeypatch):
    def short(trainer, *batch):
        if trainer.channels_last:
            raise torch.OutOfMemoryError('out of memory')

    found = []

    def noted(*args):
        found.extend(measure(*args))
        return found

    measure = run_module.measure_paces
    monkeypatch.setattr(run_module, 'measure_paces', noted)
    monkeypatch.setattr(pace_module, 'lone_step', short)
    monkeypatch.setattr(picks, 'bfloat16_on_cpu', lambda: ['avx512_bf16'])
    command = ['--data-dir', str(data), '--model', CIFAR, '--img-size', '8', '-b', '8', '--device', 'cpu', '-j', '0']
    assert main([*command, '--epochs', '1', '--output', str(tmp_path)]) == 0
    assert [pace.step < 100 for pace in found] == [True, False, False]


@pytest.mark.parametrize(
    'text, seconds', [('90', 90), ('90s', 90), ('30m', 1800), ('2h', 7200), ('1h30m', 5400), ('1.5h', 5400)]
)
def test_times(text, seconds):
    assert duration(text) == seconds
    assert parse(['--data-dir', 'x', '--time-budget', text]).time_budget == seconds
    assert TrainConfig(time_budget=text).time_budget == TrainConfig(time_budget=seconds).time_budget == seconds


@pytest.mark.parametrize('text', ['', 'soon', '3x', 'm', '1m2h', '-5'])
def test_what_is_no_time(text, capsys):
    with pytest.raises(SystemExit):
        parse(['--data-dir', 'x', '--time-budget', text])
    assert '--time-budget' in capsys.readouterr().err
    with pytest.raises(RideError, match='--time-budget'):
        TrainConfig(time_budget=text)


@pytest.mark.parametrize('other', [['--epochs', '3'], ['--recipe', 'cifar100lt_ride']])
def test_one_option_says_how_long(other):
    with pytest.raises(RideError, match=f'^--time-budget and {other[0]} '):
        resolved(['--data-dir', 'x', '--time-budget', '30m', *other])
    with pytest.raises(RideError, match='--time-budget'):
        resolved(['--data-dir', 'x', '--time-budget', '0'])


def test_times_in_words():
    assert [spoken(s) for s in (1, 59.6, 99, 120, 2460, 5999, 9000, 36_000, 400_000)] == [
        '1 second', '60 seconds', '99 seconds', '2 minutes', '41 minutes', '100 minutes', '2.5 hours', '10 hours',
        '4.6 days',
    ]  # fmt: skip


def test_a_training_in_parts():
    pace = Pace(2.0, 10, 5.0)
    assert pace.seconds(4) == 4 * 25
    assert pace.seconds(5, val_interval=2) == 5 * 20 + 3 * 5
    assert pace._replace(once=7.0).seconds(4) == 7 + 4 * 25
