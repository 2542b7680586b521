"""Saves that are killed, on full disks, and of metrics that are no numbers."""

import math
import os
import random
import resource
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from crash_tools import assert_same, finish, load, options, resume_litter, run_command, start, wait_for
from timm.task import TrainingTask
from timm.utils import CheckpointSaver
from tiny_runs import write_images
from torch import nn

from ride_timm.errors import RideError
from ride_timm.records.checkpoint import read_checkpoint
from ride_timm.training.saver import RunSaver

SIZE = 96
METRICS = (5.0, 7.0, 6.0, 9.0, 8.0, 4.0, 9.0)
HISTORY = 2


def metric_of(epoch):
    return METRICS[epoch] if epoch < len(METRICS) else float(epoch * 7919 % 101)


def open_saver(folder, history=HISTORY, decreasing=False):
    """A saver as the training makes it, and its network."""
    folder.mkdir(exist_ok=True)
    task = TrainingTask()
    task.trainable_module = nn.Linear(SIZE, SIZE)
    optimizer = torch.optim.SGD(task.trainable_module.parameters(), lr=0.1)
    saver = RunSaver(
        folder, task, optimizer, extra={'class_names': ['a']}, settings={'model': 'linear'}, max_history=history,
        decreasing=decreasing,
    )  # fmt: skip
    if saver.last.exists():
        saver.restart(saver.last, read_checkpoint(saver.last)['saver'])
    return saver, task.trainable_module


def save_until(folder, end, progress=None, metric=metric_of, history=HISTORY):
    """Save epochs up to `end`, each with weights of its number, going on from what is there."""
    saver, network = open_saver(folder, history)
    begin = read_checkpoint(saver.last)['epoch'] + 1 if saver.last.exists() else 0
    for epoch in range(begin, end):
        if progress is not None:
            progress.write_text(str(epoch))
        nn.init.constant_(network.weight, epoch)
        nn.init.zeros_(network.bias)
        saver.save_checkpoint(epoch, metric(epoch))
    return saver


def epochs_in(folder):
    """Epoch by file, each loaded and its weights looked at."""
    found = {}
    for path in folder.glob('*.pth.tar'):
        if path.name in ('tmp.pth.tar', 'link.pth.tar'):
            continue
        checkpoint = read_checkpoint(path)
        assert (checkpoint['state_dict']['weight'] == checkpoint['epoch']).all()
        found[path.name] = checkpoint['epoch']
    return found


def assert_same_folder(folder, other):
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        assert_same(load(folder / name), load(other / name), name)


def die_at(operation, folder, end, links):
    """In a child: save until `end`, and die before the given file operation."""
    left = operation
    kinds = {'open', 'os.rename', 'os.remove', 'os.link', 'shutil.copyfile', 'fsync'}

    def count(event, args):
        nonlocal left
        if event in kinds and (event == 'fsync' or str(folder) in str(args[0])):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    fsync = os.fsync
    os.fsync = lambda file: (count('fsync', ()), fsync(file))[1]
    if not links:
        os.link = refuse_links
    saver, network = open_saver(folder)
    sys.addaudithook(count)
    epoch = end - 1
    nn.init.constant_(network.weight, epoch)
    nn.init.zeros_(network.bias)
    saver.save_checkpoint(epoch, metric_of(epoch))
    return 0


def refuse_links(*args, **kwargs):
    raise OSError(1, 'Operation not permitted')


