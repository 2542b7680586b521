"""The training augmentation that the arguments name, for Pillow images or for batches on the device."""

import argparse
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

__all__ = ['device_augmentation', 'train_transform']


def train_transform(args: argparse.Namespace, size: tuple[int, int, int], interpolation: str) -> Any:
    """The transform of Pillow images.

    Args:
        args: The run's arguments.
        size: (channels, height, width) of what the network sees.
        interpolation: timm's name of it.

    Raises:
        RideError: The arguments name none.
    """
    pictures = size[0] in (1, 3)
    if not pictures and (args.aa or args.augmentation == 'cifar_aa' or 'color_jitter' in (args.explicit or ())):
        raise RideError(
            f'Images of {size[0]} channels have no colours to change; leave --aa, --color-jitter and --augmentation '
            'cifar_aa out.'
        )
    if args.augmentation != 'timm':
        return create_train_transform(args.augmentation, size, hflip=args.hflip, interpolation=interpolation)
    try:
        return create_train_transform(
            'timm',
            size,
            scale=args.scale,
            ratio=args.ratio,
            hflip=args.hflip,
            vflip=args.vflip,
            color_jitter=_jitter(args) if pictures else None,
            auto_augment=args.aa,
            interpolation=interpolation,
        )
    except (AssertionError, KeyError, ValueError) as error:  # how timm's parser of --aa fails
        raise RideError(f"--aa {args.aa} is not one of timm's policies ({error}); rand-m9-mstd0.5 is.") from error


def device_augmentation(
    args: argparse.Namespace, size: tuple[int, int, int], interpolation: str
) -> Callable[[tuple[int, int]], DeviceAugmentation]:
    """What makes the augmentation of `--data-on-device`, of the (height, width) of the images.

    Args:
        args: The run's arguments.
        size: (channels, height, width) of what the network sees.
        interpolation: timm's name of it.

    Raises:
        RideError: Not all of what the arguments ask for is done on the device.
    """
    if size[0] not in (1, 3):
        raise RideError(f'--data-on-device takes pictures, not images of {size[0]} channels; leave it out.')
    if args.augmentation == 'cifar':
        return lambda shape: CifarAugmentation(size[-1], hflip=args.hflip, interpolation=interpolation, shape=shape)
    if args.augmentation == 'cifar_aa':
        return lambda shape: CifarAAAugmentation(size[-1], hflip=args.hflip, interpolation=interpolation, shape=shape)
    others = {
        f'--aa {args.aa}': bool(args.aa),
        f'--interpolation {interpolation}': interpolation != 'bilinear',
    }
    for what, given in others.items():
        if given:
            raise RideError(
                f'--data-on-device does not do {what}; it does --augmentation cifar and cifar_aa, and timm with '
                '--interpolation bilinear and without --aa. Leave one of them out.'
            )
    return partial(
        CropAugmentation, size=size[-2:], scale=args.scale, ratio=args.ratio, hflip=args.hflip, vflip=args.vflip,
        color_jitter=_jitter(args),
    )  # fmt: skip


def _jitter(args: argparse.Namespace) -> Any:
    """The argument as timm takes it: one number, or three or four."""
    jitter = args.color_jitter if isinstance(args.color_jitter, (int, float)) else tuple(args.color_jitter)
    return jitter[0] if isinstance(jitter, tuple) and len(jitter) == 1 else jitter
