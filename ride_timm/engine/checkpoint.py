"""Checkpoints in timm's names and layout: written so that a kill loses nothing, read without running anything."""

import math
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from timm.utils import CheckpointSaver

from ride_timm.errors import RideError

__all__ = ['RunSaver', 'read_checkpoint']


class RunSaver(CheckpointSaver):
    """timm's saver with three repairs.

    1. `last` is replaced in one step; timm unlinks it first and loses it when killed between the two.
    2. A metric that is not a number never becomes the best; timm keeps it for ever.
    3. `args` is a plain dict, so that the file loads with `weights_only=True` and nothing allowed beside.

    Args:
        extra: What goes into the file under the key `ride`: class names and counts, loss.
        settings: The run's arguments, plain values.
        **kwargs: Those of timm's saver.
    """

    def __init__(self, *, extra: dict[str, Any], settings: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.extra = extra
        self.settings = settings
        for litter in ('tmp', 'link'):
            Path(self.checkpoint_dir, litter + self.extension).unlink(missing_ok=True)

    def _replace(self, src: str, dst: str) -> None:
        with Path(src).open('rb') as file:
            os.fsync(file.fileno())
        Path(src).replace(dst)

    def _duplicate(self, src: str, dst: str) -> None:
        link = Path(self.checkpoint_dir, 'link' + self.extension)
        link.unlink(missing_ok=True)
        try:
            link.hardlink_to(src)
        except (OSError, NotImplementedError):
            shutil.copy2(src, link)
        link.replace(dst)

    def save_checkpoint(self, epoch: int, metric: float | None = None) -> tuple[float | None, int | None]:
        """Save `last`, and the best ones.

        Args:
            epoch: Index of the epoch that ended.
            metric: What ranks checkpoints; None or not a number ranks behind all.

        Returns:
            Best metric so far and its epoch, None before there is one.
        """
        ranked = None if metric is None or math.isnan(metric) else metric
        best: tuple[float | None, int | None] = super().save_checkpoint(epoch, ranked)
        return best

    def _save(self, save_path: str, epoch: int, metric: float | None = None) -> None:
        assert self.task is not None
        state: dict[str, Any] = {
            'epoch': epoch,
            'arch': self.settings['model'],
            'optimizer': self.optimizer.state_dict(),
            'version': 2,  # timm: the epoch is that of the weights, not the next one
            'args': self.settings,
            'metric': metric,
            'saver': self.state_dict(epoch, metric),
            'ride': self.extra,
            **self.task.get_checkpoint_state(unwrap_fn=self.unwrap_fn),
            **self.task.get_checkpoint_state(ema=True, unwrap_fn=self.unwrap_fn),
        }
        if self.amp_scaler is not None:
            state[self.amp_scaler.state_dict_key] = self.amp_scaler.state_dict()
        torch.save(state, save_path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint without running anything in it.

    Args:
        path: A file that our training, or timm's, wrote.

    Returns:
        The file's content; `state_dict` is there.

    Raises:
        RideError: There is no such file, it is no checkpoint, or it names foreign classes.
    """
    if not Path(path).is_file():
        raise RideError(f'There is no checkpoint {path}; give the path of a last.pth.tar or model_best.pth.tar.')
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        if 'Unsupported global' in str(error) or 'GLOBAL' in str(error):
            raise RideError(
                f'{path} names Python classes beside tensors, which only `ride-timm convert` reads (without running '
                'them); convert an official file first, and do not load one that you do not trust.'
            ) from None
        raise RideError(_no_checkpoint(path)) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError):
        raise RideError(_no_checkpoint(path)) from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get('state_dict'), dict):
        raise RideError(_no_checkpoint(path))
    return checkpoint


def _no_checkpoint(path: str | Path) -> str:
    return f'{path} is not a training checkpoint, or a damaged one; give a last.pth.tar or model_best.pth.tar of a run.'
