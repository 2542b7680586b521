"""From what a person asks for to a training with all choices made: each choice here, once, with its reason.

An explicit option wins over the recipe, that over the stage's settings, those over what is picked from the data, the
network and the hardware, and that over timm's defaults. Every function takes a frozen configuration and returns
another one.
"""

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models import get_model_args
from timm.utils import is_primary
from timm.utils.distributed import init_distributed_device_so

from ride_timm.data.form import has_eval_images
from ride_timm.data.holdout import VAL_FRACTION
from ride_timm.data.splits import for_groups_of
from ride_timm.errors import RideError, did_you_mean
from ride_timm.inference.load import TrainedNet
from ride_timm.inference.network import DATA_CONFIG_KEYS, data_config
from ride_timm.losses import balpoe_tau, fitting_options
from ride_timm.models import count_experts
from ride_timm.options import flag, options_of, typed
from ride_timm.recipes import load_recipe
from ride_timm.records.headline import leading_accuracy
from ride_timm.records.schema import shown
from ride_timm.training import picks, starts
from ride_timm.training.config import ResolvedConfig, TrainConfig
from ride_timm.training.fast.allocator import keep_freed_memory
from ride_timm.training.initial import counterpart, is_multi_expert, pretrained_source
from ride_timm.training.pace import Pace
from ride_timm.training.resume import settings_before
from ride_timm.training.run_data import RunData
from ride_timm.training.run_folder import experiment_name
from ride_timm.training.stages import STAGES, Stage
from ride_timm.training.tail import fitting_loss, with_tail
from ride_timm.values import check_device, check_values, choose_device

__all__ = [
    'for_evaluation',
    'from_checkpoint',
    'from_data',
    'from_init',
    'from_model',
    'from_pace',
    'join_processes',
    'start',
]

_logger = logging.getLogger(__name__)

ADAPTIVE = ('ada', 'lamb')  # optimizers whose learning rate timm scales by the square root of the batch

_MAX_WORKERS = 256  # no file has the machine start more

_NEED = {
    ('distill_weight', 'distill_temperature'): ('teacher',),
    ('mutual_temperature',): ('mutual', 'mutual_hard'),
    ('holdout_seed',): ('holdout', 'init'),
    ('init_ema', 'keep_heads'): ('init',),
}
_AUGMENTATION = ('augmentation', 'scale', 'ratio', 'hflip', 'vflip', 'color_jitter', 'aa', 'reprob')


def start(config: TrainConfig, command: str | None = None) -> ResolvedConfig:
    """Merge what was said with the recipe, the stage's settings and timm's defaults.

    Of `--loss-kwargs` and its like the command line replaces single entries. A recipe's options of its loss are dropped
    with a warning where another loss is named.

    Args:
        config: What was said.
        command: The command line, for the record.

    Raises:
        RideError: The recipe is unknown, has a key that is no option or a value that the option does not take; an
            option belongs to another stage or needs another one; or a value is out of range.
    """
    said = {name: getattr(config, name) for name in config.given}
    said, recipe = with_tail(said, recipe_values(config.recipe) if config.recipe else {})
    recipe = _without_foreign_loss(said, recipe)
    planned = recipe.get('stage', 'experts')
    if 'stage' in said and recipe and planned != config.stage:
        raise RideError(
            f'--stage {config.stage} was given, but the recipe {config.recipe} is for the stage {planned}; leave one '
            'of them out.'
        )
    stage = STAGES[said.get('stage', planned)]
    defaults = {name: option.default for name, option in options_of(TrainConfig).items()}
    values = {**defaults, **stage.settings, **recipe, **said}
    for name, value in recipe.items():
        if isinstance(value, dict) and name in said:
            values[name] = {**value, **said[name]}
    if values['decay_epochs'] is None:
        values['decay_epochs'] = 0.2 if values['sched'] in ('wsd', 'rsqrt') else 90
    resolved = ResolvedConfig(
        **values,
        explicit=frozenset(said),
        from_recipe=frozenset(recipe) - frozenset(said),
        open=not config.recipe or load_recipe(config.recipe).pick_rest,
        command=command,
    )
    check_values(resolved.settings())
    _check_options(resolved, stage)
    if resolved.pretrained and resolved.model and is_multi_expert(resolved.model):
        source = pretrained_source(resolved.model, resolved.model_kwargs)
        resolved = resolved.but(init=source, pretrained=False)  # heads are kept for classes of the same names
    return resolved


