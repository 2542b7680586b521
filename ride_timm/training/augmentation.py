"""The training augmentation that the arguments name, for Pillow images or for batches on the device."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ride_timm.data import (
    CifarAAAugmentation,
    CifarAugmentation,
    CropAugmentation,
    DeviceAugmentation,
    create_train_transform,
)
from ride_timm.errors import RideError
from ride_timm.training.config import ResolvedConfig

__all__ = ['device_augmentation', 'train_transform']


def train_transform(config: ResolvedConfig, size: tuple[int, int, int], interpolation: str) -> Any:
    """The transform of Pillow images.

    Args:
        config: The run's options.
        size: (channels, height, width) of what the network sees.
        interpolation: timm's name of it.

    Raises:
        RideError: The arguments name none.
    """
    pictures = size[0] in (1, 3)
    if not pictures and (config.aa or config.augmentation == 'cifar_aa' or 'color_jitter' in config.explicit):
        raise RideError(
            f'Images of {size[0]} channels have no colours to change; leave --aa, --color-jitter and --augmentation '
            'cifar_aa out.'
        )
    if config.augmentation == 'flip':
        shown = config.data_config or {}
        crop = {key: shown[key] for key in ('crop_pct', 'crop_mode') if key in shown}
        return create_train_transform('flip', size, hflip=config.hflip, interpolation=interpolation, **crop)
    if config.augmentation != 'timm':
        return create_train_transform(str(config.augmentation), size, hflip=config.hflip, interpolation=interpolation)
    try:
        return create_train_transform(
            'timm',
            size,
            scale=config.scale,
            ratio=config.ratio,
            hflip=config.hflip,
            vflip=config.vflip,
            color_jitter=_jitter(config) if pictures else None,
            auto_augment=config.aa,
            interpolation=interpolation,
        )
    except (AssertionError, KeyError, ValueError) as error:  # how timm's parser of --aa fails
        raise RideError(f"--aa {config.aa} is not one of timm's policies ({error}); rand-m9-mstd0.5 is.") from error


def device_augmentation(
    config: ResolvedConfig, size: tuple[int, int, int], interpolation: str
) -> Callable[[tuple[int, int]], DeviceAugmentation]:
    """What makes the augmentation of `--data-on-device`, of the (height, width) of the images.

    Args:
        config: The run's options.
        size: (channels, height, width) of what the network sees.
        interpolation: timm's name of it.

    Raises:
        RideError: Not all of what the arguments ask for is done on the device.
    """
    if size[0] not in (1, 3):
        raise RideError(f'--data-on-device takes pictures, not images of {size[0]} channels; leave it out.')
    if config.augmentation == 'cifar':
        return lambda shape: CifarAugmentation(size[-1], hflip=config.hflip, interpolation=interpolation, shape=shape)
    if config.augmentation == 'cifar_aa':
        return lambda shape: CifarAAAugmentation(size[-1], hflip=config.hflip, interpolation=interpolation, shape=shape)
    others = {
        '--augmentation flip': config.augmentation == 'flip',
        f'--aa {config.aa}': bool(config.aa),
        f'--interpolation {interpolation}': interpolation != 'bilinear',
    }
    for what, given in others.items():
        if given:
            raise RideError(
                f'--data-on-device does not do {what}; it does --augmentation cifar and cifar_aa, and timm with '
                '--interpolation bilinear and without --aa. Leave one of them out.'
            )
    return partial(
        CropAugmentation, size=size[-2:], scale=config.scale, ratio=config.ratio, hflip=config.hflip,
        vflip=config.vflip, color_jitter=_jitter(config),
    )  # fmt: skip


def _jitter(config: ResolvedConfig) -> Any:
    """The option as timm takes it: one number, or three or four."""
    jitter = tuple(config.color_jitter)
    return jitter[0] if len(jitter) == 1 else jitter
