"""What a run is made of, built from its arguments; each value picked here is reported."""

import argparse
import difflib
import logging
import math
import os
from contextlib import nullcontext
from typing import Any

import timm
import torch
from timm.data import Mixup, resolve_data_config
from timm.data.loader import PrefetchLoader
from timm.layers import convert_sync_batchnorm
from timm.utils import init_distributed_device, is_primary

from ride_timm.data import (
    create_eval_loader,
    create_sampler,
    create_train_loader,
    hold_on_device,
)
from ride_timm.engine.allocator import keep_freed_memory
from ride_timm.engine.augmentation import device_augmentation, train_transform
from ride_timm.engine.inference_options import choose_device
from ride_timm.engine.run_data import MAX_CHECKED as MAX_CHECKED
from ride_timm.engine.run_data import HoldoutPlan as HoldoutPlan
from ride_timm.engine.run_data import RunData as RunData
from ride_timm.engine.run_data import build_data as build_data
from ride_timm.engine.run_data import val_plan as val_plan
from ride_timm.engine.values import check_device
from ride_timm.errors import RideError
from ride_timm.hub import UnreachableError, is_unreachable, without_retries
from ride_timm.losses import ExpertLoss, balpoe_tau, create_loss, fitting_options
from ride_timm.published import figures_alone, published_weights

__all__ = [
    'HoldoutPlan',
    'RunData',
    'build_criterion',
    'build_data',
    'build_loaders',
    'build_mixup',
    'build_model',
    'data_config',
    'image_config',
    'pick',
    'resolve_lr',
    'start_device',
    'val_plan',
]

_logger = logging.getLogger(__name__)

SMALL_IMAGE = 40  # pixels; up to here the 32x32 recipes' augmentation is picked, and no loading processes
DATA_CONFIG_KEYS = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
ADAPTIVE = ('ada', 'lamb')  # optimizers whose learning rate timm scales by the square root of the batch


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
    args.device = str(choose_device(args.device))
    check_device(args.device)
    device: torch.device = init_distributed_device(args)
    if device.type == 'cpu':
        keep_freed_memory()
    if device.type == 'cuda':
        torch.backends.cudnn.benchmark = True  # as timm's training does: all batches have one shape
    if args.amp:
        pick(
            args,
            'amp_dtype',
            'bfloat16' if device.type == 'cpu' or args.cuda_graph else 'float16',
            f'mixed precision on {device.type}',
        )
    return device


def build_model(args: argparse.Namespace, device: torch.device, router: bool | None = None) -> torch.nn.Module:
    """Create the network.

    Args:
        args: The run's arguments.
        device: Where it goes.
        router: As the architectures' argument; None leaves it to --model-kwargs.

    Raises:
        RideError: The architecture is unknown, or does not take the arguments.
    """
    if not args.model:
        raise RideError("No --model was given; name an architecture of timm.list_models('ride_*'), or a --recipe.")
    check_architecture(args.model)
    kwargs = dict(args.model_kwargs)
    if args.in_chans is not None:
        kwargs['in_chans'] = args.in_chans
    if router is not None:
        kwargs['router'] = router
    try:
        with without_retries() if args.pretrained and is_fetched(args.model) else nullcontext():
            model: torch.nn.Module = timm.create_model(
                args.model,
                pretrained=args.pretrained,
                num_classes=args.num_classes,
                drop_rate=args.drop,
                drop_path_rate=args.drop_path,
                **kwargs,
            )
    except (TypeError, ValueError, RuntimeError, OSError) as error:  # OSError: not on the Hub, or no way there
        if is_unreachable(error):
            raise unreachable(args.model, args.model) from None
        raise RideError(f'{args.model} cannot be created: {" ".join(str(error).split())}') from error
    args.in_chans = model.in_chans
    if args.grad_checkpointing:
        model.set_grad_checkpointing()  # type: ignore[operator]
    if args.distributed and args.sync_bn:
        model = convert_sync_batchnorm(model)
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
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


def build_criterion(args: argparse.Namespace, model: Any, class_counts: Any) -> ExpertLoss:
    """Create the loss; margins are scaled as the head scales its logits."""
    experts = getattr(model, 'num_experts', 1)
    pick(args, 'loss', 'ride' if experts > 1 else 'ce', f'{experts} expert(s)')
    if args.loss == 'ride' and experts == 1 and is_primary(args):
        _logger.warning(f'--loss ride makes experts disagree and {args.model} has one, so that it is --loss ldam.')
    fitting = fitting_options(args.loss, model, args.epochs)
    options = fitting | args.loss_kwargs
    if isinstance(options.get('tau'), str):  # settings and checkpoints hold the numbers
        options['tau'] = balpoe_tau(experts, options['tau'])
    if options.get('tau') != args.loss_kwargs.get('tau'):
        args.loss_kwargs['tau'] = options['tau']
        if is_primary(args):
            _logger.info(f'--loss-kwargs tau={[round(tau, 3) for tau in options["tau"]]} ({experts} experts)')
    if 'reweight_epoch' in fitting:
        pick(args, 'reweight_epoch', fitting['reweight_epoch'], '80 % of the epochs')
    if args.reweight_epoch is not None and args.loss in ('ce', 'focal', 'ldam', 'ride'):
        options['reweight_epoch'] = args.reweight_epoch
    criterion = create_loss(args.loss, class_counts, **options)
    if args.mixup > 0.0 or args.cutmix > 0.0 or args.smoothing > 0.0:
        _check_soft_targets(criterion, experts, args.num_classes)
    return criterion


