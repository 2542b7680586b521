"""What a run is made of, built from its options."""

import logging
from contextlib import nullcontext
from typing import Any

import timm
import torch
from timm.data import Mixup
from timm.data.loader import PrefetchLoader
from timm.layers import convert_sync_batchnorm
from timm.utils import is_primary

from ride_timm.data import (
    create_eval_loader,
    create_sampler,
    create_train_loader,
    hold_on_device,
)
from ride_timm.errors import RideError, reason_of
from ride_timm.inference.hub import is_unreachable, without_retries
from ride_timm.inference.network import check_architecture, is_fetched, unreachable
from ride_timm.losses import ExpertLoss, create_loss, fitting_options
from ride_timm.training.augmentation import device_augmentation, train_transform
from ride_timm.training.config import ResolvedConfig
from ride_timm.training.run_data import RunData

__all__ = [
    'build_criterion',
    'build_loaders',
    'build_mixup',
    'build_model',
]

_logger = logging.getLogger(__name__)

REWEIGHTED = ('ce', 'focal', 'ldam', 'ride')  # losses that take a reweight_epoch


def build_model(config: ResolvedConfig, device: torch.device, router: bool | None = None) -> torch.nn.Module:
    """Create the network.

    Args:
        config: The run's options.
        device: Where it goes.
        router: As the architectures' argument; None leaves it to --model-kwargs.

    Raises:
        RideError: The architecture is unknown, or does not take the arguments.
    """
    if not config.model:
        raise RideError("No --model was given; name an architecture of timm.list_models('ride_*'), or a --recipe.")
    check_architecture(config.model)
    kwargs = dict(config.model_kwargs)
    if config.in_chans is not None:
        kwargs['in_chans'] = config.in_chans
    if router is not None:
        kwargs['router'] = router
    try:
        with without_retries() if config.pretrained and is_fetched(config.model) else nullcontext():
            model: torch.nn.Module = timm.create_model(
                config.model,
                pretrained=config.pretrained,
                num_classes=config.num_classes,
                drop_rate=config.drop,
                drop_path_rate=config.drop_path,
                **kwargs,
            )
    except (TypeError, ValueError, RuntimeError, OSError) as error:  # OSError: not on the Hub, or no way there
        if is_unreachable(error):
            raise unreachable(config.model, config.model) from None
        raise RideError(f'{config.model} cannot be created: {reason_of(error)}.') from error
    if config.grad_checkpointing:
        model.set_grad_checkpointing()  # type: ignore[operator]
    if config.distributed and config.sync_bn:
        model = convert_sync_batchnorm(model)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    return model.to(device=device).to(memory_format=memory_format)


def build_criterion(config: ResolvedConfig, model: Any, class_counts: Any) -> ExpertLoss:
    """Create the classification loss; margins are scaled as the head scales its logits.

    Args:
        config: The run's options, all choices made.
        model: The network.
        class_counts: Training images per class, shape (C,).

    Raises:
        RideError: The loss does not take its options, or takes one true class only and these mix labels.
    """
    experts = getattr(model, 'num_experts', 1)
    if config.loss == 'ride' and experts == 1 and is_primary(config):
        _logger.warning(f'--loss ride makes experts disagree, but {config.model} has only one; --loss ldam is used.')
    assert config.loss is not None and config.num_classes is not None
    options = {**fitting_options(config.loss, model, config.epochs), **config.loss_kwargs}
    if config.reweight_epoch is not None and config.loss in REWEIGHTED:
        options['reweight_epoch'] = config.reweight_epoch
    criterion = create_loss(config.loss, class_counts, **options)
    if config.mixup > 0.0 or config.cutmix > 0.0 or config.smoothing > 0.0:
        _check_soft_targets(criterion, experts, config.num_classes)
    return criterion


def _check_soft_targets(criterion: ExpertLoss, experts: int, num_classes: int) -> None:
    """Let a loss that takes one true class only say so before the training, not in its first step."""
    soft = torch.full((1, num_classes), 1.0 / num_classes)
    criterion(torch.zeros(1, experts, num_classes), soft)


def build_loaders(config: ResolvedConfig, data: RunData, device: torch.device) -> tuple[PrefetchLoader, PrefetchLoader]:
    """Loaders of the training and the evaluation images.

    Args:
        config: The run's options, all choices made.
        data: The images.
        device: Where batches go.

    Raises:
        RideError: The augmentation is unknown, or not done where it is asked for.
    """
    images = config.data_config
    assert images is not None
    size = images['input_size']
    common: dict[str, Any] = {
        'input_size': size,
        'mean': images['mean'],
        'std': images['std'],
        'workers': config.workers,
        'device': device,
        'distributed': config.distributed,
        'pin_memory': config.pin_mem,
    }
    sampler = create_sampler(
        config.sampler,
        data.train.targets,
        data.train.num_classes,
        epochs=config.epochs,
        seed=config.seed,
        rank=config.rank,
        world_size=config.world_size,
    )
    train = create_train_loader(
        data.train,
        batch_size=config.batch_size,
        sampler=sampler,
        transform=train_transform(config, size, images['interpolation']),
        re_prob=config.reprob,
        **common,
    )
    if config.data_on_device:
        create = device_augmentation(config, size, images['interpolation'])
        hold_on_device(train, data.train.targets, create)
    val = create_eval_loader(
        data.val,
        batch_size=config.validation_batch_size or config.batch_size,
        interpolation=images['interpolation'],
        crop_pct=images['crop_pct'],
        crop_mode=images.get('crop_mode'),
        **common,
    )
    return train, val


def build_mixup(config: ResolvedConfig) -> Mixup | None:
    """Mixup and cutmix by timm, or None."""
    if config.mixup <= 0.0 and config.cutmix <= 0.0:
        return None
    return Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        prob=config.mixup_prob,
        switch_prob=config.mixup_switch_prob,
        mode=config.mixup_mode,
        label_smoothing=config.smoothing,
        num_classes=config.num_classes,
    )
