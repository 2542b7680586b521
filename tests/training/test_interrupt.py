"""SIGTERM and SIGINT: the step is finished, the status says so, and the same command goes on."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from crash_tools import assert_same_run, finish, load, options, rows, run_command, start, wait_for
from tiny_runs import write_images

from ride_timm.errors import RideError
from ride_timm.training import loop, pace
from ride_timm.training.interrupt import Interrupted, StopRequest, reraise_explained, reraise_interrupted

# a machine with a single core: two loading processes are still two
pytestmark = pytest.mark.filterwarnings('ignore:This DataLoader will create')

STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def straight(data, tmp_path_factory):
    output = tmp_path_factory.mktemp('straight')
    assert run_command(options(data, output, 'run')) == 0
    return output / 'run'


def signal_in(monkeypatch, signum, epoch, batch, after=None):
    """Send this process a signal while a batch is trained; `after` collects the batches whose step is done."""
    backward, finish_step = loop._backward, loop._finish_step
    seen = []

    def signalled(trainer, *args):
        seen.append(None)
        if len(seen) - 1 == epoch * len(trainer.loader) + batch:
            os.kill(os.getpid(), signum)
        return backward(trainer, *args)

    def noted(trainer, last, bad):
        try:
            finish_step(trainer, last, bad)
        finally:
            if after is not None:
                after.append((last.epoch, last.index, trainer.optimizer.param_groups[0]['params'][0].grad is None))

    monkeypatch.setattr(loop, '_backward', signalled)
    monkeypatch.setattr(pace, 'lone_step', lambda *args: None)  # which are not of the run
    monkeypatch.setattr(loop, '_finish_step', noted)


@pytest.mark.parametrize('signum', STATUS)
@pytest.mark.parametrize(('epoch', 'batch'), [(0, 0), (1, 2)])
def test_stops_after_the_step_and_goes_on(data, straight, tmp_path, monkeypatch, caplog, signum, epoch, batch):
    command = options(data, tmp_path, 'run')
    done = []
    with monkeypatch.context() as patch:
        signal_in(patch, signum, epoch, batch, done)
        assert run_command(command) == STATUS[signum]
    assert done[-1] == (epoch, batch, True)
    assert signal.Signals(signum).name in caplog.text
    assert load(tmp_path / 'run/last.pth.tar')['epoch'] == epoch - 1
    assert run_command(command) == 0
    assert_same_run(straight, tmp_path / 'run')


def test_a_step_of_several_batches_is_finished(data, tmp_path, monkeypatch):
    done = []
    with monkeypatch.context() as patch:
        signal_in(patch, signal.SIGTERM, 0, 0, done)
        assert run_command(options(data, tmp_path, 'run', '--grad-accum-steps', '2')) == 143
    assert done == [(0, 1, True)]


def test_the_last_batch_ends_the_epoch_first(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_in(patch, signal.SIGTERM, 1, 4)
        assert run_command(options(data, tmp_path, 'run')) == 143
    assert load(tmp_path / 'run/last.pth.tar')['epoch'] == 1
    assert len(rows(tmp_path / 'run')) == 2


def test_a_finished_run_is_a_success(data, straight, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_in(patch, signal.SIGTERM, 2, 4)
        assert run_command(options(data, tmp_path, 'run')) == 0
    assert_same_run(straight, tmp_path / 'run')


def test_handlers_are_put_back(data, tmp_path, monkeypatch):
    before = [signal.getsignal(signum) for signum in STATUS]
    signal_in(monkeypatch, signal.SIGINT, 0, 1)
    assert run_command(options(data, tmp_path, 'run')) == 130
    assert [signal.getsignal(signum) for signum in STATUS] == before


def test_second_ctrl_c_does_not_wait():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_second_sigterm_changes_nothing():
    with StopRequest() as stop:
        for signum in (signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), signum)
        assert stop.signum == signal.SIGTERM


def test_threads_leave_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def use():
        with StopRequest() as stop:
            found.append((signal.getsignal(signal.SIGTERM), stop.signum))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [(before, 0)]


def test_ctrl_c_before_the_training(data, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr('ride_timm.training.run.Stage.open_data', interrupted)
    assert run_command(options(data, tmp_path, 'run')) == 130


def test_a_lost_loading_process_is_explained(monkeypatch):
    monkeypatch.setattr('ride_timm.training.interrupt.time.sleep', lambda seconds: None)
    loss = RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed.')
    stop = StopRequest()
    reraise_interrupted(loss, stop)
    with pytest.raises(RideError, match='fewer --workers'):
        reraise_explained(loss)
    stop.signum = signal.SIGTERM
    with pytest.raises(Interrupted, match='SIGTERM'):
        reraise_interrupted(loss, stop)
    other = RuntimeError('Caught RuntimeError in DataLoader worker process 0.')
    reraise_interrupted(other, stop)
    reraise_explained(other)


def test_loading_processes_end_with_an_error_at_once(data, tmp_path):
    """They are freed by the time the command returns, and not by a later collection of garbage."""
    broken = shutil.copytree(data, tmp_path / 'images')
    (broken / 'train/bee/0.png').write_bytes(b'no image')
    assert run_command(options(broken, tmp_path, 'run', '-j', '2', '--no-check-images')) == 2
    assert multiprocessing.active_children() == []


def slow_run(argv, started):
    """In a child: a run whose batches take a while to load, in two loading processes."""
    from ride_timm.data.images import ImageSet

    get = ImageSet.__getitem__

    def slowly(self, index):
        if torch.utils.data.get_worker_info() is not None:  # not where their sizes are looked at before
            started.touch()
            time.sleep(0.02)
        return get(self, index)

    ImageSet.__getitem__ = slowly
    return run_command(argv)


@pytest.mark.parametrize('signum', STATUS)
def test_signal_to_the_whole_group(data, straight, tmp_path, signum):
    """What Ctrl-C, torchrun and Slurm do: the loading processes get it too, and must not end the step."""
    command = options(data, tmp_path, 'run', '-j', '2', '--no-check-images')
    child = start(slow_run, command, tmp_path / 'started', log=tmp_path / 'log')
    wait_for((tmp_path / 'started').exists)
    child.join(0.2)
    os.killpg(child.pid, signum)
    assert finish(child) == STATUS[signum], (tmp_path / 'log').read_text()
    said = (tmp_path / 'log').read_text()
    assert 'Traceback' not in said
    assert 'error' not in said
    assert 'of 5 batches; to repeat the epoch, add --resume auto to the same command' in said
    assert run_command(command) == 0
    # two loading processes draw other augmentation than none
    assert [row['epoch'] for row in rows(tmp_path / 'run')] == [row['epoch'] for row in rows(straight)]


@pytest.mark.slow
def test_signal_to_a_fresh_process(data, straight, tmp_path):
    """As a user runs it: from a shell, by the module."""
    command = [sys.executable, '-m', 'ride_timm', 'train', *options(data, tmp_path, 'run')[1:]]
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path / 'run/last.pth.tar').exists)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    # on a slow machine the signal may come when the run is done and Python is already about to end
    late = process.returncode == -signal.SIGTERM and (tmp_path / 'run/results.json').exists()
    assert process.returncode in (143, 0) or late
    assert 'Traceback' not in said
    assert subprocess.run(command, env=env, capture_output=True).returncode == 0
    assert_same_run(straight, tmp_path / 'run')
