"""Which source of an argument wins: explicit flag > recipe > stage > what is picked from the data > timm's default."""

import argparse
import difflib
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from timm.utils import ParseKwargs

from ride_timm._compat import options_of
from ride_timm.errors import RideError
from ride_timm.records.schema import shown

__all__ = ['STAGES', 'STAGE_DEFAULTS', 'check_stage', 'merge', 'recipe_values']

_logger = logging.getLogger(__name__)

STAGES = ('experts', 'router', 'heads')

STAGE_DEFAULTS: dict[str, dict[str, Any]] = {
    'experts': {},
    'router': {  # RIDE (arXiv:2010.01809), stage 2
        'sampler': 'balanced',
        'batch_size': 512,
        'epochs': 5,
        'opt': 'sgd',
        'lr': 0.01,
        'momentum': 0.9,
        'weight_decay': 5e-4,
        'sched': 'cosine',
        'warmup_epochs': 0,
    },
    'heads': {  # classifier re-training (arXiv:1910.09217); lr 0.1 for a batch of 256 is timm's own --lr-base
        'sampler': 'balanced',
        'loss': 'ce',
        'epochs': 10,
        'opt': 'sgd',
        'momentum': 0.9,
        'weight_decay': 5e-4,
        'sched': 'cosine',
        'warmup_epochs': 0,
    },
}
"""What a stage sets where neither the command line nor a recipe does."""

_ONLY_FOR = {
    'experts': (
        'teacher', 'distill_weight', 'distill_temperature', 'mutual', 'mutual_hard', 'mutual_temperature',
        'mutual_gated', 'soft_suppression', 'average_epochs', 'pretrained',
    ),
    'router': ('router_threshold', 'router_pos_weight', 'expert_order'),
    'heads': ('keep_heads',),
}  # fmt: skip
_NEED = {
    ('distill_weight', 'distill_temperature'): ('teacher',),
    ('mutual_temperature',): ('mutual', 'mutual_hard'),
    ('holdout_seed',): ('holdout', 'init'),
    ('init_ema', 'keep_heads'): ('init',),
}
_NOT_FOR_ROUTER = ('loss', 'loss_kwargs', 'reweight_epoch', 'smoothing', 'mixup', 'cutmix')


def recipe_values(recipe: Mapping[str, Any], parser: argparse.ArgumentParser, name: str) -> dict[str, Any]:
    """Check a recipe against the parser, and give its values the arguments' types.

    Args:
        recipe: Values by argument.
        parser: The training command's.
        name: The recipe's name, for messages.

    Returns:
        The same keys; a number that YAML reads as text, such as `5e-4`, is a number here.

    Raises:
        RideError: A key is no argument, or its value none that the argument takes.
    """
    actions = {action.dest: action for action in options_of(parser) if action.dest not in ('help', 'recipe')}
    values = {}
    for key, value in recipe.items():
        if key not in actions:
            close = difflib.get_close_matches(key, actions, n=1)
            hint = f'; did you mean {close[0]}?' if close else ': see ride-timm train --help.'
            raise RideError(f'The recipe {name} has the key {key}, which is no argument of the training{hint}')
        try:
            values[key] = _typed(actions[key], value)
        except (TypeError, ValueError):
            raise RideError(
                f'The recipe {name} has {key}: {shown(value)}, but {key} must be {_wanted(actions[key])}; correct the '
                'recipe.'
            ) from None
    return values


