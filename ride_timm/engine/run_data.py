"""The images of a run: its training split, and what it is evaluated on."""

import argparse
import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

from timm.utils import is_primary

from ride_timm.data import (
    DataSplit,
    GroupChoice,
    HeldOut,
    check_images,
    choose_groups,
    hold_out,
    imbalance_factor,
    open_eval_split,
    open_train_split,
)
from ride_timm.errors import RideError

__all__ = ['MAX_CHECKED', 'HoldoutPlan', 'RunData', 'build_data']

_logger = logging.getLogger(__name__)

MAX_CHECKED = 50_000  # images decoded once before training; more would keep the user waiting


class HoldoutPlan(NamedTuple):
    """Which training images to hold out; a `digest` names the ones that an earlier stage held out."""

    fraction: float
    seed: int
    digest: str | None = None


@dataclass
class RunData:
    """Both splits and how their classes are grouped; `val` are held-out training images where `holdout` says so."""

    train: DataSplit
    val: DataSplit
    groups: GroupChoice
    holdout: HoldoutPlan | None = None


def build_data(
    args: argparse.Namespace,
    class_names: tuple[str, ...] | None = None,
    exact: bool = False,
    holdout: HoldoutPlan | None = None,
) -> RunData:
    """Open both splits.

    Args:
        args: The run's arguments; `num_classes` is set from the data.
        class_names: Order of the classes, where the data has the same ones, such as that of earlier weights.
        exact: The data must have just these classes.
        holdout: Hold training images out and evaluate on them; the evaluation split is not touched.

    Raises:
        RideError: The data is missing, wrong or unreadable, or disagrees with --num-classes or the class names.
    """
    if not args.data_dir:
        raise RideError('No --data-dir was given; name a folder with train/ and val/, one folder of images a class.')
    common: dict[str, Any] = {
        'dataset': args.dataset,
        'download': args.dataset_download,
        'in_chans': args.in_chans or 3,
    }
    train = _open_train(args, class_names, exact, common)
    if args.num_classes not in (None, train.num_classes):
        raise RideError(
            f'--num-classes {args.num_classes} was given and {train.source} has {train.num_classes} classes; leave the '
            'option out, or check --data-dir.'
        )
    args.num_classes = train.num_classes
    if holdout is not None:
        parts = hold_out(train, holdout.fraction, holdout.seed)
        train, val, holdout = parts.train, parts.held, _settled(parts, holdout, args)
    else:
        val = open_eval_split(args.data_dir, class_names=train.class_names, split=args.val_split, **common)
    if not args.no_check_images and is_primary(args) and len(train.targets) + len(val.targets) <= MAX_CHECKED:
        check_images(train)
        check_images(val)
    groups = choose_groups(train.class_counts)
    if is_primary(args):
        _logger.info(_describe(train, val, groups))
    return RunData(train, val, groups, holdout)


def _open_train(
    args: argparse.Namespace, class_names: tuple[str, ...] | None, exact: bool, common: dict[str, Any]
) -> DataSplit:
    """The training images, their classes in the order of `class_names` where these are the same."""
    train = open_train_split(args.data_dir, imb_factor=args.imb_factor, **common)
    if class_names is None or train.class_names == class_names:
        return train
    missing, unknown = set(class_names) - set(train.class_names), set(train.class_names) - set(class_names)
    if not missing and not unknown:
        return open_train_split(args.data_dir, imb_factor=args.imb_factor, class_names=class_names, **common)
    if exact:
        found = f'lacks {min(missing)}' if missing else f'has {min(unknown)} beside them'
        raise RideError(
            f'The network of --init was trained on {len(class_names)} classes and {train.source} {found}; stage '
            f'{args.stage} needs the same classes.'
        )
    return train


def _settled(parts: HeldOut, plan: HoldoutPlan, args: argparse.Namespace) -> HoldoutPlan:
    """The plan with the digest of the images, which must be that of an earlier stage."""
    if plan.digest not in (None, parts.digest):
        raise RideError(
            f'--holdout {plan.fraction:g} with seed {plan.seed} holds out other images of {parts.train.source} than '
            'when the network of --init was trained; give the training images of that run, or --holdout 0.'
        )
    if is_primary(args):
        _logger.info(
            f'{len(parts.held.targets)} training images are held out (--holdout {plan.fraction:g}, seed {plan.seed}) '
            'and evaluated on; the evaluation split is not touched'
        )
    return plan._replace(digest=parts.digest)


def _describe(train: DataSplit, val: DataSplit, groups: GroupChoice) -> str:
    empty = int((val.class_counts == 0).sum())
    return (
        f'{train.num_classes} classes, {len(train.targets)} training images ({train.class_counts.max()} to '
        f'{train.class_counts.min()} a class, imbalance factor {imbalance_factor(train.class_counts):.1f}), '
        f'{len(val.targets)} evaluation images'
        + (f', {empty} classes without any of them' if empty else '')
        + f'; groups: {groups.text}'
    )