def _check_soft_targets(criterion: ExpertLoss, experts: int, num_classes: int) -> None:
    """Let a loss that takes one true class only say so before the training, not in its first step."""
    soft = torch.full((1, num_classes), 1.0 / num_classes)
    criterion(torch.zeros(1, experts, num_classes), soft)


def image_config(args: argparse.Namespace, model: torch.nn.Module) -> dict[str, Any]:
    """The data configuration of the run as timm has it; `args.data_config` keeps it with the weights for later use."""
    config = data_config(args, model)
    args.data_config = {key: config[key] for key in DATA_CONFIG_KEYS}
    return config


def build_loaders(
    args: argparse.Namespace, data: RunData, device: torch.device, config: dict[str, Any]
) -> tuple[PrefetchLoader, PrefetchLoader]:
    """Loaders of the training and the evaluation images, by timm's data configuration."""
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
        transform=train_transform(args, size, config['interpolation']),
        re_prob=args.reprob,
        **common,
    )
    if args.data_on_device:
        create = device_augmentation(args, size, config['interpolation'])
        hold_on_device(train, data.train.targets, create)
    val = create_eval_loader(
        data.val,
        batch_size=args.validation_batch_size or args.batch_size,
        interpolation=config['interpolation'],
        crop_pct=config['crop_pct'],
        crop_mode=config.get('crop_mode'),
        **common,
    )
    return train, val


def data_config(args: argparse.Namespace, model: torch.nn.Module) -> dict[str, Any]:
    """The data configuration of a network, with what the arguments override."""
    wanted = {
        key: getattr(args, key, None) for key in ('img_size', 'in_chans', 'mean', 'std', 'crop_pct', 'interpolation')
    }
    config: dict[str, Any] = resolve_data_config({k: v for k, v in wanted.items() if v}, model=model)
    channels = wanted['in_chans'] or config['input_size'][0]
    if config['input_size'][0] != channels:  # timm takes the size of the weights that the architecture is known for
        config['input_size'] = (channels, *config['input_size'][1:])
    for key in ('mean', 'std'):
        if len(config[key]) != channels:  # as timm's loader does it
            config[key] = (sum(config[key]) / len(config[key]),) * channels
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
    """Settle the learning rate for the global batch: images a step over all processes and accumulated batches.

    Without --lr it follows from --lr-base, as in timm. A --lr that is meant for another --global-batch-size is scaled
    with --scale-lr, and else kept and named.

    Raises:
        RideError: --scale-lr has nothing to scale by.
    """
    batch = args.batch_size * args.world_size * args.grad_accum_steps
    by = args.lr_base_scale or ('sqrt' if any(o in args.opt.lower() for o in ADAPTIVE) else 'linear')
    if args.scale_lr and (args.global_batch_size is None or args.lr is None or 'lr' in args.explicit):
        raise RideError(
            '--scale-lr scales the --lr of a recipe by its --global-batch-size; use it with a recipe that has both, '
            'and without --lr.'
        )
    if args.lr is None:
        ratio = batch / args.lr_base_size
        pick(args, 'lr', args.lr_base * (math.sqrt(ratio) if by == 'sqrt' else ratio), f'{by} scaling by the batch')
    elif args.global_batch_size not in (None, batch):
        ratio = batch / args.global_batch_size
        scale = math.sqrt(ratio) if by == 'sqrt' else ratio
        made = [f'-b {args.batch_size}']
        made += [f'{args.world_size} processes'] if args.world_size > 1 else []
        made += [f'{args.grad_accum_steps} batches accumulated'] if args.grad_accum_steps > 1 else []
        text = f'The learning rate {args.lr:g} is meant for {args.global_batch_size} images a step and this run has '
        text += f'{batch} ({", ".join(made)}): '
        if args.scale_lr:
            args.lr, args.warmup_lr = args.lr * scale, args.warmup_lr * scale
            text += f'scaled to {args.lr:g} ({by})'
            text += f', and the warm-up begins at {args.warmup_lr:g}' if args.warmup_epochs else ''
        else:
            text += f'kept; --scale-lr makes it {args.lr * scale:g}'
        if is_primary(args):
            _logger.warning(text)