@pytest.mark.parametrize(
    ('epoch', 'links'),
    [
        pytest.param(3, True, id='a new best, one evicted'),
        pytest.param(5, True, id='not kept'),
        pytest.param(3, False, id='without links'),
        pytest.param(4, True, id='kept behind the best', marks=pytest.mark.slow),
        pytest.param(0, True, id='the first', marks=pytest.mark.slow),
        pytest.param(6, True, id='a tie with the best', marks=pytest.mark.slow),
    ],
)
def test_killed_at_every_file_operation(tmp_path, monkeypatch, epoch, links):
    link = os.link
    if not links:
        monkeypatch.setattr(os, 'link', refuse_links)
    before, after = tmp_path / 'before', tmp_path / 'after'
    before.mkdir()
    save_until(before, epoch)
    save_until(after, epoch + 1)
    kills = 0
    for operation in range(60):
        folder = tmp_path / f'run{operation}'
        # no file is ever written to again, so the copies may share theirs
        shutil.copytree(before, folder, copy_function=link if links else shutil.copy2)
        child = start(die_at, operation, folder, epoch + 1, links, log=tmp_path / 'log')
        status = finish(child)
        assert status in (0, -signal.SIGKILL), (tmp_path / 'log').read_text()
        found = epochs_in(folder)
        if epoch:
            assert found['last.pth.tar'] in (epoch - 1, epoch)
        saver, _ = open_saver(folder)
        assert resume_litter(folder) == []
        if saver.last.exists():
            whole = after if epochs_in(folder)['last.pth.tar'] == epoch else before
            assert sorted(epochs_in(folder).items()) == sorted(epochs_in(whole).items())
        save_until(folder, epoch + 1)
        assert_same_folder(folder, after)
        if status == 0:
            break
        kills += 1
    else:
        pytest.fail('the save never ended')
    assert kills >= 5


def save_for_ever(folder, progress):
    save_until(folder, 10**9, progress)
    return 0


def test_killed_at_random_moments(tmp_path):
    folder, progress = tmp_path / 'run', tmp_path / 'progress'
    rng = random.Random(0)
    reached = -1
    for _ in range(50):
        progress.unlink(missing_ok=True)
        child = start(save_for_ever, folder, progress, log=tmp_path / 'log')
        wait_for(lambda: progress.exists() and progress.read_text())
        child.join(rng.uniform(0, 0.04))
        child.kill()
        assert finish(child) == -signal.SIGKILL, (tmp_path / 'log').read_text()
        if not progress.read_text():
            continue  # killed while it wrote the test's own file
        saving = int(progress.read_text())
        found = epochs_in(folder)
        assert found.get('last.pth.tar', -1) in (saving - 1, saving)
        assert found.get('last.pth.tar', -1) >= reached
        reached = found.get('last.pth.tar', -1)
    assert reached >= 5  # or the kills met nothing but starts
    reached = epochs_in(folder)['last.pth.tar']  # the last children may not have told
    save_until(folder, reached + 2)
    assert resume_litter(folder) == []
    save_until(tmp_path / 'straight', reached + 2)
    assert_same_folder(folder, tmp_path / 'straight')


