"""The stages of a training: all of the network, the router on frozen experts, the heads on frozen features."""

import argparse
import difflib
import logging
from collections.abc import Mapping
from typing import Any

import torch
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.utils import is_primary
from torch import nn

from ride_timm.data import split_digest
from ride_timm.data.images import stored_range
from ride_timm.engine import setup
from ride_timm.engine.auxiliary import AUXILIARY, build_auxiliary
from ride_timm.engine.averaging import is_averaged
from ride_timm.engine.checkpoint import trained_with
from ride_timm.engine.initial import Initial, inherit, load_initial, read_initial, reorder_experts
from ride_timm.engine.teacher import build_teacher, weights_digest
from ride_timm.errors import RideError
from ride_timm.losses import DistillationLoss, RouterLoss
from ride_timm.models import MultiExpertNet
from ride_timm.tasks import ExpertTask, HeadTask, RideDistillationTask, RideTask, RouterTask

__all__ = ['begin', 'build_network', 'build_optimizer', 'build_task', 'check_resumed', 'open_data', 'record']

_logger = logging.getLogger(__name__)


def begin(args: argparse.Namespace) -> Initial | None:
    """Read `--init`, take from it what the arguments leave open, and check what the stage asks for.

    Args:
        args: Of `parse_args`, completed by `start_device`; changed in place.

    Returns:
        The weights to begin with, or None.

    Raises:
        RideError: The weights are missing, cannot be read, or do not suit the stage.
    """
    _warn_unreached(args)
    if args.router_threshold is not None and not 0.0 <= args.router_threshold <= 1.0:
        raise RideError(f'--router-threshold {args.router_threshold:g} was given; it is a probability from 0 to 1.')
    if args.init and args.pretrained:
        raise RideError('--init and --pretrained both give weights to begin with; leave one out.')
    if args.pretrained and (args.model or '').startswith(('ride_', 'test_ride_')):
        args.init, args.pretrained = args.model, False  # so that heads are kept for classes of the same names only
    added = args.teacher or any(getattr(args, name) for name in AUXILIARY)
    if args.train_only and (args.stage != 'experts' or not args.init or added):
        raise RideError(
            '--train-only trains parts of the network of --init in the stage experts, on their classification loss '
            'alone; give --init, and no other --stage, --teacher, --mutual, --mutual-hard, --mutual-gated or '
            '--soft-suppression.'
        )
    if not args.init:
        if args.stage != 'experts':
            raise RideError(
                f'The stage {args.stage} builds on a trained network and no --init was given; name its last.pth.tar, '
                'or a model.safetensors.'
            )
        return None
    given = {key: value for key, value in args.model_kwargs.items() if not key.startswith('router')}
    init = read_initial(args.init, args.model, args.init_ema, given)
    if is_averaged(init.settings) and not args.init_ema:
        _warn(
            args,
            f'{init.path} holds an average of the weights too, which the figures of its run are of; --init-ema begins '
            'with that.',
        )
    experts = getattr(init.model, 'num_experts', 1)
    if args.stage == 'router' and experts < 2:
        raise RideError(f'{init.path} is a {init.name} with {experts} expert; a router needs at least two.')
    if args.expert_order:
        reorder_experts(init, args.expert_order)
    inherit(args, init)
    if args.stage != 'experts' or args.train_only:
        args.dist_bn = ''  # BatchNorm's statistics are frozen, and averaging would round them
    return init


def open_data(args: argparse.Namespace, init: Initial | None) -> setup.RunData:
    """Open the images, in the order of the classes that the weights know, and with the images held out that they know.

    Args:
        args: The run's arguments.
        init: The weights to begin with.

    Raises:
        RideError: The data cannot be opened, or has other classes or other held-out images than the stage needs.
    """
    exact = args.stage == 'router' or args.keep_heads
    names = init.class_names if init is not None else None
    data = setup.build_data(
        args, names, exact, _holdout_plan(args, init), _val_part(args, init),
        stored_range(init.ride) if init is not None else None,
        measure=args.stage == 'experts',  # later stages read images as their network did
    )  # fmt: skip
    if init is None or args.stage == 'experts':
        return data
    if names is None and exact:
        if init.model.num_classes != data.train.num_classes:
            raise RideError(
                f'{init.path} has {init.model.num_classes} classes and {data.train.source} {data.train.num_classes}; '
                f'stage {args.stage} needs the same classes.'
            )
        _warn(args, f'{init.path} does not name its classes; they are taken to be in the order of the data.')
    counts = data.train.class_counts.tolist()
    if init.class_counts is not None and list(init.class_counts) != counts:
        _warn(
            args,
            f'The network of --init was trained on {sum(init.class_counts)} images of these classes and this stage '
            f'trains on {sum(counts)}.',
        )
    return data


