"""What `ride-timm train --data-dir DIR` picks where no recipe is named.

Each choice follows from the images, the network and the hardware, is printed with its reason, and gives way to its own
option alone: naming a --model leaves the others as they are. A --recipe decides everything, with timm's defaults for
what it leaves out, unless it says `pick_rest: true`.
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.utils import is_primary

from ride_timm._compat import bfloat16_on_cpu
from ride_timm.data import DataSplit
from ride_timm.inference.load import TrainedNet
from ride_timm.inference.network import check_architecture, known_cfg
from ride_timm.options import flag
from ride_timm.tables import counted
from ride_timm.training.config import ResolvedConfig
from ride_timm.training.pace import Pace, spoken
from ride_timm.training.tail import fitting_loss
from ride_timm.values import check_values

__all__ = [
    'from_images', 'from_paces', 'from_settings', 'pick', 'replace', 'short_side', 'ways_to_compute',
]  # fmt: skip

_logger = logging.getLogger(__name__)

SAMPLE = 200
"""Images whose size is looked at."""

SMALL_IMAGE = 40
"""Pixels; up to here the augmentation of the 32x32 recipes is picked, and no loading processes."""

LARGEST_SIDE = 224
STEPS_FRESH, STEPS_TUNED = 15_000, 3_000
"""Optimizer steps aimed at, from random weights (CIFAR-100-LT's 200 epochs have 17,000) and from trained ones."""

MIXUP_EPOCHS = 150
"""Mixup pays in long trainings only (MiSLAS, arXiv:2104.00466, trains 200 to 400 epochs with it)."""

BUDGET = 3600.0
"""Seconds that the epochs which are picked may take."""

GAIN = 0.9
"""Share of the plain step's time that another way to compute may take at most; less could be noise."""

KEPT = ('epochs', 'amp', 'amp_dtype', 'channels_last', 'opt', 'lr', 'weight_decay', 'layer_decay')
"""Options that a run that goes on keeps, since they are picked by measuring, or were picked otherwise before."""

RATES = {'sgd': (0.1, 0.02), 'adamw': (1e-3, 1e-3)}
"""Peak learning rates for a batch of 128, from random weights and from trained ones."""

LAYER_DECAY = 0.8
"""Of a pretrained backbone with new heads."""


def pick(config: ResolvedConfig, name: str, value: Any, why: str) -> ResolvedConfig:
    """Set an option that is still open, that is None, and say so."""
    return config if getattr(config, name) is not None else replace(config, name, value, why, indent='')


def replace(config: ResolvedConfig, name: str, value: Any, why: str, indent: str = '  ') -> ResolvedConfig:
    """Set an option that nobody set, no recipe either, whatever its default, and say so.

    Args:
        config: The options so far.
        name: The option.
        value: What it becomes.
        why: The reason.
        indent: Before the line of the log.
    """
    if name in config.said or (name == 'model' and config.model):
        return config
    if is_primary(config):
        text = f'{flag(name)} ({why}; else --no-{flag(name)[2:]})' if value is True else f'{flag(name)} {value} ({why})'
        _logger.info(f'{indent}{text}')
    return config.but(**{name: value})


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


def from_images(
    config: ResolvedConfig, train: DataSplit, side: int, init: TrainedNet | None = None, rate: float | None = None
) -> ResolvedConfig:
    """Pick model, image size, batch size, learning rate and loss.

    Args:
        config: The options so far; what is set explicitly stays.
        train: The training images.
        side: Their size, of `short_side`.
        init: The network to initialise from.
        rate: Peak learning rate of AdamW for a batch of 128 that suits these weights, where it was measured.

    Raises:
        RideError: There is no such --model.
    """
    images = len(train.targets)
    on_gpu = str(config.device).startswith('cuda')
    small = side <= SMALL_IMAGE
    config = replace(
        config, 'model', _scratch_model(small, on_gpu), f'{_sized(side)} on the {"GPU" if on_gpu else "CPU"}'
    )
    assert config.model is not None
    check_architecture(config.model)
    config = _with_size(config, side, init)
    config = replace(config, 'batch_size', _batch(images, 128 if small or on_gpu else 32), f'{images} training images')
    batch = config.batch_size * config.world_size * config.grad_accum_steps
    if config.pretrained if init is None else init.class_names is None:
        # the loss of several experts is their mean, so that under SGD each would learn at a Kth of the rate
        # (benchmarks/backbones.py); AdamW does not mind the size of gradients
        config = replace(config, 'opt', 'adamw', 'new heads on a pretrained backbone')
        config = replace(config, 'layer_decay', LAYER_DECAY, 'the same')
    measured = rate if config.opt == 'adamw' else None
    config = _with_rate(config, measured or RATES.get(config.opt, (None, None))[config.from_weights], batch)
    config = _with_loss(config, train)
    return replace(config, 'hflip', config.hflip, 'mirrored images; 0 where left and right differ, as in text')


def _with_size(config: ResolvedConfig, side: int, init: TrainedNet | None) -> ResolvedConfig:
    """The size that the weights were trained at, else that of the images, in steps that the network takes."""
    if config.img_size is not None:
        return config
    if init is not None and init.class_names is not None:  # plain weights of timm, without names, take any size
        height, width = init.model.pretrained_cfg['input_size'][1:]
        return replace(config, 'img_size', width, f'that of {init.source}') if height == width else config
    model = str(config.model)
    cfg = known_cfg(model)
    own = max(cfg.input_size[1:]) if cfg is not None else LARGEST_SIDE
    if (cfg is not None and cfg.fixed_input_size) or 'img_size' in config.model_kwargs:
        return config
    if own <= SMALL_IMAGE:
        return replace(config, 'img_size', own, f'that of {model}')
    return replace(config, 'img_size', _img_size(side, max(own, LARGEST_SIDE)), _sized(side))


def _with_rate(config: ResolvedConfig, peak: float | None, batch: int) -> ResolvedConfig:
    """Learning rate, from its peak for a batch of 128, and decay; other optimizers and --lr-base have their own."""
    if peak is None or (config.opt != 'sgd' and 'opt' in config.explicit):
        return config
    scale = batch / 128 if config.opt == 'sgd' else math.sqrt(batch / 128)  # as timm scales --lr-base
    if not config.said & {'lr_base', 'lr_base_size', 'lr_base_scale'}:
        config = replace(config, 'lr', round(peak * scale, 6), f'batch of {batch}')
    decay, why = (5e-4, 'small data') if config.opt == 'sgd' else (0.05, f'usual with {config.opt}')
    return replace(config, 'weight_decay', decay, why)


def _scratch_model(small: bool, on_gpu: bool) -> str:
    """The network for a training from random weights."""
    if small:
        return 'ride_resnet32_3e'
    return 'ride_resnet50_3e' if on_gpu else 'ride_resnet18_3e'


def _img_size(side: int, most: int) -> int:
    """The next multiple of 32, which the strides of the networks ask for, up to `most`."""
    return min(-(-side // 32) * 32, most)


def _batch(images: int, most: int) -> int:
    """A power of two that leaves at least 20 steps an epoch, from 8 up."""
    return min(max(2 ** int(math.log2(max(images / 20, 1))), 8), most)


def _with_loss(config: ResolvedConfig, train: DataSplit) -> ResolvedConfig:
    # options of another loss, and a sampler that corrects for the imbalance already
    if config.said & {'loss', 'loss_kwargs', 'reweight_epoch'} or config.sampler != 'instance':
        return config
    factor = f'imbalance factor {int(train.class_counts.max()) / max(int(train.class_counts.min()), 1):.3g}'
    experts = re.fullmatch(r'(?:test_)?ride_\w+_(\d+)e', str(config.model).partition('.')[0])
    count = config.model_kwargs.get('num_experts', 3) if config.model == 'ride' else experts and int(experts[1])
    loss, why = fitting_loss(count or 1)
    return replace(config, 'loss', loss, f'{factor}; {why}')


def ways_to_compute(config: ResolvedConfig) -> list[ResolvedConfig]:
    """The plain way, and those that may be faster: the channels last, and mixed precision in addition.

    Where --amp or --no-amp is given there is nothing to choose, and the same command trains the same network again.

    Args:
        config: The options so far; what is set explicitly stays.
    """
    on_gpu = str(config.device).startswith('cuda')
    if {'amp', 'amp_dtype'} & config.said or not (
        torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else bfloat16_on_cpu()
    ):
        return [config]
    layouts = [config] if 'channels_last' in config.said else [config, config.but(channels_last=True)]
    return [*layouts, layouts[-1].but(amp=True, amp_dtype='bfloat16')]


def from_paces(config: ResolvedConfig, train: DataSplit, paces: Sequence[Pace]) -> ResolvedConfig:
    """Pick how to compute, where that is clearly faster than the plain way, and the number of epochs; say how long.

    Args:
        config: The options so far; what is set explicitly stays.
        train: The training images.
        paces: Of each of `ways_to_compute`.
    """
    ways = ways_to_compute(config)
    pace, way = min(zip(paces, ways, strict=True), key=lambda found: found[0].step)
    if pace.step > GAIN * paces[0].step:
        pace, way = paces[0], ways[0]
    why = f'{_seconds(pace.step)} a step instead of {_seconds(paces[0].step)}'
    if way.amp and not config.amp:
        config = replace(config, 'amp', True, why).but(amp_dtype='bfloat16')
    if way.channels_last and not config.channels_last:
        config = replace(config, 'channels_last', True, why)
    budget = config.time_budget or BUDGET
    steps = max(len(train.targets) // (config.batch_size * config.world_size * config.grad_accum_steps), 1)
    wanted, (least, most) = (STEPS_TUNED, (20, 100)) if config.from_weights else (STEPS_FRESH, (60, 200))
    wanted = min(max(math.ceil(wanted / steps), least), most)
    epochs = next((n for n in range(wanted, 1, -1) if pace.seconds(n, config.val_interval) <= budget), 1)
    why = f'{steps} steps an epoch, from {"trained" if config.from_weights else "random"} weights'
    if epochs < wanted:
        enough = math.ceil(pace.seconds(wanted, config.val_interval) / 60)
        why = f'the most that fit into {spoken(budget)}; --time-budget {enough}m for {wanted}'
    config = _with_epochs(replace(config, 'epochs', epochs, why))
    if is_primary(config):
        took = spoken(pace.seconds(config.epochs, config.val_interval))
        length = counted(pace.steps, 'step')
        once = f'{spoken(pace.once)} for what is frozen, ' if pace.once else ''
        _logger.info(
            f'About {took}: {once}{counted(config.epochs, "epoch")} of {length} at {_seconds(pace.step)}, evaluation '
            'included'
        )
    return config


def from_settings(config: ResolvedConfig, before: Mapping[str, Any]) -> ResolvedConfig:
    """Keep what a run that goes on had picked.

    Args:
        config: The options so far; what is set explicitly stays.
        before: Settings of its checkpoint.

    Raises:
        RideError: A value is none.
    """
    kept = {name: before[name] for name in KEPT if name in before and name not in config.said}
    check_values(kept)
    return _with_epochs(config.but(**kept))


def _with_epochs(config: ResolvedConfig) -> ResolvedConfig:
    """Warm-up and mixup by the number of epochs."""
    why = counted(config.epochs, 'epoch')
    config = replace(config, 'warmup_epochs', min(5, config.epochs // 4), why)
    picked = config.loss is not None and 'loss' not in config.said  # another one may not take mixed labels
    if picked and config.epochs >= MIXUP_EPOCHS and not config.said & {'mixup', 'cutmix', 'smoothing'}:
        config = replace(config, 'mixup', 0.4, why)
    return config


def _seconds(number: float) -> str:
    return f'{number:.2g} s'


def _sized(side: int) -> str:
    return f'images of about {side} pixels'
