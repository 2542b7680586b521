"""One epoch of training."""

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from timm import utils
from timm.data import Mixup
from torch import nn
from tqdm import tqdm

from ride_timm._compat import mixup_target
from ride_timm.errors import RideError
from ride_timm.evaluation.memory import is_out_of_memory, out_of_memory_error
from ride_timm.logs import interactive
from ride_timm.tasks import ExpertTask
from ride_timm.training.fast.graphed import GraphedStep
from ride_timm.training.interrupt import Interrupted, StopRequest

__all__ = ['Trainer', 'agree', 'lone_step', 'train_epoch']

_logger = logging.getLogger(__name__)

Autocast = Callable[[], AbstractContextManager[Any]]
_Result = TypeVar('_Result')


@dataclass
class Trainer:
    """Everything an epoch needs."""

    task: ExpertTask
    loader: Any  # of batches (images, class indices), as timm's PrefetchLoader
    optimizer: torch.optim.Optimizer
    device: torch.device
    autocast: Autocast = nullcontext
    scaler: utils.NativeScaler | None = None
    scheduler: Any = None
    mixup: Mixup | None = None
    num_classes: int = 0
    smoothing: float = 0.0
    channels_last: bool = False
    accum_steps: int = 1
    clip_grad: float | None = None
    clip_mode: str = 'norm'
    log_interval: int = 50
    world_size: int = 1
    primary: bool = True
    graphed: GraphedStep | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    epochs: int = 1
    meters: dict[str, utils.AverageMeter] = field(default_factory=dict)

    @property
    def lr(self) -> float:
        """Learning rate of the first group of parameters."""
        return float(self.optimizer.param_groups[0]['lr'])

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-len(self.loader) // self.accum_steps)

    def ends_step(self, index: int) -> bool:
        """Whether the optimizer steps after batch `index` of an epoch."""
        return (index + 1) % self.accum_steps == 0 or index == len(self.loader) - 1

    def step_size(self, index: int) -> int:
        """Batches of the optimizer step that batch `index` belongs to; the last step of an epoch may have fewer."""
        rest = len(self.loader) % self.accum_steps
        return self.accum_steps if index < len(self.loader) - rest else rest

    def batch(self, images: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch as the task takes it: on the device, mixed or smoothed where asked for."""
        images, target = images.to(self.device), target.to(self.device)
        if self.mixup is not None and self.mixup.mixup_enabled:
            images, target = self.mixup(images, target) if len(images) % 2 == 0 else self._unmixed(images, target)
        elif self.smoothing > 0.0:
            target = mixup_target(target, self.num_classes, smoothing=self.smoothing)
        return self.laid_out(images), target

    def laid_out(self, value: torch.Tensor) -> torch.Tensor:
        """Images or maps (B, channels, H, W) in the memory format of the training; other tensors as they are."""
        maps = self.channels_last and value.ndim == 4
        return value.contiguous(memory_format=torch.channels_last) if maps else value

    def _unmixed(self, images: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images, mixup_target(target, self.num_classes, smoothing=self.smoothing)  # Mixup pairs images


@dataclass
class _Batch:
    """A batch that was trained on, for the case that it has to be spoken of."""

    epoch: int
    index: int
    values: dict[str, float]
    gradient_norm: float

    @property
    def trouble(self) -> int:
        """0 for a batch like any other, 1 for gradients that are not finite, 2 for a loss that is not."""
        return 2 if not math.isfinite(self.values['loss']) else int(not math.isfinite(self.gradient_norm))


def train_epoch(trainer: Trainer, epoch: int) -> OrderedDict[str, float]:
    """Train one epoch.

    Args:
        trainer: What to train with; its loader is seeded for this epoch already.
        epoch: Index of the epoch, from 0.

    Returns:
        Means over the epoch: `loss` and its parts, and `images_per_second` of all processes.

    Raises:
        RideError: The loss or a gradient is not finite, or a batch does not fit into memory.
        Interrupted: `trainer.stop` has noted a signal, in some process; the step is finished.
    """
    trainer.task.set_epoch(epoch)
    module: Any = trainer.task.get_trainable_module()
    module.train()
    trainer.optimizer.zero_grad()
    if trainer.graphed is not None:
        trainer.graphed.start_epoch()
    trainer.meters = {}
    parameters = trainer.task.get_clip_parameters()
    start = time.perf_counter()
    count = 0
    bad: _Batch | None = None
    shown = tqdm(
        trainer.loader, desc=f'epoch {epoch + 1}/{trainer.epochs}', leave=False,
        disable=not (trainer.primary and interactive()),
    )  # fmt: skip
    for index, (images, target) in enumerate(shown):
        images, target = trainer.batch(images, target)
        update = trainer.ends_step(index)
        found = _if_it_fits(partial(_backward, trainer, images, target, update, trainer.step_size(index)))
        if not found:
            raise out_of_memory_error(images)
        (parts,) = found
        norm = _gradient_norm(parameters) if update and trainer.scaler is None else None
        batch = _Batch(epoch, index, *_read(parts, norm))
        bad = bad or (batch if batch.trouble else None)
        for name, value in batch.values.items():
            trainer.meters.setdefault(name, utils.AverageMeter()).update(value, len(images))
        count += len(images)
        if update and not _if_it_fits(partial(_finish_step, trainer, batch, bad)):
            raise out_of_memory_error(images)
        _report(trainer, batch, shown)
    return _epoch_means(trainer, count, time.perf_counter() - start)


def _finish_step(trainer: Trainer, batch: _Batch, bad: _Batch | None) -> None:
    """Step the optimizer and what follows it, or stop where a process diverged or was asked to."""
    batches = len(trainer.loader)
    step = batch.epoch * trainer.updates_per_epoch + batch.index // trainer.accum_steps + 1
    trouble, signum = agree(trainer, bad.trouble if bad else 0, trainer.stop.signum)
    if trouble:
        # a loss that is not finite in one process reaches the gradients of all
        if bad is None or bad.trouble != trouble:
            raise RideError(f'Another process diverged in step {step}; its message says where.')
        loss = f'{bad.values["loss"]:g}'
        what = f'The loss became {loss}' if bad.trouble == 2 else f'The gradients are not finite (loss {loss})'
        raise RideError(
            f'{what} at epoch {bad.epoch}, batch {bad.index} (step {step}, lr {trainer.lr:.3g}); no step was taken and '
            'the last checkpoint is kept: lower --lr, or add --clip-grad 1.'
        )
    _update(trainer)
    trainer.task.update_ema(step=step)
    if trainer.scheduler is not None:
        trainer.scheduler.step_update(step)
    if signum and batch.index < batches - 1:  # after the last batch the epoch is worth finishing
        raise Interrupted(
            signum,
            f'in epoch {batch.epoch} after {batch.index + 1} of {batches} batches; to repeat the epoch, add '
            '--resume auto to the same command',
        )


def agree(trainer: Trainer, *flags: int) -> list[int]:
    """The largest value of each flag over all processes, so that they stop in the same step or not at all.

    One all-reduce of a few bytes in each optimizer step; alone, a process keeps its own flags.

    Args:
        trainer: Knows the processes.
        *flags: Whole numbers; every process calls with as many.
    """
    if trainer.world_size == 1:
        return list(flags)
    largest = torch.tensor(flags, device=trainer.device)
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    return [int(flag) for flag in largest.tolist()]


def _if_it_fits(compute: Callable[[], _Result]) -> tuple[_Result] | tuple[()]:
    """What a part of a step returns, in a tuple that is empty where memory is short."""
    try:
        return (compute(),)
    except Exception as error:  # it keeps the tensors of the failed step alive until it is left
        if not is_out_of_memory(error):
            raise
    return ()


def _backward(
    trainer: Trainer, images: torch.Tensor, target: torch.Tensor, update: bool, group: int
) -> dict[str, torch.Tensor]:
    """Forward and backward; returns the loss and its parts. With a scaler and `update` the optimizer steps too."""
    if trainer.graphed is not None:
        return trainer.graphed(images, target)
    task = trainer.task
    with nullcontext() if update else task.no_sync():
        with trainer.autocast():
            result = task(images, target)
        loss = result['loss'] / group
        if trainer.scaler is None:
            loss.backward()
        else:
            trainer.scaler(
                loss, trainer.optimizer, clip_grad=trainer.clip_grad, clip_mode=trainer.clip_mode,
                parameters=_clipped(trainer), need_update=update,
            )  # fmt: skip
    return {name: value.detach() for name, value in result.items() if name != 'output'}


def lone_step(trainer: Trainer, images: torch.Tensor, target: torch.Tensor) -> None:
    """A step on one batch, of which nothing is checked, logged or scheduled.

    Args:
        trainer: What to train with.
        images: (B, channels, H, W).
        target: (B,) class indices.
    """
    _backward(trainer, *trainer.batch(images, target), update=True, group=1)
    _update(trainer)


def _update(trainer: Trainer) -> None:
    """Clip the gradients and step, unless a scaler has done so; it leaves out steps whose gradients overflow."""
    if trainer.scaler is None:
        if trainer.clip_grad:
            utils.dispatch_clip_grad(_clipped(trainer), trainer.clip_grad, mode=trainer.clip_mode)
        trainer.optimizer.step()
    trainer.optimizer.zero_grad()


def _clipped(trainer: Trainer) -> list[nn.Parameter] | None:
    return trainer.task.get_clip_parameters('agc' in trainer.clip_mode) if trainer.clip_grad else None


def _gradient_norm(parameters: list[nn.Parameter]) -> torch.Tensor:
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _read(parts: dict[str, torch.Tensor], norm: torch.Tensor | None) -> tuple[dict[str, float], float]:
    """The loss, its parts and the norm as numbers, with a single wait for the device."""
    tensors = [*parts.values()] if norm is None else [*parts.values(), norm]
    numbers = torch.stack([t.float() for t in tensors]).tolist()
    return dict(zip(parts, numbers, strict=False)), 0.0 if norm is None else numbers[-1]


def _report(trainer: Trainer, batch: _Batch, shown: Any) -> None:
    if not trainer.primary:
        return
    loss = trainer.meters['loss'].avg
    number = batch.index + 1
    if not shown.disable:
        shown.set_postfix(loss=f'{loss:.3f}', refresh=False)
    elif trainer.log_interval and number % trainer.log_interval == 0:
        _logger.info(f'Train: {batch.epoch} [{number}/{len(trainer.loader)}]  Loss: {loss:.4f}  LR: {trainer.lr:.3e}')


def _epoch_means(trainer: Trainer, images: int, seconds: float) -> OrderedDict[str, float]:
    """Means over the images of all processes."""
    means = OrderedDict((name, float(meter.avg)) for name, meter in trainer.meters.items())
    if trainer.world_size > 1:
        sums = torch.tensor([value * images for value in means.values()] + [images], dtype=torch.float64)
        sums = sums.to(trainer.device)
        torch.distributed.all_reduce(sums)
        means = OrderedDict(zip(means, (sums[:-1] / sums[-1]).tolist(), strict=True))
        images = int(sums[-1])
    means['images_per_second'] = images / seconds
    return means