def build_network(
    args: argparse.Namespace, init: Initial | None, data: setup.RunData, device: torch.device
) -> nn.Module:
    """Create the network, and copy the weights of `--init` into it.

    Args:
        args: The run's arguments.
        init: The weights to begin with.
        data: The images.
        device: Where the network goes.

    Raises:
        RideError: The network cannot be created, or the weights do not fit it.
    """
    if args.stage == 'router':
        _set_threshold_argument(args, init)
    # a router belongs to the heads that it was trained on, which the other stages change
    router = {'router': True, 'heads': False}.get(args.stage, None if init is None else False)
    several = init is not None and isinstance(init.model, MultiExpertNet)
    named_alike = init is not None and init.class_names == data.train.class_names
    keep = args.stage == 'router' or args.keep_heads or (args.stage == 'experts' and named_alike)
    if not keep and getattr(getattr(init, 'model', None), 'head', None) == 'biased_cosine':
        args.model_kwargs['head'] = 'cosine'  # the bias belongs to the old heads
    model = setup.build_model(args, device, router if several else None)
    if init is None:
        return model
    load_initial(model, init, keep, args.init_noise, args.seed)
    if is_primary(args):
        _logger.info(f'Weights of {init.path}{_remarks(args, init, keep)}')
    return model


def build_task(
    args: argparse.Namespace, model: Any, data: setup.RunData, config: Mapping[str, Any], device: torch.device
) -> ExpertTask:
    """Create the stage's task: what trains, on which loss.

    Args:
        args: The run's arguments.
        model: The network.
        data: The images.
        config: timm's data configuration of the network.
        device: Where the losses' buffers go.

    Raises:
        RideError: A loss or the teacher does not suit the data.
    """
    if args.stage == 'router':
        return RouterTask(model, RouterLoss(args.router_pos_weight), device=device)
    criterion = setup.build_criterion(args, model, data.train.class_counts)
    if args.stage == 'heads' or args.train_only:
        parts = [_part(model, name) for name in args.train_only] if args.train_only else None
        return HeadTask(model, criterion, device=device, parts=parts)
    auxiliary = build_auxiliary(args, criterion, data.train.class_counts)
    if not args.teacher:
        return RideTask(model, criterion, device=device, auxiliary=auxiliary)
    return RideDistillationTask(
        model,
        criterion,
        build_teacher(args, data.train, config),
        DistillationLoss(args.distill_temperature),
        args.distill_weight,
        device=device,
        auxiliary=auxiliary,
    )


def _part(model: nn.Module, name: str) -> nn.Module:
    names = {known for known, module in model.named_modules() if known and any(True for _ in module.parameters())}
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f'did you mean {close[0]}?' if close else 'print the network for their names.'
        raise RideError(f'--train-only {name} was given and the network has no such part with parameters; {hint}')
    return model.get_submodule(name)


