"""What `ride-timm train --data-dir DIR` picks by itself where no recipe is named.

Each choice follows from the images, the network and the hardware, is printed with its reason, and gives way to its own
option alone: naming a --model leaves the others as they are. A --recipe decides everything, with timm's defaults for
what it leaves out.
"""

import argparse
import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.utils import is_primary
from torch import nn

from ride_timm._compat import bfloat16_on_cpu
from ride_timm.data import DataSplit
from ride_timm.engine.data_options import has_eval_images
from ride_timm.engine.initial import Initial
from ride_timm.engine.setup import SMALL_IMAGE, check_architecture
from ride_timm.published import published_weights

__all__ = ['choose', 'complete', 'is_open', 'set_images_aside', 'short_side']

_logger = logging.getLogger(__name__)

VAL_FRACTION = 0.2
"""Part of the training images to evaluate on where there are no others."""

SAMPLE = 200
"""Images whose size is looked at."""

LARGEST_SIDE = 224
STEPS_FRESH, STEPS_TUNED = 15_000, 3_000
"""Optimizer steps aimed at, from random weights (CIFAR-100-LT's 200 epochs have 17,000) and from trained ones."""

MIXUP_EPOCHS = 150
"""Mixup pays in long trainings only (MiSLAS, arXiv:2104.00466, trains 200 to 400 epochs with it)."""

START = 'ride_resnet32_3e.balpoe_cifar100lt'
"""Published weights that images of many kinds can start from (`benchmarks/starts.py`)."""


def is_open(args: argparse.Namespace) -> bool:
    """Whether choices are left to us: without a recipe, in the first stage; else the functions here do nothing.

    Args:
        args: Of `parse_args`.
    """
    return not args.recipe and args.stage == 'experts'


def set_images_aside(args: argparse.Namespace) -> None:
    """Evaluate on a part of the training images where there are no others.

    Args:
        args: The run's arguments, before the data are opened.
    """
    if not is_open(args):
        return
    place = args.data_dir or args.train_list
    # a folder or a --val-split that is not there has an error of its own, and nothing to say before it
    named = {'val_fraction', 'val_split'} & {*args.explicit}
    if place and Path(place).exists() and not named and not has_eval_images(args, args.val_split):
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
    return min(image.size) if isinstance(image, Image.Image) else min(image.shape[-2:])


