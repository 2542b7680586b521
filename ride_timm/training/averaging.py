"""A second set of weights, averaged over training: timm's moving average, or the mean over the last epochs."""

from collections.abc import Mapping
from typing import Any

import torch
from timm.models import clean_state_dict
from timm.utils import ModelEmaV3, unwrap_model
from torch.optim.swa_utils import update_bn

from ride_timm.data import start_epoch
from ride_timm.errors import RideError
from ride_timm.tasks import ExpertTask
from ride_timm.training.config import ResolvedConfig
from ride_timm.training.loop import Trainer

__all__ = ['EpochMean', 'average_epoch', 'is_averaged', 'setup_average']


class EpochMean(ModelEmaV3):
    """The mean of the weights at the ends of epochs, all of the same weight; steps change nothing.

    Source: Izmailov et al., arXiv:1803.05407 (stochastic weight averaging), on the run's own learning rates.

    Args:
        model: What is averaged.
    """

    def update(self, model: torch.nn.Module, step: int | None = None) -> None:
        """Do nothing, after a step.

        Args:
            model: For timm; not used.
            step: For timm; not used.
        """

    @torch.no_grad()
    def add(self, model: torch.nn.Module, before: int) -> None:
        """Take an epoch's weights and statistics into the mean.

        Args:
            model: As at the end of the epoch.
            before: Epochs that are in the mean already; 0 begins anew.
        """
        self.apply_update_(model, decay=before / (before + 1))


def is_averaged(settings: Mapping[str, Any]) -> bool:
    """Whether a run is measured by averaged weights, which its checkpoints hold next to the plain ones."""
    return bool(settings.get('model_ema') or settings.get('average_epochs'))


def setup_average(config: ResolvedConfig, task: ExpertTask, checkpoint: Mapping[str, Any] | None) -> None:
    """Create the averaged weights that the arguments ask for, or go on with those of a checkpoint.

    Args:
        config: The run's options.
        task: Gets them as timm's `trainable_module_ema`.
        checkpoint: What the run resumes from, or None.

    Raises:
        RideError: Both kinds are asked for, or more epochs than there are.
    """
    if config.model_ema and config.average_epochs:
        raise RideError('--model-ema and --average-epochs both average the weights; leave one of them out.')
    if config.average_epochs > config.epochs:
        raise RideError(
            f'--average-epochs {config.average_epochs} was given, but --epochs is {config.epochs}; average fewer, '
            f'such as {max(1, config.epochs // 10)}.'
        )
    if config.model_ema:
        task.setup_ema(decay=config.model_ema_decay, use_warmup=config.model_ema_warmup)
    elif config.average_epochs:
        task.trainable_module_ema = EpochMean(task.get_trainable_module())
    else:
        return
    if checkpoint is not None and 'state_dict_ema' in checkpoint:
        task.load_checkpoint_state(clean_state_dict(checkpoint['state_dict_ema']), ema=True)


def average_epoch(config: ResolvedConfig, trainer: Trainer, epoch: int, measured: bool) -> None:
    """Take an epoch that ended into the mean over the last epochs; before these the mean is the network itself.

    Statistics of BatchNorm are those of the plain weights; for the mean they are computed anew from the training images
    before it is measured.

    Args:
        config: The run's options; without --average-epochs nothing is done.
        trainer: Its task holds the mean.
        epoch: Index of the epoch.
        measured: Whether an evaluation follows.
    """
    mean: Any = trainer.task.get_trainable_module(ema=True)
    if not isinstance(mean, EpochMean):
        return
    before = max(0, epoch - (trainer.epochs - config.average_epochs))
    mean.add(unwrap_model(trainer.task.get_trainable_module()), before)
    if not (before and measured) or config.train_only:  # in parts of a network the statistics are frozen
        return
    start_epoch(trainer.loader, seed=config.seed, epoch=epoch, rank=config.rank)
    with trainer.autocast():
        update_bn((trainer.laid_out(images.to(trainer.device)) for images, _ in trainer.loader), mean.module)
