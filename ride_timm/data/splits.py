"""Training images that are set apart: for choices, or to evaluate on where the data has no others."""

import logging
from dataclasses import replace
from typing import TypeVar

from ride_timm.data.datasets import DataSplit
from ride_timm.data.form import has_eval_images, open_train
from ride_timm.data.holdout import HeldOut, hold_out
from ride_timm.data.image_groups import GROUPED_BY
from ride_timm.errors import RideError
from ride_timm.escaping import printable
from ride_timm.options import DataForm, flag
from ride_timm.records.training_record import SplitPlan
from ride_timm.tables import counted

__all__ = ['for_groups_of', 'is_same_split', 'open_val_part', 'set_apart', 'split_plan', 'val_plan']

_logger = logging.getLogger(__name__)
_NAMED = 5  # classes that a warning names


_Form = TypeVar('_Form', bound=DataForm)


def split_plan(form: DataForm, fraction: float, seed: int) -> SplitPlan:
    """Set training images apart that no earlier run did, in the groups that the options name.

    Args:
        form: The options of the data.
        fraction: Share of every class.
        seed: What draws them.
    """
    return SplitPlan(fraction=fraction, seed=seed, group_column=form.group_column, group_pattern=form.group_pattern)


def is_same_split(plan: SplitPlan, known: SplitPlan | None) -> bool:
    """Whether a plan asks for the images that an earlier run set apart.

    Args:
        plan: The plan.
        known: What the earlier run's record says, None where it set none apart.
    """
    return known is not None and plan == replace(known, digest=plan.digest, grouped=plan.grouped)


def for_groups_of(form: _Form, *plans: SplitPlan | None) -> _Form:
    """The options of the data with the groups by which an earlier run set images apart.

    Raises:
        RideError: The options name other groups.
    """
    for plan in plans:
        if plan is None:
            continue
        for name in GROUPED_BY:
            given, kept = getattr(form, name), getattr(plan, name)
            if given not in (None, kept):
                before = f"with '{kept}'" if kept else 'without it'
                raise RideError(
                    f"{flag(name)} '{given}' was given, but the network was trained {before}, so images were set apart "
                    'in other groups; leave the option out.'
                )
        form = replace(form, group_column=plan.group_column, group_pattern=plan.group_pattern)
    return form


def val_plan(form: DataForm, known: SplitPlan | None = None, later: bool = False) -> SplitPlan | None:
    """Which training images are to be evaluated on, where the data has no evaluation images.

    Args:
        form: The options of the data.
        known: What the checkpoint of an earlier stage says of it.
        later: Whether there is an earlier stage, whose images must be kept.

    Returns:
        The plan, or None for data with evaluation images.

    Raises:
        RideError: The data has evaluation images already, or an earlier stage took others or none.
    """
    fraction, seed = form.val_fraction, form.val_seed
    if later and known is not None and fraction is None:
        fraction, seed = known.fraction, known.seed
    if not fraction:
        return None
    if later and (known is None or (known.fraction, known.seed) != (fraction, seed)):
        before = 'without one' if known is None else f'with {known.fraction:g} and --val-seed {known.seed}'
        raise RideError(
            f'--val-fraction {fraction:g} was given, but the network of --init was trained {before}, so it has '
            'seen images that would be evaluated on; leave the option out.'
        )
    if form.dataset in ('', 'folder') and has_eval_images(form, form.val_split):
        place = form.val_list or form.table or form.data_dir
        raise RideError(
            f'--val-fraction is for data without evaluation images and {place} has some; '
            'leave the option out, or hold training images out as well with --holdout.'
        )
    return known if later and known is not None else split_plan(form, fraction, seed)


def open_val_part(
    form: DataForm, class_names: tuple[str, ...], in_chans: int, part: SplitPlan
) -> tuple[DataSplit, DataSplit]:
    """The training and the evaluation images of an earlier run that took the ones out of the others.

    Args:
        form: The options of the data.
        class_names: Of that run.
        in_chans: Channels to read.
        part: What that run's checkpoint says.

    Returns:
        Training images and evaluation images.

    Raises:
        RideError: The images are not those of that run.
    """
    if part.grouped:
        form = for_groups_of(form, part)
    parts = set_apart(open_train(form, in_chans, class_names), part, '--val-fraction')[0]
    return parts.train, parts.held


def set_apart(split: DataSplit, plan: SplitPlan, option: str, tell: bool = False) -> tuple[HeldOut, SplitPlan]:
    """Split the training images as a plan says.

    Args:
        split: All training images.
        plan: What to set apart, or what an earlier run did.
        option: The option that asks for it.
        tell: Log what was set apart.

    Returns:
        Both parts, and the plan with the digest of the images and whether groups stayed together.

    Raises:
        RideError: As in `hold_out`, or they are not the images that an earlier run set apart.
    """
    grouped = split.image_groups is not None and (plan.digest is None or plan.grouped)
    parts = hold_out(split, plan.fraction, plan.seed, option, grouped=grouped)
    if plan.digest not in (None, parts.digest):
        what = 'holds out' if option == '--holdout' else 'takes'
        hint = ', or --holdout 0' if option == '--holdout' else ', or evaluation images of their own (val/, --val-list)'
        raise RideError(
            f'{option} {plan.fraction:g} with seed {plan.seed} {what} other images of {parts.train.source} than when '
            f'the network was trained; give the training images of that run{hint}.'
        )
    if tell:
        if parts.undivided:
            _logger.warning(
                '%s in a single group of images, and so only trained on: %s',
                counted(len(parts.undivided), 'class is', 'classes are'),
                _listed(parts.undivided),
            )
        number, setting = len(parts.held.targets), f'({option} {plan.fraction:g}, seed {plan.seed})'
        groups = ''
        if grouped and split.image_groups is not None:
            held, every = set(parts.held.image_groups or ()), set(split.image_groups)
            groups = f', {len(held):,} of {counted(len(every), "group")},'
        if option == '--holdout':
            _logger.info(
                f'{number} training images{groups} are held out {setting} and evaluated on; the evaluation split is '
                'not touched'
            )
        else:
            every_image = number + len(parts.train.targets)
            _logger.info(f'{number} of the {every_image} images{groups} are used for evaluation {setting}')
    return parts, replace(plan, digest=parts.digest, grouped=grouped)


def _listed(names: tuple[str, ...]) -> str:
    rest = f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''
    return ', '.join(map(printable, names[:_NAMED])) + rest
