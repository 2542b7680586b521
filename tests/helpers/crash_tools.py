"""Processes to be killed, alone or two to a run, and comparing what runs leave behind.

Children are forked by a server process that has imported everything and trained nothing: they start in milliseconds,
and autograd works in them on machines with a GPU too.
"""

import csv
import json
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

import torch

from ride_timm.cli import main as cli

_context = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload(['pytest', 'ride_timm.training.run', 'ride_timm.commands.validate'])


def start(target, *args, log, env=None):
    """Start `target(*args)` in a process group of its own; what it prints goes to the file `log`."""
    process = _context.Process(target=_child, args=(str(log), dict(env or {}), target, args))
    process.start()
    return process


def _child(log, env, target, args):
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(env)
    torch.set_num_threads(1)
    multiprocessing.set_start_method('fork', force=True)  # of loading processes: the ordinary one on Linux
    sys.exit(target(*args))


def finish(process, timeout=150):
    """Wait, and return the exit status; that of a signal is negative."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError('the process hangs')
    return process.exitcode


def start_ranks(target, *args, folder, world=2):
    """Start `target(*args)` as torchrun starts a script, once a rank."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    shared = {
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(port),
        'WORLD_SIZE': str(world),
        'GLOO_SOCKET_IFNAME': 'lo',
    }
    return [
        start(target, *args, log=folder / f'rank{rank}.log', env={**shared, 'RANK': str(rank), 'LOCAL_RANK': str(rank)})
        for rank in range(world)
    ]


def run_ranks(target, *args, folder, world=2):
    """Run to the end; returns the exit status of each rank."""
    return [finish(process) for process in start_ranks(target, *args, folder=folder, world=world)]


def rank():
    return int(os.environ.get('RANK', '0'))


def run_command(argv):
    """Run `ride-timm ...`; returns its exit status."""
    return cli(argv)


def options(data, output, name, *more, size=8):
    """The command line of a run of a second, with `--resume auto`."""
    return [
        'train', '--data-dir', str(data), '--model', 'test_ride_resnet_cifar_3e', '--img-size', str(size), '-b', '8',
        '--epochs', '3', '--lr', '0.02', '--warmup-epochs', '1', '--log-interval', '0', '--device', 'cpu', '-j', '0',
        '--no-amp', '--output', str(output), '--experiment', name, '--resume', 'auto', *more,
    ]  # fmt: skip


def wait_for(condition, timeout=60):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, 'it never came'
        time.sleep(0.005)


def load(path):
    return torch.load(path, weights_only=True)


def assert_same(a, b, where=''):
    """Equal in every bit, tensors included."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f'{where}/{key}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f'{where}/{i}')
    else:
        assert a == b or (a != a and b != b), where


def rows(run):
    """Rows of summary.csv without the speed."""
    with (run / 'summary.csv').open(newline='') as file:
        return [{k: v for k, v in row.items() if k != 'train_images_per_second'} for row in csv.DictReader(file)]


def assert_same_run(run, other):
    """Two folders hold the same run: every checkpoint, row and figure."""
    names = sorted(path.name for path in run.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        if name.endswith('.pth.tar'):
            states = [load(folder / name) for folder in (run, other)]
            for state in states:
                del state['args']['experiment'], state['args']['output'], state['args']['command']
                del state['ride']['segments']  # they hold the command too
            assert_same(*states, where=name)
    assert rows(run) == rows(other)
    figures = [json.loads((folder / 'results.json').read_text()) for folder in (run, other)]
    for result in figures:
        del result['args']['experiment'], result['args']['output'], result['args']['command']
        for stage in (*result['training'], *(result['choices'] or {}).get('training', ())):
            for name in ('command', 'seconds', 'segments'):
                stage.pop(name, None)
    assert figures[0] == figures[1]
    assert (run / 'per_class.csv').read_text() == (other / 'per_class.csv').read_text()


class Killed(BaseException):
    """Ends a run in this process as SIGKILL would: nothing of the package handles it."""


def kill_at(monkeypatch, epoch, batch):
    """Let the run end before the optimizer's step of a batch."""
    import ride_timm.training.loop as loop

    step = loop._finish_step

    def killed(trainer, last, bad):
        if (last.epoch, last.index) == (epoch, batch):
            raise Killed
        step(trainer, last, bad)

    monkeypatch.setattr(loop, '_finish_step', killed)


def resume_litter(folder: Path):
    return [path.name for path in folder.iterdir() if 'tmp' in path.name or 'link' in path.name]
