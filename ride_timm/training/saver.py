"""Checkpoints in timm's names and layout, written so that a kill loses nothing."""

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from timm.task import TrainingTask
from timm.utils import NativeScaler

from ride_timm.errors import RideError
from ride_timm.files import sync_folder
from ride_timm.training.run_folder import discard_results, numbered_epoch

__all__ = ['RunSaver', 'check_history']

_TEMPORARY, _LINK = 'tmp.pth.tar', 'link.pth.tar'
_LITTER = (_TEMPORARY, _LINK, 'summary.csv.tmp', 'args.yaml.tmp', 'results.json.tmp')

_MAX_EPOCH = 10**9


class RunSaver:
    """Saves a run in timm's layout, so that neither a kill, a full disk nor a metric that is not a number does harm.

    `last.pth.tar` is the epoch that ended, `checkpoint-N.pth.tar` are the best epochs, `model_best.pth.tar` is the
    best of them; of epochs without a metric the latest are kept. Files share their content by links where they can.

    1. Every file appears in one step and lasts through a loss of power.
    2. A save that was killed after `last` is completed on resuming, so that `model_best` and the history are those of
       a run that was never killed.
    3. A metric that is not finite never becomes the best.
    4. `args` is a plain dict, so that the file loads with `weights_only=True` and nothing else allowed.
    5. What a checkpoint says of the files next to it is checked before one is removed.

    Args:
        folder: The run's folder, which is there.
        task: Holds the network and its moving average.
        optimizer: Its state is saved.
        scaler: timm's gradient scaler, if there is one.
        extra: What goes into the file under the key `ride`: class names and counts, loss.
        settings: The run's arguments, plain values.
        max_history: How many of the best epochs to keep, at least 1.
        decreasing: Whether a lower metric is better.

    Attributes:
        best_metric: Best metric so far, None before there is one.
        best_epoch: Its epoch.
    """

    def __init__(
        self, folder: Path, task: TrainingTask, optimizer: torch.optim.Optimizer, scaler: NativeScaler | None = None, *,
        extra: dict[str, Any], settings: dict[str, Any], max_history: int, decreasing: bool = False,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.task = task
        self.optimizer = optimizer
        self.scaler = scaler
        self.extra = extra
        self.settings = settings
        self.max_history = max_history
        self.decreasing = decreasing
        self.kept: list[tuple[int, float | None]] = []  # epochs on disk and their metrics, the best first
        self.best_metric: float | None = None
        self.best_epoch: int | None = None
        self.only_start = False  # whether `last` holds the state before the first epoch of this process
        self.last = folder / 'last.pth.tar'
        self.best = folder / 'model_best.pth.tar'
        for litter in _LITTER:
            (folder / litter).unlink(missing_ok=True)

    def save_checkpoint(self, epoch: int, metric: float | None = None) -> None:
        """Save `last`, and the best ones.

        Args:
            epoch: Index of the epoch that ended.
            metric: What ranks checkpoints; None or not finite ranks behind all.

        Raises:
            RideError: The files cannot be written; those of the epoch before are whole.
        """
        ranked = metric if metric is not None and math.isfinite(metric) else None
        with self._explained():
            self._save_last(epoch, ranked, pending=(epoch, ranked))
            self.only_start = False
            self._keep(epoch, ranked)

    def save_start(self, epoch: int) -> None:
        """Save the state before the first epoch as `last`.

        The folder then belongs to this run from its first second on, and a disk that cannot be written is found
        before an epoch is spent.

        Args:
            epoch: Index of the epoch before, -1 for a run from the start.

        Raises:
            RideError: The file cannot be written.
        """
        with self._explained():
            self._save_last(epoch, None, pending=(None, None))
            self.only_start = True

    def discard_start(self) -> None:
        """Free the folder again, if `last` is still what `save_start` wrote: nothing is lost."""
        if self.only_start:
            self.last.unlink(missing_ok=True)

    def restart(self, source: Path, state: dict[str, Any]) -> None:
        """Go on in the folder of a checkpoint, finishing the save that wrote it.

        Args:
            source: The checkpoint, a file of this folder; becomes `last`.
            state: Its entry `saver`.

        Raises:
            RideError: The files cannot be written, or the entry names others than a saver's.
        """
        check_history(state, source)
        with self._explained():
            self._duplicate(source, self.last)
            listed = [(numbered_epoch(name), metric) for name, metric in state.get('checkpoint_files', [])]
            self._keep_first([entry for entry in listed if self._path(entry[0]).exists()])
            self.best_epoch, self.best_metric = state.get('best_epoch'), state.get('best_metric')
            epoch, metric = state.get('pending') or (None, None)
            if epoch is not None and epoch not in dict(self.kept):
                self._keep(epoch, metric)
            if self.best_epoch is not None and self._path(self.best_epoch).exists():
                self._duplicate(self._path(self.best_epoch), self.best)

    def _path(self, epoch: int) -> Path:
        return self.folder / f'checkpoint-{epoch}.pth.tar'

    def _keep(self, epoch: int, metric: float | None) -> None:
        """Put `last` into the history if it ranks there, and make it the best if it is."""
        if metric is None:  # behind all others that have one, the latest first
            ranked, others = self.kept, [(epoch, metric)]
        else:  # behind its equals
            ranked, others = [*self.kept, (epoch, metric)], []
        sign = 1 if self.decreasing else -1
        best = sorted((entry for entry in ranked if entry[1] is not None), key=lambda entry: sign * (entry[1] or 0.0))
        self._keep_first([*best, *others, *(entry for entry in self.kept if entry[1] is None)])
        if epoch not in dict(self.kept):
            return
        self._duplicate(self.last, self._path(epoch))
        if metric is not None and (self.best_metric is None or sign * metric < sign * self.best_metric):
            self.best_epoch, self.best_metric = epoch, metric
            self._duplicate(self.last, self.best)

    def _keep_first(self, ranking: list[tuple[int, float | None]]) -> None:
        self.kept = ranking[: self.max_history]
        for epoch, _ in ranking[self.max_history :]:
            self._path(epoch).unlink(missing_ok=True)

    def _save_last(self, epoch: int, metric: float | None, pending: tuple[int | None, float | None]) -> None:
        temporary = self.folder / _TEMPORARY
        self._write(temporary, epoch, metric, pending)
        discard_results(self.folder)
        temporary.replace(self.last)
        sync_folder(self.folder)

    def _duplicate(self, source: Path, target: Path) -> None:
        """Make `target` the same file as `source`, in one step."""
        if target.exists() and target.samefile(source):
            return  # also because a rename onto another name of the same file does nothing and leaves both
        link = self.folder / _LINK
        link.unlink(missing_ok=True)
        try:
            link.hardlink_to(source)
        except (OSError, NotImplementedError):  # a file system without links
            shutil.copyfile(source, link)
            with link.open('rb+') as file:
                os.fsync(file.fileno())
        link.replace(target)
        sync_folder(self.folder)

    def _write(self, path: Path, epoch: int, metric: float | None, pending: tuple[int | None, float | None]) -> None:
        state: dict[str, Any] = {
            'epoch': epoch,
            'arch': self.settings['model'],
            'optimizer': self.optimizer.state_dict(),
            'version': 2,  # timm: the epoch is that of the weights, not the next one
            'args': self.settings,
            'metric': metric,
            'saver': {
                'checkpoint_files': [(self._path(kept).name, rank) for kept, rank in self.kept],
                'best_epoch': self.best_epoch,
                'best_metric': self.best_metric,
                'pending': pending,  # not in the history yet
            },
            'ride': self.extra,
            **self.task.get_checkpoint_state(),
            **self.task.get_checkpoint_state(ema=True),
        }
        if self.scaler is not None:
            state[self.scaler.state_dict_key] = self.scaler.state_dict()
        with path.open('wb') as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn a failure to write into one sentence, and leave no half of a file behind."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            # torch hides the system's error behind one of its own about positions in the file
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            for name in (_TEMPORARY, _LINK):
                (self.folder / name).unlink(missing_ok=True)
            raise RideError(
                f'The checkpoint cannot be written to {self.folder} ({cause.strerror}) and the one before is intact; '
                'free disk space, then continue with --resume auto.'
            ) from error


def check_history(state: Any, source: str | Path) -> None:
    """Refuse a history of saves that is not of our own making, since files are removed by it.

    Args:
        state: The entry `saver` of a checkpoint.
        source: The checkpoint.

    Raises:
        RideError: The entry names other files than `checkpoint-N.pth.tar`, or is damaged.
    """
    wrong = next(_misfits(state), None)
    if wrong is not None:
        raise RideError(
            f'{source} is not resumed from, since its history of saves is not one of a training ({wrong}); use the '
            'checkpoint of a training of your own.'
        )


def _misfits(state: Any) -> Iterator[str]:
    if not isinstance(state, Mapping):
        yield f'saver is {type(state).__name__}'
        return
    kept, pending = state.get('checkpoint_files', []), state.get('pending') or (None, None)
    best = (state.get('best_epoch'), state.get('best_metric'))
    if not isinstance(kept, list):
        yield 'checkpoint_files is no list'
        return
    for entry in kept:
        name = entry[0] if isinstance(entry, (list, tuple)) and len(entry) == 2 else None
        if not isinstance(name, str) or numbered_epoch(name) < 0 or not _is_rank(entry[1]):
            yield f'it names {str(name)[:100]!r}'
    for key, pair in (('best_epoch', best), ('pending', pending)):
        fits = isinstance(pair, (list, tuple)) and len(pair) == 2 and _is_epoch(pair[0]) and _is_rank(pair[1])
        if not fits:
            yield f'{key} is {str(pair)[:100]!r}'


def _is_epoch(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value < _MAX_EPOCH)


def _is_rank(value: Any) -> bool:
    return value is None or type(value) in (int, float)
