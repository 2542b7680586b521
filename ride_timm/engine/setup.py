"""What a run is made of, built from its arguments; each value picked here is reported."""

import argparse
import difflib
import logging
import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import Mixup, resolve_data_config
from timm.data.loader import PrefetchLoader
from timm.layers import convert_sync_batchnorm
from timm.utils import init_distributed_device, is_primary

from ride_timm.data import (
    DataSplit,
    GroupChoice,
    check_images,
    choose_groups,
    create_eval_loader,
    create_sampler,
    create_train_loader,
    create_train_transform,
    imbalance_factor,
    open_eval_split,
    open_train_split,
)
from ride_timm.errors import RideError
from ride_timm.losses import ExpertLoss, create_loss

__all__ = ['RunData', 'build_criterion', 'build_data', 'build_loaders', 'build_model', 'pick', 'start_device']

_logger = logging.getLogger(__name__)

SMALL_IMAGE = 40  # pixels; up to here the 32x32 recipes' augmentation is picked, and no loading processes
MAX_CHECKED = 50_000  # images decoded once before training; more would keep the user waiting
ADAPTIVE = ('ada', 'lamb')  # optimizers whose learning rate timm scales by the square root of the batch


@dataclass
class RunData:
    """Both splits and how their classes are grouped."""

    train: DataSplit
    val: DataSplit
    groups: GroupChoice


def pick(args: argparse.Namespace, name: str, value: Any, why: str) -> None:
    """Set an argument that neither the command line nor the recipe set, and say so."""
    if getattr(args, name) is None:
        setattr(args, name, value)
        if is_primary(args):
            _logger.info(f'--{name.replace("_", "-")} {value} ({why})')


def start_device(args: argparse.Namespace) -> torch.device:
    """Pick the device, and join the other processes under `torchrun`.

    Raises:
        RideError: The device is not there.
    """
    cuda = torch.cuda.is_available()
    args.device = args.device or ('cuda' if cuda else 'cpu')
    if args.device.startswith('cuda') and not cuda:
        raise RideError(f'--device {args.device} was given and PyTorch finds no CUDA device; use --device cpu.')
    device: torch.device = init_distributed_device(args)
    if args.amp:
        pick(args, 'amp_dtype', 'bfloat16' if device.type == 'cpu' else 'float16', f'mixed precision on {device.type}')
    return device


def build_data(args: argparse.Namespace) -> RunData:
    """Open both splits.

    Raises:
        RideError: The data is missing, wrong or unreadable, or disagrees with --num-classes.
    """
    if not args.data_dir:
        raise RideError('No --data-dir was given; name a folder with train/ and val/, one folder of images a class.')
    common: dict[str, Any] = {
        'dataset': args.dataset,
        'download': args.dataset_download,
        'in_chans': args.in_chans or 3,
    }
    train = open_train_split(args.data_dir, imb_factor=args.imb_factor, **common)
    val = open_eval_split(args.data_dir, class_names=train.class_names, split=args.val_split, **common)
    if args.num_classes not in (None, train.num_classes):
        raise RideError(
            f'--num-classes {args.num_classes} was given and {train.source} has {train.num_classes} classes; leave the '
            'option out, or check --data-dir.'
        )
    args.num_classes = train.num_classes
    if not args.no_check_images and is_primary(args) and len(train.targets) + len(val.targets) <= MAX_CHECKED:
        check_images(train)
        check_images(val)
    groups = choose_groups(train.class_counts)
    if is_primary(args):
        empty = int((val.class_counts == 0).sum())
        _logger.info(
            f'{train.num_classes} classes, {len(train.targets)} training images ({train.class_counts.max()} to '
            f'{train.class_counts.min()} a class, imbalance factor {imbalance_factor(train.class_counts):.1f}), '
            f'{len(val.targets)} evaluation images'
            + (f', {empty} classes without any of them' if empty else '')
            + f'; groups: {groups.text}'
        )
    return RunData(train, val, groups)


