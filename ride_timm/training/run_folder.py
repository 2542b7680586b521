"""The folder of a run: where it is, which process may write to it, and what lies in it."""

import errno
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import torch
from timm.utils import is_primary

from ride_timm.data.form import data_name
from ride_timm.errors import RideError
from ride_timm.training.config import ResolvedConfig

try:
    import fcntl
except ImportError:  # Windows
    HAS_LOCKS = False
else:
    HAS_LOCKS = True

__all__ = [
    'DAMAGED',
    'LAST',
    'checkpoints_in',
    'discard_results',
    'in_primary',
    'locked',
    'numbered_epoch',
    'run_folder',
]

LAST = 'last.pth.tar'
DAMAGED = f'damaged-{LAST}'  # where a `last` that could not be read is kept
LOCK = 'run.lock'
_BEST = 'model_best.pth.tar'
_NUMBERED = re.compile(r'checkpoint-([0-9]{1,9})\.pth\.tar')
_RESULTS = ('results.json', 'per_class.csv', 'sweep.csv')
_HELD = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

_Result = TypeVar('_Result')

_logger = logging.getLogger(__name__)


def run_folder(config: ResolvedConfig) -> Path:
    """The folder of the run.

    Raises:
        RideError: --experiment leads out of --output, or names the folder of a packaged network.
    """
    name = Path(config.experiment)
    if name.is_absolute() or '..' in name.parts or not name.parts:
        raise RideError(
            f'--experiment {config.experiment} was given; it names a folder inside --output: leave out a leading / and '
            'any .., and give the place as --output.'
        )
    folder = Path(config.output, name)
    if (folder / 'config.json').exists() and not checkpoints_in(folder):
        raise RideError(
            f'{folder} holds a packaged network, whose results.json a training would replace; choose another '
            '--experiment NAME.'
        )
    return folder


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run, `last` first, then the numbered ones from the newest on, then the best.

    Args:
        folder: The run's folder, which need not exist.
    """
    numbered = sorted(
        (epoch, path) for path in folder.glob('checkpoint-*') if (epoch := numbered_epoch(path.name)) >= 0
    )
    paths = [folder / LAST, *(path for _, path in reversed(numbered)), folder / _BEST]
    return [path for path in paths if path.is_file()]


def numbered_epoch(name: str) -> int:
    """The epoch in the name `checkpoint-N.pth.tar`; -1 for any other name."""
    match = _NUMBERED.fullmatch(name)
    return int(match[1]) if match else -1


def discard_results(folder: Path) -> None:
    """Remove what the end of a run wrote, before it gets another `last`: the results are of the weights as they were.

    They could pass for those of the new weights else, also where a kill keeps the new results from being written.
    """
    for name in _RESULTS:
        (folder / name).unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a run's folder and keep it for this process while the block runs.

    The lock is the system's, on the file `run.lock`: it ends with its process however that ends, also on another
    machine where the network file system knows locks (NFS and Lustre do), so a job that is killed and started again
    elsewhere goes on. A file that merely exists would stay behind, and process numbers mean nothing across machines
    and containers. It is POSIX's (`fcntl`), not `flock`: loading processes, which are forks, would hold the latter on
    for seconds after a kill. What the file says is for the message only.

    Raises:
        RideError: The folder cannot be written, or another process has it.
    """
    path, new = folder / LOCK, not os.path.lexists(folder)
    try:
        descriptor = _lock(path)
    except OSError as error:
        raise RideError(
            f'The run cannot be written to {folder} ({error.strerror}); choose another --output.'
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # before the lock is given up: `_acquire` sees that a file is gone
        os.close(descriptor)
        if new:
            with suppress(OSError):
                folder.rmdir()  # what was refused leaves nothing behind; a folder with files stays


def in_primary(config: ResolvedConfig, device: torch.device, action: Callable[[], _Result]) -> _Result | None:
    """Do something in the process that saves; where it fails there, all processes end.

    Args:
        config: The run's options, completed by `start_device`.
        device: The device of this process.
        action: What to do.

    Returns:
        What the action returns, None in the other processes.

    Raises:
        RideError: The action did.
    """
    result, error = None, None
    if is_primary(config):
        try:
            result = action()
        except RideError as caught:
            error = caught
    if config.distributed:
        failed = torch.tensor(int(error is not None), device=device)
        torch.distributed.all_reduce(failed)
        if failed and error is None:
            error = RideError('The saving process failed; its message says why.')
    if error is not None:
        raise error
    return result


def _lock(path: Path) -> int:
    """Make the folder, open and lock the file in it; returns its descriptor."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0), 0o666)
        except FileNotFoundError:  # another process has just removed the empty folder
            continue
        try:
            if _acquire(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f'{os.getpid()} {socket.gethostname()}\n'.encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _acquire(descriptor: int, path: Path) -> bool:
    """Lock an open file; False where the process that had it has removed the file meanwhile."""
    if not HAS_LOCKS:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise RideError(_held(path)) from None
        if error.errno not in _NO_LOCKS:
            raise
        _logger.warning(f'{path.parent} is on a file system without locks; do not start a second training in it.')
        return True
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _held(path: Path) -> str:
    try:
        process, _, host = path.read_text(encoding='utf-8').strip()[:100].partition(' ')
    except (OSError, ValueError):
        process = host = ''
    known = process.isdigit() and host.isprintable()
    owner = f'process {process} on {host}' if known else 'another process'
    gone = f' (if that machine is gone, delete {path})' if known and host != socket.gethostname() else ''
    return (
        f'{path.parent} is in use: {owner} trains in it; wait for it to end or stop it{gone}, or choose another '
        '--experiment NAME.'
    )


def experiment_name(config: ResolvedConfig) -> str:
    """Name of a run that was given none: model, data, and loss or stage."""
    data = data_name(config)
    factor = f'_if{config.imb_factor:g}' if config.imb_factor else ''
    what = config.stage if config.stage == 'router' else f'{config.stage}_{config.loss}'.removeprefix('experts_')
    distilled = '_distill' if config.teacher else ''
    return f'{config.model}-{data}{factor}-{what}{distilled}'.replace('/', '_')
