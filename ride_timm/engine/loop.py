"""One epoch of training, and one evaluation."""

import logging
import math
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from timm import utils
from timm.data import Mixup
from timm.data.loader import PrefetchLoader
from timm.data.mixup import mixup_target
from timm.task import evaluation_sample_limit
from torch import nn
from tqdm import tqdm

from ride_timm.errors import RideError
from ride_timm.metrics import LongTailEvaluator
from ride_timm.models import MultiExpertNet
from ride_timm.tasks import RideTask, RouterTask

__all__ = ['Trainer', 'evaluate', 'train_epoch']

_logger = logging.getLogger(__name__)

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass
class Trainer:
    """Everything an epoch needs."""

    task: RideTask | RouterTask
    loader: PrefetchLoader
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
    epochs: int = 1
    meters: dict[str, utils.AverageMeter] = field(default_factory=dict)

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-len(self.loader) // self.accum_steps)

    def batch(self, images: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch as the task takes it: on the device, mixed or smoothed where asked for."""
        images, target = images.to(self.device), target.to(self.device)
        if self.mixup is not None and self.mixup.mixup_enabled:
            images, target = self.mixup(images, target) if len(images) % 2 == 0 else self._unmixed(images, target)
        elif self.smoothing > 0.0:
            target = mixup_target(target, self.num_classes, smoothing=self.smoothing)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, target

    def _unmixed(self, images: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images, mixup_target(target, self.num_classes, smoothing=self.smoothing)  # Mixup pairs images


def train_epoch(trainer: Trainer, epoch: int) -> OrderedDict[str, float]:
    """Train one epoch.

    Args:
        trainer: What to train with; its loader is seeded for this epoch already.
        epoch: Index of the epoch, from 0.

    Returns:
        Means over the epoch: `loss` and its parts, and `images_per_second` of all processes.

    Raises:
        RideError: The loss or a gradient is not finite.
    """
    trainer.task.set_epoch(epoch)
    trainer.task.get_trainable_module().train()  # type: ignore[union-attr]
    trainer.optimizer.zero_grad()
    trainer.meters = {}
    batches = len(trainer.loader)
    start = time.perf_counter()
    images = 0
    shown = tqdm(
        trainer.loader, desc=f'epoch {epoch + 1}/{trainer.epochs}', leave=False,
        disable=not (trainer.primary and sys.stderr.isatty()),
    )  # fmt: skip
    for index, (image, target) in enumerate(shown):
        update = (index + 1) % trainer.accum_steps == 0 or index == batches - 1
        group = (
            trainer.accum_steps if index < batches - batches % trainer.accum_steps else batches % trainer.accum_steps
        )
        image, target = trainer.batch(image, target)
        result = _step(trainer, image, target, update, group, f'epoch {epoch}, batch {index}')
        for name, value in result.items():
            trainer.meters.setdefault(name, utils.AverageMeter()).update(value, len(image))
        images += len(image)
        if update:
            step = epoch * trainer.updates_per_epoch + index // trainer.accum_steps + 1
            trainer.task.update_ema(step=step)
            if trainer.scheduler is not None:
                trainer.scheduler.step_update(step)
        _report(trainer, epoch, index, batches, shown)
    return _epoch_means(trainer, images, time.perf_counter() - start)


def _step(
    trainer: Trainer, images: torch.Tensor, target: torch.Tensor, update: bool, group: int, where: str
) -> dict[str, float]:
    """Forward, backward and, at the end of a group of batches, the optimizer's step."""
    task, optimizer = trainer.task, trainer.optimizer
    with nullcontext() if update else task.no_sync():
        with trainer.autocast():
            result = task(images, target)
        loss = result['loss']
        values = {name: value.detach().item() for name, value in result.items() if name != 'output'}
        if not math.isfinite(values['loss']):
            raise RideError(_divergence(trainer, target, where, values))
        parameters = task.get_clip_parameters('agc' in trainer.clip_mode) if trainer.clip_grad else None
        if trainer.scaler is not None:
            trainer.scaler(
                loss / group, optimizer, clip_grad=trainer.clip_grad, clip_mode=trainer.clip_mode,
                parameters=parameters, need_update=update,
            )  # fmt: skip
        else:
            (loss / group).backward()
            if update:
                if trainer.clip_grad:
                    utils.dispatch_clip_grad(parameters, trainer.clip_grad, mode=trainer.clip_mode)
                optimizer.step()
        if update:
            optimizer.zero_grad()
    return values


def _divergence(trainer: Trainer, target: torch.Tensor, where: str, values: dict[str, float]) -> str:
    lr = trainer.optimizer.param_groups[0]['lr']
    counts = target.bincount().tolist() if target.ndim == 1 else 'mixed'
    return (
        f'The loss became {values["loss"]} at {where} (lr {lr:.3g}, parts {values}, class counts of the batch '
        f'{counts}); the last good checkpoint is kept: lower --lr, or add --clip-grad 1.'
    )


def _report(trainer: Trainer, epoch: int, index: int, batches: int, shown: Any) -> None:
    if not trainer.primary:
        return
    loss = trainer.meters['loss'].avg
    if not shown.disable:
        shown.set_postfix(loss=f'{loss:.3f}', refresh=False)
    elif trainer.log_interval and (index + 1) % trainer.log_interval == 0:
        lr = trainer.optimizer.param_groups[0]['lr']
        _logger.info(f'Train: {epoch} [{index + 1}/{batches}]  Loss: {loss:.4f}  LR: {lr:.3e}')


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


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: PrefetchLoader,
    evaluator: LongTailEvaluator,
    autocast: Autocast = nullcontext,
    channels_last: bool = False,
    distributed: bool = False,
) -> OrderedDict[str, float]:
    """Run a network over a loader.

    Args:
        model: Any timm classifier; of a multi-expert network each expert is measured too, if the evaluator asks.
        loader: Evaluation batches.
        evaluator: Fresh; its `max_samples` is set from the loader.
        autocast: Context of the forward pass.
        channels_last: Memory format of the images.
        distributed: Add up over processes.

    Returns:
        The evaluator's figures.
    """
    model.eval()
    evaluator.max_samples = evaluation_sample_limit(loader)
    each = evaluator.num_experts > 0 and isinstance(model, MultiExpertNet)
    for images, target in loader:
        images = images.to(evaluator.device)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast():
            experts = model.forward_experts(images) if each else None  # type: ignore[operator]
            output = model(images) if experts is None else experts.mean(dim=1)
        evaluator.update(output, target.to(evaluator.device), experts)
    return evaluator.compute(distributed=distributed)