def save_half(folder):
    """In a child: die in the middle of the file's bytes."""

    class Half:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            self.file.write(bytes(data)[: len(data) // 2])
            self.file.flush()
            if len(data) > 10_000:
                os.kill(os.getpid(), signal.SIGKILL)

        def flush(self):
            self.file.flush()

    save = torch.save
    torch.save = lambda state, file: save(state, Half(file))
    save_until(folder, 3)
    return 0


def test_killed_within_the_bytes(tmp_path):
    save_until(tmp_path / 'run', 2)
    assert finish(start(save_half, tmp_path / 'run', log=tmp_path / 'log')) == -signal.SIGKILL
    assert resume_litter(tmp_path / 'run') == ['tmp.pth.tar']
    assert epochs_in(tmp_path / 'run')['last.pth.tar'] == 1
    save_until(tmp_path / 'run', 3)
    save_until(tmp_path / 'straight', 3)
    assert_same_folder(tmp_path / 'run', tmp_path / 'straight')


def save_with_limit(folder, limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        save_until(folder, 3)
    except RideError as error:
        print(error)
        return 2
    return 0


@pytest.mark.parametrize('limit', [0, 1, 100, 5_000, 30_000])
def test_full_disk(tmp_path, limit):
    folder = tmp_path / 'run'
    save_until(folder, 2)
    before = epochs_in(folder)
    (tmp_path / 'log').touch()
    status = finish(start(save_with_limit_to, folder, limit, tmp_path / 'said', log='/dev/null'))
    assert status == 2
    said = (tmp_path / 'said').read_text()
    assert 'cannot be written' in said
    assert 'File too large' in said
    assert len(said.splitlines()) == 1
    assert epochs_in(folder) == before
    assert resume_litter(folder) == []


def save_with_limit_to(folder, limit, said):
    """The message goes through a pipe, which has no limit."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(write)
        with os.fdopen(read) as pipe:
            Path(said).write_text(pipe.read())
        os._exit(0)
    os.close(read)
    os.dup2(write, 1)
    os.close(write)
    status = save_with_limit(folder, limit)
    sys.stdout.flush()
    os.close(1)
    os.wait()
    return status


def train_with_limit(argv, limit, said):
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(write)
        with os.fdopen(read) as pipe:
            Path(said).write_text(pipe.read())
        os._exit(0)
    os.close(read)
    os.dup2(write, 2)
    os.close(write)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    status = run_command(argv)
    sys.stderr.flush()
    os.close(2)
    os.wait()
    return status


@pytest.mark.parametrize('limit', [100, 400_000])  # too little for the row of summary.csv, for the checkpoint
def test_full_disk_ends_the_training_in_one_line(tmp_path, limit):
    data = write_images(tmp_path / 'images')
    assert run_command(options(data, tmp_path, 'run', '--epochs', '1')) == 0
    run = tmp_path / 'run'
    before = (run / 'last.pth.tar').read_bytes()
    argv = options(data, tmp_path, 'run', '--quiet', '--epochs', '2', '--sched', 'constant')
    assert finish(start(train_with_limit, argv, limit, tmp_path / 'said', log='/dev/null')) == 2
    errors = [line for line in (tmp_path / 'said').read_text().splitlines() if 'error:' in line]
    assert len(errors) == 1
    assert 'File too large' in errors[0]
    assert 'Traceback' not in (tmp_path / 'said').read_text()
    assert (run / 'last.pth.tar').read_bytes() == before
    assert resume_litter(run) == []
    assert run_command(argv) == 0
    assert load(run / 'last.pth.tar')['epoch'] == 1


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize('decreasing', [False, True], ids=['most', 'least'])
@pytest.mark.parametrize('cut', [None, 1, 2, 4])
@pytest.mark.parametrize(
    'metrics',
    [
        [NAN, 50.0, 90.0, 10.0, 20.0],
        [50.0, NAN, 90.0, NAN, 20.0],
        [50.0, 40.0, 90.0, 10.0, NAN],
        [NAN, NAN, NAN, NAN, 3.0],
        [7.0, 7.0, NAN, 7.0, 7.0],
        [INF, 2.0, -INF, 1.0, 2.0],
        [None, 2.0, None, 3.0, None],
    ],
)
def test_best_is_the_best_number(tmp_path, metrics, cut, decreasing):
    """Of equal ones the first; with a resumption after `cut` epochs."""
    saver, network = open_saver(tmp_path / 'run', decreasing=decreasing)
    for epoch, metric in enumerate(metrics):
        if epoch == cut:
            saver, network = open_saver(tmp_path / 'run', decreasing=decreasing)
        nn.init.constant_(network.weight, epoch)
        saver.save_checkpoint(epoch, metric)
        best, best_epoch = saver.best_metric, saver.best_epoch
        numbers = np.array([math.nan if m is None or not math.isfinite(m) else m for m in metrics[: epoch + 1]])
        if np.isnan(numbers).all():
            assert (best, best_epoch) == (None, None)
            assert not (tmp_path / 'run/model_best.pth.tar').exists()
            continue
        expected = int(np.nanargmin(numbers) if decreasing else np.nanargmax(numbers))
        assert (best, best_epoch) == (metrics[expected], expected)
        assert epochs_in(tmp_path / 'run')['model_best.pth.tar'] == expected
        assert len(list((tmp_path / 'run').glob('checkpoint-*'))) <= HISTORY


@pytest.mark.parametrize('seed', range(12))
def test_the_same_files_and_history_as_timm(tmp_path, seed):
    """On metrics that are numbers or None, with ties, without a kill; resumed at any epoch."""
    draw = random.Random(seed)
    history, decreasing = draw.randint(1, 3), seed % 2 == 0
    saver, network = open_saver(tmp_path / 'run', history, decreasing)
    (tmp_path / 'timm').mkdir()
    theirs = CheckpointSaver(
        network, saver.optimizer, checkpoint_dir=str(tmp_path / 'timm'), decreasing=decreasing, max_history=history
    )
    for epoch in range(8):
        metric = draw.choice([None, 1.0, 2.0, 3.0])
        if draw.random() < 0.3:
            saver, network = open_saver(tmp_path / 'run', history, decreasing)
        nn.init.constant_(network.weight, epoch)
        saver.save_checkpoint(epoch, metric)
        theirs.save_checkpoint(epoch, metric)
        found = {path.name: load(path) for path in (tmp_path / 'timm').iterdir()}
        assert epochs_in(tmp_path / 'run') == {name: content['epoch'] for name, content in found.items()}
        assert load(saver.last)['saver'] == found['last.pth.tar']['saver']


def test_all_epochs_without_a_number_leave_no_best(tmp_path):
    save_until(tmp_path / 'run', 3, metric=lambda epoch: NAN)
    assert epochs_in(tmp_path / 'run') == {'last.pth.tar': 2, 'checkpoint-1.pth.tar': 1, 'checkpoint-2.pth.tar': 2}


def test_history_may_shrink(tmp_path):
    save_until(tmp_path / 'run', 5, history=3)
    save_until(tmp_path / 'run', 6, history=1)
    expected = {'last.pth.tar': 5, 'checkpoint-3.pth.tar': 3, 'model_best.pth.tar': 3}
    assert epochs_in(tmp_path / 'run') == expected


def test_going_back_makes_the_best_of_then_the_best(tmp_path):
    save_until(tmp_path / 'run', 4, history=3)
    saver, _ = open_saver(tmp_path / 'run', history=3)
    earlier = tmp_path / 'run/checkpoint-2.pth.tar'  # not the best of its time
    saver.restart(earlier, read_checkpoint(earlier)['saver'])
    assert (saver.best_metric, saver.best_epoch) == (7.0, 1)
    found = epochs_in(tmp_path / 'run')
    assert (found['last.pth.tar'], found['model_best.pth.tar']) == (2, 1)


def test_files_share_their_bytes(tmp_path):
    save_until(tmp_path / 'run', 4)
    best, kept = tmp_path / 'run/model_best.pth.tar', tmp_path / 'run/checkpoint-3.pth.tar'
    assert best.samefile(kept)
    assert kept.samefile(tmp_path / 'run/last.pth.tar')
    save_until(tmp_path / 'run', 5)
    assert epochs_in(tmp_path / 'run')['model_best.pth.tar'] == 3


def test_files_have_ordinary_rights(tmp_path):
    save_until(tmp_path / 'run', 1)
    (tmp_path / 'plain').touch()
    assert {path.stat().st_mode for path in (tmp_path / 'run').iterdir()} == {(tmp_path / 'plain').stat().st_mode}


def test_an_error_of_another_kind_is_not_taken_for_a_full_disk(tmp_path):
    saver, _ = open_saver(tmp_path / 'run')
    saver.settings['model'] = lambda: None
    with pytest.raises(Exception, match='pickle'):
        saver.save_checkpoint(0, 1.0)