def recipe_values(name: str) -> dict[str, Any]:
    """The options that a recipe sets.

    Raises:
        RideError: A key is no option, or its value none that the option takes.
    """
    known = options_of(TrainConfig).keys() - {'recipe'}
    values = {}
    for key, value in load_recipe(name).options.items():
        if key not in known:
            hint = did_you_mean(key, known, '; see ride-timm train --help.')
            raise RideError(f'The recipe {name} has the key {key}, which is not a training option{hint}')
        try:
            values[key] = typed(TrainConfig, key, value)
        except ValueError as error:
            raise RideError(
                f'The recipe {name} has {key}: {shown(value)}, but {key} must be {error}; correct the recipe.'
            ) from None
    return {key: value for key, value in values.items() if value is not None}


def _without_foreign_loss(said: Mapping[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    loss = recipe.get('loss')
    if 'loss' not in said or loss in (None, said['loss']):
        return recipe
    dropped = [key for key in ('loss_kwargs', 'reweight_epoch') if key in recipe]
    if dropped:
        _logger.warning(
            f'The recipe is for the loss {loss}; its {" and ".join(dropped)} are left out for --loss {said["loss"]}.'
        )
    return {key: value for key, value in recipe.items() if key not in dropped}


def _check_options(config: ResolvedConfig, stage: Stage) -> None:
    """Refuse options that the stage would not use, or that need another one."""
    given = [name for name in config.said if getattr(config, name)]
    for other in STAGES.values():
        if other is not stage:
            _refuse(given, other.own_options, f'is for the stage {other.name} and this is the stage {stage.name}')
    _refuse(given, stage.useless_options, f'does nothing in the stage {stage.name}')
    if not stage.first:
        _refuse(given, ('train_only',), f'is for the stage experts and this is the stage {stage.name}')
    for names, needed in _NEED.items():
        if not any(getattr(config, name) for name in needed):
            _refuse(config.explicit, names, f'needs {" or ".join(map(flag, needed))}, which is not given')
    if config.time_budget is not None and ('epochs' in config.said or not is_open(config)):
        rival = '--epochs' if 'epochs' in config.explicit else f'--recipe {config.recipe}'
        raise RideError(f'--time-budget and {rival} both say how long to train; leave one of them out.')
    named = [name for name in ('init', 'pretrained', 'from_scratch') if getattr(config, name)]
    if len(named) > 1:
        raise RideError(f'{flag(named[0])} and {flag(named[1])} name different weights to start from; leave one out.')


def _refuse(given: Iterable[str], names: Iterable[str], why: str) -> None:
    wrong = sorted(set(given) & set(names))
    if wrong:
        raise RideError(f'{flag(wrong[0])} {why}; leave it out.')


def _warn_unreached(config: ResolvedConfig) -> None:
    """Say which epochs of a schedule lie beyond a shortened run."""
    late = []
    if config.sched == 'multistep' and 'decay_milestones' in config.from_recipe:
        late += [f'milestone {milestone}' for milestone in config.decay_milestones if milestone > config.epochs]
    if config.reweight_epoch is not None and config.reweight_epoch >= config.epochs:
        late.append(f're-weighting epoch {config.reweight_epoch}')
    if late:
        _logger.warning(f'--epochs {config.epochs} ends the run before {", ".join(late)}.')


def join_processes(config: ResolvedConfig) -> tuple[ResolvedConfig, torch.device]:
    """Pick the device, and join the other processes under `torchrun`.

    Raises:
        RideError: The device is not there.
    """
    name = str(choose_device(config.device))
    check_device(name)
    found = init_distributed_device_so(name)
    device = torch.device(found['device'])
    if device.type == 'cpu':
        keep_freed_memory()
    if device.type == 'cuda':
        torch.backends.cudnn.benchmark = True  # as timm's training does: all batches have one shape
    config = config.but(
        device=str(device),
        distributed=found['distributed'],
        world_size=found['world_size'],
        rank=found['global_rank'],
        local_rank=found['local_rank'],
    )
    if is_primary(config):
        _warn_unreached(config)
    if config.amp:
        half = 'bfloat16' if device.type == 'cpu' or config.cuda_graph else 'float16'
        config = picks.pick(config, 'amp_dtype', half, f'mixed precision on {device.type}')
    return config, device


def from_init(config: ResolvedConfig, init: TrainedNet | None) -> ResolvedConfig:
    """Take from `--init` what is open: architecture, and in later stages the augmentation.

    Raises:
        RideError: A plain network is to be trained on in a later stage.
    """
    stage = STAGES[config.stage]
    if not stage.first or config.train_only:
        config = config.but(dist_bn='')  # BatchNorm's statistics are frozen, and averaging would round them
    if init is None:
        return config
    if not count_experts(init.model):
        model = config.model or counterpart(init.architecture)
        if is_multi_expert(model):
            if not stage.first:
                raise RideError(
                    f'The stage {stage.name} needs a trained {model}, but {init.source} is a plain network; '
                    'train the experts first.'
                )
            return config.but(model=model)
    known = get_model_args(init.model)
    left_out = {'num_classes', 'in_chans', 'img_size', 'router', 'router_threshold'}
    kwargs = {key: value for key, value in known.items() if key not in left_out}
    values = {
        'model': init.architecture,
        'in_chans': config.in_chans or known.get('in_chans'),
        'model_kwargs': {**kwargs, **config.model_kwargs},
    }
    if not stage.first:
        same_data = init.settings.get('dataset', '') == config.dataset
        names = (*_AUGMENTATION, 'imb_factor') if same_data else _AUGMENTATION
        values |= {name: init.settings[name] for name in names if name in init.settings and name not in config.said}
        if is_primary(config):
            _logger.info(f'{init.architecture}, its input and its augmentation as in {init.source}')
    return config.but(**values)


def for_evaluation(config: ResolvedConfig) -> ResolvedConfig:
    """Evaluate on a part of the training images where there are no others."""
    if not is_open(config):
        return config
    place = config.table or config.data_dir or config.train_list
    # a folder or a --val-split that is not there has an error of its own, and nothing to say before it
    named = {'val_fraction', 'val_split'} & config.said
    if place and Path(place).exists() and not named and not has_eval_images(config, config.val_split):
        return picks.pick(config, 'val_fraction', VAL_FRACTION, f'no images to evaluate on in {place}')
    return config


def from_data(
    config: ResolvedConfig, data: RunData, init: TrainedNet | None
) -> tuple[ResolvedConfig, TrainedNet | None]:
    """Note which images the run has; where choices are open pick weights, model, image size, batch, schedule and loss.

    Returns:
        The options, and the network to initialise from.

    Raises:
        RideError: There is no such --model.
    """
    config = config.but(num_classes=data.train.num_classes)
    if data.holdout is not None:
        config = config.but(holdout=data.holdout.fraction, holdout_seed=data.holdout.seed)
    if data.val_part is not None:
        config = config.but(val_fraction=data.val_part.fraction, val_seed=data.val_part.seed)
    config = for_groups_of(config, data.holdout, data.val_part)
    if not is_open(config):
        return config, init
    if is_primary(config):
        _logger.info('Picked from the images and the machine; to override a value, set the option:')
    side = picks.short_side(data.train)
    if init is None:
        config, init = starts.choose_start(config, side, settings_before(config))
        config = from_init(config, init)
    return picks.from_images(config, data.train, side, init, starts.measured_rate(config.init)), init


def from_model(config: ResolvedConfig, model: Any) -> ResolvedConfig:
    """Make the choices that depend on the network.

    Raises:
        RideError: `--scale-lr` has nothing to scale by, or the loss does not take its options.
    """
    config = config.but(in_chans=model.in_chans)
    config = _with_lr(config)
    images = data_config(model, config.settings())
    config = config.but(data_config={key: images[key] for key in DATA_CONFIG_KEYS})
    config = _with_loss(config, model)
    small = max(images['input_size'][-2:]) <= picks.SMALL_IMAGE
    config = picks.pick(config, 'augmentation', 'cifar' if small else 'timm', _pixels(config))
    return config.but(experiment=config.experiment or experiment_name(config))


def from_pace(
    config: ResolvedConfig,
    data: RunData,
    before: Mapping[str, Any] | None,
    measure: Callable[[Sequence[ResolvedConfig]], list[Pace]],
) -> ResolvedConfig:
    """Pick precision, number of epochs, and what follows from it; a run that goes on keeps them.

    Args:
        config: The options so far.
        data: The images.
        before: Settings of the checkpoint that the run goes on from; None without one.
        measure: Times a few steps of each of several ways to train.
    """
    if is_open(config):
        if before is not None:
            config = picks.from_settings(config, before)
        else:
            config = picks.from_paces(config, data.train, measure(picks.ways_to_compute(config)))
    if 'loss' in STAGES[config.stage].useless_options:
        return config
    fitting = fitting_options(str(config.loss), epochs=config.epochs)
    if 'reweight_epoch' in fitting:
        config = picks.pick(config, 'reweight_epoch', fitting['reweight_epoch'], '80 % of the epochs')
    return config


def from_checkpoint(config: ResolvedConfig, data: RunData, before: Mapping[str, Any] | None) -> ResolvedConfig:
    """Make the last choices; a run that goes on keeps its number of loading processes and what ranks checkpoints.

    Each number of loading processes draws other augmentations, and its default depends on the machine.

    Args:
        config: The options so far.
        data: The images.
        before: Settings of the checkpoint that the run goes on from; None without one.
    """
    before = before or {}
    assert config.data_config is not None
    size, workers = config.data_config['input_size'][-2:], before.get('workers')
    if type(workers) is int and 0 <= workers <= _MAX_WORKERS:
        config = picks.pick(config, 'workers', workers, 'as the checkpoint was trained')
    small = max(size) <= picks.SMALL_IMAGE
    config = picks.pick(config, 'workers', 0 if small else min(4, os.cpu_count() or 1), _pixels(config))
    metric = config.eval_metric or before.get('eval_metric') or leading_accuracy(data.val.class_counts)
    return config.but(eval_metric=metric)


def _pixels(config: ResolvedConfig) -> str:
    assert config.data_config is not None
    return f'{config.data_config["input_size"][-1]}-pixel images'


def is_open(config: ResolvedConfig) -> bool:
    """Whether choices are made here: in the first stage, without a recipe or with one that says `pick_rest`."""
    return config.open and STAGES[config.stage].first


def _with_lr(config: ResolvedConfig) -> ResolvedConfig:
    """The learning rate for the global batch: images per step over all processes and accumulated batches.

    Without --lr it follows from --lr-base, as in timm. A --lr that is meant for another --global-batch-size is scaled
    with --scale-lr, and else kept and named.
    """
    batch = config.batch_size * config.world_size * config.grad_accum_steps
    by = config.lr_base_scale or ('sqrt' if any(o in config.opt.lower() for o in ADAPTIVE) else 'linear')
    if config.scale_lr and (config.global_batch_size is None or config.lr is None or 'lr' in config.explicit):
        raise RideError(
            '--scale-lr scales the --lr of a recipe by its --global-batch-size; use it with a recipe that has both, '
            'and without --lr.'
        )
    if config.lr is None:
        ratio = batch / config.lr_base_size
        rate = config.lr_base * (math.sqrt(ratio) if by == 'sqrt' else ratio)
        return picks.pick(config, 'lr', rate, f'{by} scaling by the batch')
    if config.global_batch_size in (None, batch):
        return config
    ratio = batch / config.global_batch_size
    scale = math.sqrt(ratio) if by == 'sqrt' else ratio
    rate = config.lr * scale
    made = [f'-b {config.batch_size}']
    made += [f'{config.world_size} processes'] if config.world_size > 1 else []
    made += [f'{config.grad_accum_steps} batches accumulated'] if config.grad_accum_steps > 1 else []
    text = f'The learning rate {config.lr:g} is for {config.global_batch_size} images per step and this run has '
    text += f'{batch} ({", ".join(made)}): '
    if config.scale_lr:
        config = config.but(lr=rate, warmup_lr=config.warmup_lr * scale)
        text += f'scaled to {rate:g} ({by})'
        text += f', and the warm-up starts at {config.warmup_lr:g}' if config.warmup_epochs else ''
    else:
        text += f'kept; --scale-lr makes it {rate:g}'
    if is_primary(config):
        _logger.warning(text)
    return config


def _with_loss(config: ResolvedConfig, model: Any) -> ResolvedConfig:
    """The loss and its options; margins are scaled as the head scales its logits, which the loss itself looks up."""
    if 'loss' in STAGES[config.stage].useless_options:
        return config
    experts = getattr(model, 'num_experts', 1)
    name, why = ('ride' if experts > 1 else 'ce', f'{experts} expert(s)')
    if config.tail == 'loss':
        name, why = fitting_loss(experts)
    config = picks.pick(config, 'loss', name, why)
    assert config.loss is not None
    fitting = fitting_options(config.loss, model, config.epochs)
    tau: Any = config.loss_kwargs.get('tau', fitting.get('tau'))
    if isinstance(tau, str):  # settings and checkpoints hold the numbers
        tau = balpoe_tau(experts, tau)
    if tau != config.loss_kwargs.get('tau'):
        config = config.but(loss_kwargs={**config.loss_kwargs, 'tau': tau})
        if is_primary(config):
            _logger.info(f'--loss-kwargs tau={[round(value, 3) for value in tau]} ({experts} experts)')
    return config
