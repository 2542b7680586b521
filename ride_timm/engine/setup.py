"""What a run is made of, built from its options."""

import difflib
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import timm
import torch
from timm.data import Mixup, resolve_data_config
from timm.data.loader import PrefetchLoader
from timm.layers import convert_sync_batchnorm
from timm.utils import is_primary

from ride_timm.data import (
    create_eval_loader,
    create_sampler,
    create_train_loader,
    hold_on_device,
)
from ride_timm.engine.augmentation import device_augmentation, train_transform
from ride_timm.engine.run_data import RunData
from ride_timm.errors import RideError
from ride_timm.hub import UnreachableError, is_unreachable, without_retries
from ride_timm.losses import ExpertLoss, create_loss, fitting_options
from ride_timm.published import figures_alone, published_weights
from ride_timm.training.config import ResolvedConfig

__all__ = [
    'build_criterion',
    'build_loaders',
    'build_mixup',
    'build_model',
    'check_architecture',
    'data_config',
    'is_fetched',
    'unreachable',
]

_logger = logging.getLogger(__name__)

DATA_CONFIG_KEYS = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
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
        raise RideError(f'{config.model} cannot be created: {" ".join(str(error).split())}') from error
    if config.grad_checkpointing:
        model.set_grad_checkpointing()  # type: ignore[operator]
    if config.distributed and config.sync_bn:
        model = convert_sync_batchnorm(model)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    return model.to(device=device).to(memory_format=memory_format)


def check_architecture(name: str) -> None:
    """Raise a RideError with the closest name where timm knows no such architecture, or no such weights of it."""
    bare = name.partition('.')[0]
    if ':' in name:
        return
    if timm.is_model(bare):
        _check_tag(name, bare)
        return
    close = difflib.get_close_matches(bare, timm.list_models(), n=1, cutoff=0.5)
    hint = f', did you mean {close[0]}?' if close else '.'
    raise RideError(f"There is no architecture {name}{hint} timm.list_models('ride_*') lists ours.")


def is_fetched(name: str) -> bool:
    """Whether the weights of a registered name come from the Hub, or its cache."""
    cfg = None if ':' in name else timm.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(cfg is not None and cfg.hf_hub_id and not cfg.file)


def unreachable(weights: str, model: str) -> UnreachableError:
    """What to tell of weights to initialise from that cannot be fetched.

    Args:
        weights: Their name.
        model: The architecture to train, which a file of them has to be given with.
    """
    return UnreachableError(
        f'The weights {weights} are not in the cache and the Hugging Face Hub cannot be reached; connect once (without '
        'HF_HUB_OFFLINE=1) to fill the cache, or fetch their model.safetensors on another machine and give that file: '
        f'--init FILE --model {model}.'
    )


def _check_tag(name: str, architecture: str) -> None:
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:  # how timm says that the part behind the point is none of the architecture's
        weight = published_weights().get(name)
        if weight is not None and not weight.has_tensors:
            raise RideError(figures_alone(weight)) from None
        known = ', '.join(timm.list_pretrained(f'{architecture}.*')) or 'none yet'
        raise RideError(
            f'There are no weights {name}; those of {architecture} are: {known}. Name one of them, or a file.'
        ) from None


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
        _logger.warning(f'--loss ride makes experts disagree and {config.model} has one, so that it is --loss ldam.')
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


def build_loaders(
    config: ResolvedConfig, data: RunData, device: torch.device, images: Mapping[str, Any]
) -> tuple[PrefetchLoader, PrefetchLoader]:
    """Loaders of the training and the evaluation images.

    Args:
        config: The run's options, all choices made.
        data: The images.
        device: Where batches go.
        images: timm's data configuration of the network.

    Raises:
        RideError: The augmentation is unknown, or not done where it is asked for.
    """
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


def data_config(config: Any, model: torch.nn.Module) -> dict[str, Any]:
    """The data configuration of a network, with what the options override.

    Args:
        config: What has `img_size`, `in_chans`, `mean`, `std`, `crop_pct` or `interpolation`.
        model: The network.
    """
    wanted = {
        key: getattr(config, key, None) for key in ('img_size', 'in_chans', 'mean', 'std', 'crop_pct', 'interpolation')
    }
    found: dict[str, Any] = resolve_data_config({k: v for k, v in wanted.items() if v}, model=model)
    channels = wanted['in_chans'] or found['input_size'][0]
    if found['input_size'][0] != channels:  # timm takes the size of the weights that the architecture is known for
        found['input_size'] = (channels, *found['input_size'][1:])
    for key in ('mean', 'std'):
        if len(found[key]) != channels:  # as timm's loader does it
            found[key] = (sum(found[key]) / len(found[key]),) * channels
    return found


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