def choose(args: argparse.Namespace, train: DataSplit, init: Initial | None = None) -> None:
    """Pick model, image size, batch, schedule and loss.

    Args:
        args: The run's arguments, completed in place; what is set on the command line stays.
        train: The training images.
        init: The weights to initialise from.

    Raises:
        RideError: There is no such --model.
    """
    if not is_open(args):
        return
    side, images = short_side(train), len(train.targets)
    on_gpu = str(args.device).startswith('cuda')
    tuned = init is not None or args.pretrained
    small = side <= SMALL_IMAGE
    if is_primary(args):
        _logger.info('Picked from the images and the machine; for another value, give the option yourself:')
    _pick(args, 'model', _model(small, on_gpu), f'{_sized(side)} on the {"GPU" if on_gpu else "CPU"}')
    check_architecture(args.model)
    _choose_size(args, side, init)
    _pick(args, 'batch_size', _batch(images, 128 if small or on_gpu else 32), f'{images} training images')
    batch = args.batch_size * args.world_size * args.grad_accum_steps
    steps = max(images // batch, 1)
    wanted, bounds = (STEPS_TUNED, (20, 100)) if tuned else (STEPS_FRESH, (60, 200))
    epochs = min(max(math.ceil(wanted / steps), bounds[0]), bounds[1])
    _pick(args, 'epochs', epochs, f'{steps} steps an epoch, from {"trained" if tuned else "random"} weights')
    _choose_rate(args, (0.02 if tuned else 0.1) * batch / 128, f'batch of {batch}')
    _choose_loss(args, train)


def _choose_size(args: argparse.Namespace, side: int, init: Initial | None) -> None:
    """The size that the weights were trained at, else that of the images, in steps that the network takes."""
    if init is not None and init.class_names is not None:  # plain weights of timm's, without names, take any size
        height, width = init.prepares_images_as()['input_size'][1:]
        if height == width:
            _pick(args, 'img_size', width, f'that of {init.path}')
        return
    cfg = None if ':' in args.model else timm.get_pretrained_cfg(args.model, allow_unregistered=True)
    own = max(cfg.input_size[1:]) if cfg is not None else LARGEST_SIDE
    if (cfg is not None and cfg.fixed_input_size) or 'img_size' in args.model_kwargs:
        return
    if own <= SMALL_IMAGE:
        _pick(args, 'img_size', own, f'that of {args.model}')
    else:
        _pick(args, 'img_size', _img_size(side, max(own, LARGEST_SIDE)), _sized(side))


def _choose_rate(args: argparse.Namespace, peak: float, why: str) -> None:
    """Learning rate, decay and warm-up of SGD; another optimizer and --lr-base have rates of their own."""
    if args.opt == 'sgd' and not {*args.explicit} & {'lr_base', 'lr_base_size', 'lr_base_scale'}:
        _pick(args, 'lr', round(peak, 6), why)
    if args.opt == 'sgd':
        _pick(args, 'weight_decay', 5e-4, 'small data')
    _pick(args, 'warmup_epochs', min(5, args.epochs // 4), _epochs(args))


def _model(small: bool, on_gpu: bool) -> str:
    if small:
        return 'ride_resnet32_3e'
    return 'ride_resnet50_3e' if on_gpu else 'ride_resnet18_3e'


def _img_size(side: int, most: int) -> int:
    """The next multiple of 32, which the strides of the networks ask for, up to `most`."""
    return min(-(-side // 32) * 32, most)


def _batch(images: int, most: int) -> int:
    """A power of two that leaves at least 20 steps an epoch, from 8 up."""
    return min(max(2 ** int(math.log2(max(images / 20, 1))), 8), most)


def _choose_loss(args: argparse.Namespace, train: DataSplit) -> None:
    given = {*args.explicit}
    # options of another loss, and a sampler that corrects for the imbalance already
    if given & {'loss', 'loss_kwargs', 'reweight_epoch'} or args.sampler != 'instance':
        return
    factor = f'imbalance factor {int(train.class_counts.max()) / max(int(train.class_counts.min()), 1):.3g}'
    experts = re.fullmatch(r'(?:test_)?ride_\w+_(\d+)e', args.model.partition('.')[0])
    if experts and experts[1] != '1':
        _pick(args, 'loss', 'balpoe', f'{factor}; each expert learns for another class balance')
    else:
        _pick(args, 'loss', 'balanced_softmax', f'{factor}, which it corrects for')
    if args.epochs >= MIXUP_EPOCHS and not given & {'mixup', 'cutmix', 'smoothing'}:
        _pick(args, 'mixup', 0.4, _epochs(args))


def complete(args: argparse.Namespace, model: nn.Module, init: Initial | None = None) -> None:
    """Pick what depends on the network, and say what nobody can pick: mirrored images, a start from trained weights.

    Args:
        args: The run's arguments, completed in place; what is set on the command line stays.
        model: The network to train; its tensors may be put into another order.
        init: The weights to initialise from.
    """
    if is_open(args):
        _choose_precision(args, model)
        if is_primary(args):
            _hint(args, init)


def _choose_precision(args: argparse.Namespace, model: nn.Module) -> None:
    """On the CPU bfloat16 makes convolutions and matrix products faster and depthwise convolutions slower."""
    on_gpu = str(args.device).startswith('cuda')
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else bfloat16_on_cpu()
    if not fast or {'amp', 'amp_dtype'} & {*args.explicit}:
        return
    if on_gpu or not any(_is_depthwise(module) for module in model.modules()):
        _pick(args, 'amp', True, 'the hardware computes in bfloat16')
        args.amp_dtype = 'bfloat16'
    _pick(args, 'channels_last', True, 'faster with it')
    if args.channels_last:
        model.to(memory_format=torch.channels_last)


def _hint(args: argparse.Namespace, init: Initial | None) -> None:
    if args.hflip and 'hflip' not in args.explicit:
        _logger.info('Mirrored images are made too; where left and right differ (digits, text, signs) add --hflip 0')
    weight = published_weights().get(START)
    named = {'model', 'model_kwargs'} & {*args.explicit}
    fits = not named or (named == {'model'} and weight is not None and args.model == weight.architecture)
    if init is None and fits and weight is not None and weight.is_local and not (args.pretrained or args.resume):
        _logger.info(
            'With few images or little time, start from weights in the package (class mean in short trainings: '
            '41 to 50 %, from random weights 6 to 28 %):\n'
            f'  {args.command} --init {START}'
        )


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels


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