def merge(args: argparse.Namespace, explicit: set[str], recipe: Mapping[str, Any]) -> None:
    """Set what the recipe and the stage say, where the command line says nothing.

    Of `--loss-kwargs` and its like the command line replaces single entries. A recipe's options of its loss are dropped
    with a warning where the command line names another loss.

    Args:
        args: The command line's values; changed in place.
        explicit: Names that the command line sets.
        recipe: Of `recipe_values`.

    Raises:
        RideError: The command line asks for another stage than the recipe is for.
    """
    values = _without_foreign_loss(args, explicit, recipe)
    if 'stage' in explicit and recipe and values.get('stage', 'experts') != args.stage:
        raise RideError(
            f'--stage {args.stage} was given and the recipe {args.recipe} is for the stage '
            f'{values.get("stage", "experts")}; leave one of them out.'
        )
    for key, value in values.items():
        if key not in explicit:
            setattr(args, key, value)
        elif isinstance(value, dict):
            setattr(args, key, {**value, **getattr(args, key)})
    for key, value in STAGE_DEFAULTS[args.stage].items():
        if key not in explicit and key not in values:
            setattr(args, key, value)
    args.explicit = sorted(explicit)
    args.from_recipe = sorted(values.keys() - explicit)


def check_stage(args: argparse.Namespace) -> None:
    """Refuse options that the stage would not use.

    Args:
        args: After `merge`.

    Raises:
        RideError: An option belongs to another stage, or to another option that is not given.
    """
    given = [name for name in (*args.explicit, *args.from_recipe) if getattr(args, name)]
    for stage, names in _ONLY_FOR.items():
        if stage != args.stage:
            _refuse(given, names, f'is for the stage {stage} and this is the stage {args.stage}')
    if args.stage == 'router':
        _refuse(given, _NOT_FOR_ROUTER, 'does nothing in the stage router, which learns from right and wrong alone')
    for names, needed in _NEED.items():
        if not any(getattr(args, name) for name in needed):
            flags = ' or '.join(f'--{name.replace("_", "-")}' for name in needed)
            _refuse(args.explicit, names, f'needs {flags}, which is not given')


def _refuse(given: Iterable[str], names: Iterable[str], why: str) -> None:
    wrong = sorted(set(given) & set(names))
    if wrong:
        raise RideError(f'--{wrong[0].replace("_", "-")} {why}; leave it out.')


def _without_foreign_loss(args: argparse.Namespace, explicit: set[str], recipe: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(recipe)
    if 'loss' in explicit and values.get('loss') not in (None, args.loss):
        dropped = [key for key in ('loss_kwargs', 'reweight_epoch') if key in values]
        for key in dropped:
            del values[key]
        if dropped:
            _logger.warning(
                f'The recipe {args.recipe} is for the loss {values["loss"]}; its {" and ".join(dropped)} are left out '
                f'for --loss {args.loss}.'
            )
    return values


def _typed(action: argparse.Action, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(action, ParseKwargs):
        if not isinstance(value, dict):
            raise TypeError
        return {str(key): item for key, item in value.items()}
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise TypeError
        return value
    if action.nargs is not None:
        if not isinstance(value, list) or (isinstance(action.nargs, int) and len(value) != action.nargs):
            raise TypeError
        return [_scalar(action, item) for item in value]
    return _scalar(action, value)


def _scalar(action: argparse.Action, value: Any) -> Any:
    if isinstance(value, (bool, dict, list)):
        raise TypeError
    if action.type is float:
        typed: Any = float(value)
    elif action.type is int:
        typed = int(value)
        if typed != float(value):
            raise ValueError
    else:
        if not isinstance(value, str):
            raise TypeError
        typed = value
    if action.choices is not None and typed not in action.choices:
        raise ValueError
    return typed


def _wanted(action: argparse.Action) -> str:
    if isinstance(action, ParseKwargs):
        return 'a mapping, {option: value}'
    if action.nargs == 0:
        return 'true or false'
    if action.choices is not None:
        return f'one of {", ".join(map(str, action.choices))}'
    kinds = {float: 'number', int: 'whole number'}
    kind = kinds.get(action.type, 'text') if isinstance(action.type, type) else 'text'
    if isinstance(action.nargs, int):
        return f'a list of {action.nargs} of the kind {kind}'
    return f'a list of the kind {kind}' if action.nargs is not None else f'a {kind}' if kind != 'text' else 'a text'
