"""Ending a training run when the system or the user asks for it."""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType, TracebackType
from typing import Any

from timm.data.loader import PrefetchLoader

from ride_timm._compat import get_batches
from ride_timm.errors import RideError, reason_of

__all__ = ['Interrupted', 'StopRequest', 'reraise_explained', 'reraise_interrupted', 'shield_workers']

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_GRACE = 20  # seconds; torchrun and Slurm kill the rest 30 seconds after their SIGTERM


class Interrupted(Exception):  # noqa: N818  # not an error
    """A run that ended because it was asked to.

    Args:
        signum: The signal.
        where: What was done and what comes next.
    """

    def __init__(self, signum: int, where: str) -> None:
        super().__init__(f'Stopped by {signal.Signals(signum).name} {where}')
        self.status = 128 + signum


class StopRequest:
    """Notes SIGTERM and SIGINT while its `with` block runs, for the training loop to look at between two steps.

    A second SIGINT ends the process at once, as it does without this.

    Attributes:
        signum: The signal that came first; 0 before one.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> 'StopRequest':
        if threading.current_thread() is threading.main_thread():  # Python handles signals nowhere else
            self._before = {signum: signal.signal(signum, self._note) for signum in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            if handler is not None:  # one that was not set from Python
                signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loading process between its start and `_start_worker`
        if self.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = self.signum or signum


def shield_workers(loader: PrefetchLoader) -> None:
    """Let the processes of a loader outlive a signal that goes to all processes, until the step is finished.

    Ctrl-C on a terminal, torchrun and Slurm signal them too, and PyTorch stops the training at once when one dies.

    Args:
        loader: Its loading processes are not started yet.
    """
    inner = get_batches(loader)
    inner.worker_init_fn = partial(_start_worker, inner.worker_init_fn)


def reraise_interrupted(error: Exception, stop: StopRequest) -> None:
    """Take the loss of a loading process for what it is, if a signal took it.

    Raises:
        Interrupted: It was that.
    """
    if _is_worker_loss(error):
        time.sleep(0.5)  # the signal may reach this process after the other one
        if stop.signum:
            text = 'with its loading processes; to continue, add --resume auto to the same command'
            raise Interrupted(stop.signum, text) from error


def reraise_explained(error: Exception) -> None:
    """Say in one sentence that a loading process is gone, or that the disk is full; return for any other error.

    Raises:
        RideError: It was one of these.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        raise RideError(
            f'{error.filename or "The run"} cannot be written ({error.strerror}) and the last checkpoint is intact; '
            'free disk space, then continue with --resume auto.'
        ) from error
    if _is_worker_loss(error):
        raise RideError(
            f'A loading process ended ({reason_of(error)}); if memory was short, use fewer --workers.'
        ) from error


def _is_worker_loss(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and 'DataLoader worker (pid' in str(error)


def _start_worker(then: Callable[[int], None] | None, worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'SIGALRM'):
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
    if then is not None:
        then(worker)
