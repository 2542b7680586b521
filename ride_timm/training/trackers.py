"""Optional experiment trackers next to `summary.csv`: TensorBoard, trackio, Weights & Biases."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ride_timm.installation import require

__all__ = ['Tracker']


class Tracker:
    """Sends each epoch's metrics to one tracker; does nothing without a name.

    Args:
        name: One of `TRACKERS` of `training/config.py`, or None.
        folder: The run's folder; TensorBoard's files go into it, and its name is the run's.
        settings: The run's arguments, shown with the curves.

    Raises:
        RideError: The package is not installed.
    """

    def __init__(
        self,
        name: str | None = None,
        folder: Path = Path(),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._writer: Any = None
        self._module: Any = None
        if name is None:
            return
        require(f'--log {name}', name, name)
        if name == 'tensorboard':
            board = importlib.import_module('torch.utils.tensorboard')
            self._writer = board.SummaryWriter(str(folder / 'tensorboard'))
        else:
            self._module = importlib.import_module(name)
            # trackio has wandb's interface
            self._module.init(project='ride-timm', name=folder.name, config=dict(settings or {}))

    def log(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of an epoch.

        Args:
            epoch: Index of the epoch, from 0.
            metrics: By name, such as `train_loss` or `eval_few`.
        """
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(name.replace('_', '/', 1), value, epoch)
            self._writer.flush()
        elif self._module is not None:
            self._module.log({'epoch': epoch, **metrics})

    def close(self) -> None:
        """Finish; nothing can be sent afterwards."""
        if self._writer is not None:
            self._writer.close()
        elif self._module is not None:
            self._module.finish()
        self._writer = self._module = None
