"""Trackers: what they are sent, and what happens without the package."""

import csv
import sys
import types

import pytest
from tiny_runs import CIFAR, write_images

from ride_timm.commands.train import main
from ride_timm.errors import RideError
from ride_timm.training.config import TRACKERS
from ride_timm.training.trackers import Tracker


class Recorder(types.ModuleType):
    """Stands for wandb or trackio, which share an interface."""

    def __init__(self):
        super().__init__('recorder')
        self.calls = []

    def init(self, **kwargs):
        self.calls.append(('init', kwargs))

    def log(self, figures):
        self.calls.append(('log', figures))

    def finish(self):
        self.calls.append(('finish', None))


@pytest.mark.parametrize('name', ['trackio', 'wandb'])
def test_figures_reach_the_tracker_once(name, monkeypatch, tmp_path):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, name, recorder)
    tracker = Tracker(name, tmp_path / 'my-run', {'lr': 0.1})
    tracker.log(3, {'train_loss': 1.5, 'eval_few': 20.0})
    tracker.close()
    tracker.log(4, {'train_loss': 1.0})
    assert recorder.calls == [
        ('init', {'project': 'ride-timm', 'name': 'my-run', 'config': {'lr': 0.1}}),
        ('log', {'epoch': 3, 'train_loss': 1.5, 'eval_few': 20.0}),
        ('finish', None),
    ]


def test_tensorboard_writes_into_the_runs_folder(monkeypatch, tmp_path):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, name, value, epoch):
            written.append((name, value, epoch))

        def flush(self):
            pass

        def close(self):
            written.append('closed')

    board = types.ModuleType('torch.utils.tensorboard')
    board.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, 'tensorboard', board)
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', board)
    tracker = Tracker('tensorboard', tmp_path, {})
    tracker.log(0, {'eval_top1': 50.0})
    tracker.close()
    assert written == [str(tmp_path / 'tensorboard'), ('eval/top1', 50.0, 0), 'closed']


@pytest.mark.parametrize('name', TRACKERS)
def test_missing_package_is_one_sentence(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RideError, match=f'pip install "{name}"'):
        Tracker(name, tmp_path, {})


def test_no_tracker_does_nothing(tmp_path):
    tracker = Tracker(None, tmp_path, {})
    tracker.log(0, {'train_loss': 1.0})
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_a_run_sends_every_epoch(monkeypatch, tmp_path):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, 'trackio', recorder)
    data = write_images(tmp_path / 'images')
    command = [
        '--data-dir',
        str(data),
        '--model',
        CIFAR,
        '--epochs',
        '2',
        '-b',
        '16',
        '--lr',
        '0.01',
        '--device',
        'cpu',
    ]
    assert main([*command, '--output', str(tmp_path), '--experiment', 'run', '--log', 'trackio']) == 0
    sent = [figures for kind, figures in recorder.calls if kind == 'log']
    assert [figures['epoch'] for figures in sent] == [0, 1]
    with (tmp_path / 'run' / 'summary.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [float(row['eval_top1']) for row in rows] == [figures['eval_top1'] for figures in sent]
    assert [kind for kind, _ in recorder.calls][-1] == 'finish'
