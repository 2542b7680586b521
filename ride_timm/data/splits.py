"""Training images that are set apart: for choices, or to evaluate on where the data has no others."""

import logging
from typing import NamedTuple

from ride_timm.data.datasets import DataSplit
from ride_timm.data.form import has_eval_images, open_train
from ride_timm.data.holdout import HeldOut, hold_out
from ride_timm.errors import RideError
from ride_timm.options import DataForm
from ride_timm.records.training_record import SplitPlan

__all__ = ['HoldoutPlan', 'open_val_part', 'settled', 'val_plan']

_logger = logging.getLogger(__name__)


class HoldoutPlan(NamedTuple):
    """Which training images to set apart; a `digest` names the ones that an earlier stage set apart."""

    fraction: float
    seed: int
    digest: str | None = None

    @classmethod
    def of(cls, plan: SplitPlan | None) -> 'HoldoutPlan | None':
        """What the record of a network says of it."""
        return None if plan is None else cls(plan.fraction, plan.seed, plan.digest)


def val_plan(form: DataForm, known: SplitPlan | None = None, later: bool = False) -> HoldoutPlan | None:
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
            f'--val-fraction {fraction:g} was given and the network of --init was trained {before}, so it has '
            'seen images that would be evaluated on; leave the option out.'
        )
    if form.dataset in ('', 'folder') and has_eval_images(form, form.val_split):
        raise RideError(
            f'--val-fraction is for data without evaluation images and {form.val_list or form.data_dir} has some; '
            'leave the option out, or hold training images out as well with --holdout.'
        )
    return HoldoutPlan(fraction, seed, known.digest if later and known is not None else None)


def open_val_part(
    form: DataForm, class_names: tuple[str, ...], in_chans: int, part: HoldoutPlan
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
    parts = hold_out(open_train(form, in_chans, class_names), part.fraction, part.seed, '--val-fraction')
    settled(parts, part, '--val-fraction', False)
    return parts.train, parts.held


def settled(parts: HeldOut, plan: HoldoutPlan, option: str, tell: bool) -> HoldoutPlan:
    """The plan with the digest of the images.

    Args:
        parts: The images, divided.
        plan: What they were divided by.
        option: The option that asks for it.
        tell: Log what was set apart.

    Raises:
        RideError: They are not the images that an earlier run set apart.
    """
    if plan.digest not in (None, parts.digest):
        what = 'holds out' if option == '--holdout' else 'takes'
        hint = ', or --holdout 0' if option == '--holdout' else ', or evaluation images of their own (val/, --val-list)'
        raise RideError(
            f'{option} {plan.fraction:g} with seed {plan.seed} {what} other images of {parts.train.source} than when '
            f'the network was trained; give the training images of that run{hint}.'
        )
    if tell:
        number, setting = len(parts.held.targets), f'({option} {plan.fraction:g}, seed {plan.seed})'
        if option == '--holdout':
            _logger.info(
                f'{number} training images are held out {setting} and evaluated on; the evaluation split is not touched'
            )
        else:
            _logger.info(f'{number} of the {number + len(parts.train.targets)} images are to evaluate on {setting}')
    return plan._replace(digest=parts.digest)