def build_optimizer(args: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of what the stage trains; in the later stages every trained parameter is decayed.

    Args:
        args: The run's arguments.
        model: The network, after `build_task` has frozen what does not train.

    Raises:
        RideError: The optimizer does not take its options.
    """
    whole = args.stage == 'experts' and not args.train_only
    trained: Any = model if whole else [p for p in model.parameters() if p.requires_grad]
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(trained, **optimizer_kwargs(args), **args.opt_kwargs)
    except (AssertionError, ImportError, TypeError, ValueError) as error:
        reason = ' '.join(str(error).split()).rstrip('.')
        raise RideError(
            f'--opt {args.opt} cannot be created ({reason}); check --opt, --opt-kwargs and --lr.'
        ) from error
    return optimizer


def record(args: argparse.Namespace, data: setup.RunData, init: Initial | None, task: ExpertTask) -> dict[str, Any]:
    """What the checkpoint's `ride` entry says of the stage, beside class names and counts.

    Args:
        args: The run's arguments.
        data: The images.
        init: The weights that it began with.
        task: The stage's task.

    Returns:
        `stage`; `holdout` and `val_part` (fraction, seed, digest), None without one; `tau`; `pixel_range` of 16-bit
        images, None without any; `train_digest`, that of the names of the training images; `teacher`, the digest of its
        weights, None without one; and in the router stage what the experts were trained with, which the router does not
        change.
    """
    teacher = getattr(task, 'teacher', None)
    entry: dict[str, Any] = {
        'stage': args.stage,
        'holdout': None if data.holdout is None else data.holdout._asdict(),
        'val_part': None if data.val_part is None else data.val_part._asdict(),
        'tau': getattr(task.criterion, 'tau', None),
        'train_digest': split_digest(data.train),
        'teacher': None if teacher is None else weights_digest(teacher.model),
        'pixel_range': data.train.dataset.pixel_range,
    }
    if args.stage == 'router' and init is not None:
        entry.update(trained_with(init.ride))
        if init.class_counts is not None:
            entry['class_counts'] = list(init.class_counts)
    return entry


def check_resumed(args: argparse.Namespace, data: setup.RunData, checkpoint: Mapping[str, Any]) -> None:
    """Refuse to go on with a run of another stage, or on other images than it held out.

    Args:
        args: The run's arguments.
        data: The images.
        checkpoint: Of `read_checkpoint`.

    Raises:
        RideError: They differ.
    """
    entry = checkpoint.get('ride') or {}
    stage = entry.get('stage', args.stage)
    if stage != args.stage:
        raise RideError(
            f'The checkpoint to resume from is of the stage {stage} and --stage is {args.stage}; give its file as '
            '--init, and another --experiment.'
        )
    held = None if data.holdout is None else data.holdout._asdict()
    if 'holdout' in entry and entry['holdout'] != held:
        raise RideError(
            'The checkpoint to resume from held out other images; keep --holdout, --holdout-seed, --seed and the data.'
        )
    part = None if data.val_part is None else data.val_part._asdict()
    if 'val_part' in entry and entry['val_part'] != part:
        raise RideError(
            'The checkpoint to resume from evaluated on other images; keep --val-fraction, --val-seed and the data.'
        )


def _holdout_plan(args: argparse.Namespace, init: Initial | None) -> setup.HoldoutPlan | None:
    """What to hold out: in later stages just what the experts have not seen."""
    known = init.ride.get('holdout') if init is not None else None
    if init is None or args.stage == 'experts':
        if args.holdout and args.holdout_seed is None:
            args.holdout_seed = args.seed
        same = known is not None and (known['fraction'], known['seed']) == (args.holdout, args.holdout_seed)
        if args.holdout and init is not None and not same:
            _warn(args, f'The weights of {init.path} may have seen the held-out images.')
        return setup.HoldoutPlan(args.holdout, args.holdout_seed) if args.holdout else None
    if args.holdout == 0.0 or (args.holdout is None and known is None):
        if args.stage == 'router':
            kept = 'the given' if args.router_threshold is not None else "the network's"
            _warn(
                args,
                f'Without --holdout there are no images that experts and router have not seen, so no threshold is '
                f'chosen and {kept} one stays; train the experts with --holdout 0.1 for a choice.',
            )
        return None
    if known is None:
        raise RideError(
            f'--holdout {args.holdout:g} was given and {init.path} was trained without one, so its experts have seen '
            'the images that would be held out; leave it out, or train the experts with the same --holdout first.'
        )
    for name, kept in (('holdout', known['fraction']), ('holdout_seed', known['seed'])):
        given = getattr(args, name)
        if given not in (None, kept):
            raise RideError(
                f'--{name.replace("_", "-")} {given:g} was given and {init.path} was trained with {kept:g}; leave it '
                'out to hold out the same images.'
            )
    args.holdout_seed = known['seed']
    args.holdout = known['fraction']
    return setup.HoldoutPlan(known['fraction'], known['seed'], known['digest'])


def _val_part(args: argparse.Namespace, init: Initial | None) -> setup.HoldoutPlan | None:
    """What to evaluate on where the data has no images for it: in later stages what the experts did not train on."""
    known = init.ride.get('val_part') if init is not None else None
    plan = setup.val_plan(args, known, init is not None and args.stage != 'experts')
    same_data = init is not None and init.settings.get('data_dir') == args.data_dir
    if plan is not None and same_data and (known is None or (known['fraction'], known['seed']) != plan[:2]):
        _warn(args, f'The weights of {args.init} may have seen the images that are evaluated on.')
    return plan


def _set_threshold_argument(args: argparse.Namespace, init: Initial | None) -> None:
    """Make the threshold an argument of the architecture, which every later user of the weights creates it with."""
    threshold = args.router_threshold
    if threshold is None and init is not None and init.model.router is not None:
        threshold = init.model.router_threshold
    args.model_kwargs['router'] = True
    if threshold is not None:
        args.model_kwargs['router_threshold'] = threshold


def _remarks(args: argparse.Namespace, init: Initial, keep: bool) -> str:
    had_router = getattr(init.model, 'router', None) is not None
    texts = [] if keep else ['new heads']
    if args.stage == 'router':
        texts.append('its router trains on' if had_router else 'a new router')
    elif had_router:
        texts.append('without its router, which belongs to the heads as they were')
    return f' ({", ".join(texts)})' if texts else ''


def _warn_unreached(args: argparse.Namespace) -> None:
    """Say which epochs of a schedule lie beyond a shortened run."""
    late = []
    if args.sched == 'multistep' and 'decay_milestones' in args.from_recipe:
        late += [f'milestone {milestone}' for milestone in args.decay_milestones if milestone > args.epochs]
    if args.reweight_epoch is not None and args.reweight_epoch >= args.epochs:
        late.append(f're-weighting epoch {args.reweight_epoch}')
    if late:
        _warn(args, f'--epochs {args.epochs} ends the run before {", ".join(late)}.')


def _warn(args: argparse.Namespace, text: str) -> None:
    if is_primary(args):
        _logger.warning(text)
