"""What `ride-timm train --data-dir DIR` picks by itself when neither a model nor a recipe is named.

Each choice follows from the images and the hardware, is printed with its reason, and gives way to its option. Who names
a --model or a --recipe gets that, and timm's defaults for the rest.
"""

import argparse
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.utils import is_primary

from ride_timm.data import DataSplit
from ride_timm.engine.data_options import has_eval_images
from ride_timm.engine.setup import SMALL_IMAGE

__all__ = ['choose', 'is_open', 'set_images_aside', 'short_side']

_logger = logging.getLogger(__name__)

VAL_FRACTION = 0.2
"""Part of the training images to evaluate on where there are no others."""

SAMPLE = 200
"""Images whose size is looked at."""

LARGEST_SIDE = 224
_OF_SMALL_IMAGES = 'ride_resnet32_'
STEPS_FRESH, STEPS_TUNED = 15_000, 3_000
"""Optimizer steps aimed at, from random weights (CIFAR-100-LT's 200 epochs have 17,000) and from trained ones."""

MIXUP_EPOCHS = 150
"""Mixup pays in long trainings only (MiSLAS, arXiv:2104.00466, trains 200 to 400 epochs with it)."""


def is_open(args: argparse.Namespace) -> bool:
    """Whether the command line leaves the choices to us.

    Args:
        args: Of `parse_args`, before `--init` has named a model.
    """
    return not args.model and not args.recipe and args.stage == 'experts'


def set_images_aside(args: argparse.Namespace) -> None:
    """Evaluate on a part of the training images where there are no others.

    Args:
        args: The run's arguments, before the data are opened.
    """
    place = args.data_dir or args.train_list
    # a folder that is not there has an error of its own, and nothing to say before it
    if place and Path(place).exists() and args.val_fraction is None and not has_eval_images(args, args.val_split):
        _pick(args, 'val_fraction', VAL_FRACTION, f'no images to evaluate on in {place}', indent='')


def short_side(split: DataSplit, sample: int = SAMPLE) -> int:
    """Median of the images' shorter sides, in pixels, over an even sample.

    Args:
        split: The images.
        sample: How many to look at; only their headers are read.
    """
    dataset: Any = split.dataset
    step = max(len(dataset) // sample, 1)
    transform, dataset.transform = getattr(dataset, 'transform', None), None
    try:
        sides = [_side(dataset[index][0]) for index in range(0, len(dataset), step)]
    finally:
        dataset.transform = transform
    return int(np.median(sides))


def _side(image: Any) -> int:
    return min(image.size) if isinstance(image, Image.Image) else min(np.asarray(image).shape[:2])


def choose(args: argparse.Namespace, train: DataSplit, tuned: bool) -> None:
    """Pick model, image size, batch, schedule, loss and precision.

    Args:
        args: The run's arguments, completed in place; what is set on the command line stays.
        train: The training images.
        tuned: Whether the run begins with trained weights.
    """
    side, images = short_side(train), len(train.targets)
    on_gpu = str(args.device).startswith('cuda')
    small = side <= SMALL_IMAGE
    batch = _batch(images, 128 if small or on_gpu else 32)
    if is_primary(args):
        _logger.info('Picked from the images and the machine; for another value, give the option yourself:')
    _pick(args, 'model', _model(small, on_gpu), f'{_sized(side)} on the {"GPU" if on_gpu else "CPU"}')
    if not args.model.startswith(_OF_SMALL_IMAGES):
        _pick(args, 'img_size', _img_size(side), _sized(side))
    elif not tuned:  # else the size that the weights were trained with
        _pick(args, 'img_size', 32, f'that of {args.model}')
    _pick(args, 'batch_size', batch, f'{images} training images')
    steps = max(images // args.batch_size, 1)
    wanted, bounds = (STEPS_TUNED, (20, 100)) if tuned else (STEPS_FRESH, (60, 200))
    epochs = min(max(math.ceil(wanted / steps), bounds[0]), bounds[1])
    _pick(args, 'epochs', epochs, f'{steps} steps an epoch, from {"trained" if tuned else "random"} weights')
    _pick(args, 'lr', round((0.02 if tuned else 0.1) * args.batch_size / 128, 6), f'batch of {args.batch_size}')
    _pick(args, 'weight_decay', 5e-4, 'small data')
    _pick(args, 'warmup_epochs', min(5, args.epochs // 4), _epochs(args))
    _choose_loss(args, train)
    _choose_precision(args, on_gpu)
    if is_primary(args):
        _logger.info('Mirrored images are made too; for digits, text and the like add --hflip 0')


def _model(small: bool, on_gpu: bool) -> str:
    if small:
        return 'ride_resnet32_3e'
    return 'ride_resnet50_3e' if on_gpu else 'ride_resnet18_3e'


def _img_size(side: int) -> int:
    """The next multiple of 32, which the strides of the networks ask for, up to 224."""
    return min(-(-side // 32) * 32, LARGEST_SIDE)


def _batch(images: int, most: int) -> int:
    """A power of two that leaves at least 20 steps an epoch, from 8 up."""
    return min(max(2 ** int(math.log2(max(images / 20, 1))), 8), most)


def _choose_loss(args: argparse.Namespace, train: DataSplit) -> None:
    given = {*args.explicit}
    factor = int(train.class_counts.max()) / max(int(train.class_counts.min()), 1)
    if given & {'loss', 'loss_kwargs'} or not args.model.startswith('ride_'):
        return
    _pick(args, 'loss', 'balpoe', f'imbalance factor {factor:.3g}; each expert learns for another class balance')
    if args.epochs >= MIXUP_EPOCHS and not given & {'mixup', 'cutmix', 'smoothing'}:
        _pick(args, 'mixup', 0.4, _epochs(args))


def _choose_precision(args: argparse.Namespace, on_gpu: bool) -> None:
    if 'amp' in args.explicit or 'amp_dtype' in args.explicit:
        return
    fast = torch.cuda.is_bf16_supported() if on_gpu else _cpu_has_bfloat16()
    if fast:
        _pick(args, 'amp', True, 'the hardware computes in bfloat16')
        args.amp_dtype = 'bfloat16'
        _pick(args, 'channels_last', True, 'faster with it')


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 numbers itself; without it mixed precision is slower than float32."""
    known: Sequence[str] = ('_is_avx512_bf16_supported', '_is_amx_tile_supported')
    return any(bool(getattr(torch.cpu, name, bool)()) for name in known)


def _epochs(args: argparse.Namespace) -> str:
    return '1 epoch' if args.epochs == 1 else f'{args.epochs} epochs'


def _sized(side: int) -> str:
    return f'images of about {side} pixels'


def _pick(args: argparse.Namespace, name: str, value: Any, why: str, indent: str = '  ') -> None:
    """Set an argument that the command line leaves open, and say so."""
    if name in args.explicit or (name == 'model' and args.model):
        return
    setattr(args, name, value)
    if is_primary(args):
        flag = f'--{name.replace("_", "-")}'
        text = f'{flag} ({why}; else --no-{flag[2:]})' if value is True else f'{flag} {value} ({why})'
        _logger.info(f'{indent}{text}')