def build_model(args: argparse.Namespace, device: torch.device) -> torch.nn.Module:
    """Create the network.

    Raises:
        RideError: The architecture is unknown, or does not take the arguments.
    """
    if not args.model:
        raise RideError("No --model was given; name an architecture of timm.list_models('ride_*'), or a --recipe.")
    check_architecture(args.model)
    kwargs = dict(args.model_kwargs)
    if args.in_chans is not None:
        kwargs['in_chans'] = args.in_chans
    try:
        model: torch.nn.Module = timm.create_model(
            args.model,
            pretrained=args.pretrained,
            num_classes=args.num_classes,
            drop_rate=args.drop,
            drop_path_rate=args.drop_path,
            **kwargs,
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise RideError(f'{args.model} cannot be created: {" ".join(str(error).split())}') from error
    args.in_chans = model.in_chans
    if args.grad_checkpointing:
        model.set_grad_checkpointing()  # type: ignore[operator]
    if args.distributed and args.sync_bn:
        model = convert_sync_batchnorm(model)
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    return model.to(device=device).to(memory_format=memory_format)


def check_architecture(name: str) -> None:
    """Raise a RideError with the closest name where timm knows no such architecture."""
    bare = name.partition('.')[0]
    if ':' in name or timm.is_model(bare):
        return
    close = difflib.get_close_matches(bare, timm.list_models(), n=1, cutoff=0.5)
    hint = f', did you mean {close[0]}?' if close else ''
    raise RideError(f"There is no architecture {name}{hint}; timm.list_models('ride_*') lists ours.")


def build_criterion(args: argparse.Namespace, model: Any, class_counts: Any) -> ExpertLoss:
    """Create the loss; margins are scaled as the head scales its logits."""
    experts = getattr(model, 'num_experts', 1)
    pick(args, 'loss', 'ride' if experts > 1 else 'ce', f'{experts} expert(s)')
    options = dict(args.loss_kwargs)
    if args.loss in ('ride', 'ldam') and getattr(model, 'head', 'linear') == 'linear':
        options.setdefault('margin_scale', 1.0)
    if args.loss == 'ride':
        pick(args, 'reweight_epoch', int(0.8 * args.epochs), '80 % of the epochs')
    if args.reweight_epoch is not None and args.loss in ('ce', 'focal', 'ldam', 'ride'):
        options['reweight_epoch'] = args.reweight_epoch
    return create_loss(args.loss, class_counts, **options)


def build_loaders(
    args: argparse.Namespace, model: torch.nn.Module, data: RunData, device: torch.device
) -> tuple[PrefetchLoader, PrefetchLoader, dict[str, Any]]:
    """Loaders of the training and the evaluation images, and timm's data configuration."""
    config = data_config(args, model)
    size = config['input_size']
    small = max(size[-2:]) <= SMALL_IMAGE
    pick(args, 'workers', 0 if small else min(4, os.cpu_count() or 1), f'{size[-1]}-pixel images')
    pick(args, 'augmentation', 'cifar' if small else 'timm', f'{size[-1]}-pixel images')
    common: dict[str, Any] = {
        'input_size': size,
        'mean': config['mean'],
        'std': config['std'],
        'workers': args.workers,
        'device': device,
        'distributed': args.distributed,
        'pin_memory': args.pin_mem,
    }
    sampler = create_sampler(
        args.sampler,
        data.train.targets,
        data.train.num_classes,
        epochs=args.epochs,
        seed=args.seed,
        rank=args.rank,
        world_size=args.world_size,
    )
    train = create_train_loader(
        data.train,
        batch_size=args.batch_size,
        sampler=sampler,
        transform=_train_transform(args, size, config['interpolation']),
        re_prob=args.reprob,
        **common,
    )
    val = create_eval_loader(
        data.val,
        batch_size=args.validation_batch_size or args.batch_size,
        interpolation=config['interpolation'],
        crop_pct=config['crop_pct'],
        crop_mode=config.get('crop_mode'),
        **common,
    )
    return train, val, config


def data_config(args: argparse.Namespace, model: torch.nn.Module) -> dict[str, Any]:
    """The data configuration of a network, with what the arguments override."""
    wanted = {
        key: getattr(args, key, None) for key in ('img_size', 'in_chans', 'mean', 'std', 'crop_pct', 'interpolation')
    }
    config: dict[str, Any] = resolve_data_config({k: v for k, v in wanted.items() if v}, model=model)
    return config


def build_mixup(args: argparse.Namespace) -> Mixup | None:
    """Mixup and cutmix by timm, or None."""
    if args.mixup <= 0.0 and args.cutmix <= 0.0:
        return None
    return Mixup(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        mode=args.mixup_mode,
        label_smoothing=args.smoothing,
        num_classes=args.num_classes,
    )


def resolve_lr(args: argparse.Namespace) -> None:
    """Derive --lr from --lr-base and the global batch, as timm does, where it is not given."""
    if args.lr is not None:
        return
    ratio = args.batch_size * args.world_size * args.grad_accum_steps / args.lr_base_size
    scale = args.lr_base_scale or ('sqrt' if any(o in args.opt.lower() for o in ADAPTIVE) else 'linear')
    pick(args, 'lr', args.lr_base * (math.sqrt(ratio) if scale == 'sqrt' else ratio), f'{scale} scaling by the batch')


def run_folder(args: argparse.Namespace) -> Path:
    """The folder of the run.

    Raises:
        RideError: It holds a run already and the command does not say to go on.
    """
    args.experiment = args.experiment or default_experiment(args)
    folder = Path(args.output, args.experiment)
    if (folder / 'last.pth.tar').exists() and not args.resume:
        raise RideError(
            f'{folder} holds a run already; add --resume auto to go on with it, or choose another --experiment NAME.'
        )
    return folder


def default_experiment(args: argparse.Namespace) -> str:
    """Name of a run that was given none: model, data and loss."""
    data = args.dataset.rpartition('/')[2] if args.dataset else Path(args.data_dir).resolve().name
    factor = f'_if{args.imb_factor:g}' if args.imb_factor else ''
    return f'{args.model}-{data}{factor}-{args.loss}'.replace('/', '_')


def _train_transform(args: argparse.Namespace, size: tuple[int, int, int], interpolation: str) -> Any:
    if args.augmentation == 'cifar':
        return create_train_transform('cifar', size, hflip=args.hflip, interpolation=interpolation)
    jitter = args.color_jitter if isinstance(args.color_jitter, (int, float)) else tuple(args.color_jitter)
    return partial(create_train_transform, 'timm')(
        size,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=jitter[0] if isinstance(jitter, tuple) and len(jitter) == 1 else jitter,
        auto_augment=args.aa,
        interpolation=interpolation,
    )
