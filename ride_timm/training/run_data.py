"""The images of a run: its training split, and what it is evaluated on."""

import logging
from dataclasses import dataclass
from pathlib import Path

from timm.utils import is_primary

from ride_timm.data import (
    DataSplit,
    GroupChoice,
    check_apart,
    check_images,
    choose_groups,
    imbalance_factor,
    tell_copies,
)
from ride_timm.data.form import check_form, has_eval_images, open_eval, open_train
from ride_timm.data.image_groups import shared_groups
from ride_timm.data.images import PixelRange, measure_range
from ride_timm.data.splits import for_groups_of, set_apart, val_plan
from ride_timm.errors import RideError
from ride_timm.escaping import printable
from ride_timm.records.headline import leading_accuracy
from ride_timm.records.training_record import SplitPlan
from ride_timm.tables import counted
from ride_timm.training.config import ResolvedConfig

__all__ = ['MAX_CHECKED', 'RunData', 'build_data']

_logger = logging.getLogger(__name__)

MAX_CHECKED = 50_000  # images decoded once before training; more would keep the user waiting


@dataclass
class RunData:
    """Both splits and how their classes are grouped.

    `val_part` says that the data has no evaluation images of its own and which of its training images take their place;
    `holdout` that `val` are training images held out for choices, instead of the evaluation images.
    """

    train: DataSplit
    val: DataSplit
    groups: GroupChoice
    holdout: SplitPlan | None = None
    val_part: SplitPlan | None = None


def build_data(
    config: ResolvedConfig,
    class_names: tuple[str, ...] | None = None,
    exact: bool = False,
    holdout: SplitPlan | None = None,
    val_part: SplitPlan | None = None,
    pixel_range: PixelRange | None = None,
    measure: bool = True,
) -> RunData:
    """Open both splits.

    Args:
        config: The run's options.
        class_names: Order of the classes, where the data has the same ones, such as that of earlier weights.
        exact: The data must have just these classes.
        holdout: Hold training images out and evaluate on them; the evaluation split is not touched.
        val_part: Make the evaluation split of training images; by default what --val-fraction says.
        pixel_range: Of 16-bit images, as the network was trained so far.
        measure: Measure the range where none is given.

    Raises:
        RideError: The data is missing, wrong or unreadable, evaluation images are training images too, or the data
            disagrees with --num-classes or the class names.
    """
    check_form(config)
    val_part = val_part or val_plan(config)
    config = for_groups_of(config, holdout, val_part)
    train = _open_train(config, class_names, exact)
    if config.num_classes not in (None, train.num_classes):
        raise RideError(
            f'--num-classes {config.num_classes} was given, but {train.source} has {train.num_classes} classes; leave '
            'the option out, or check --data-dir.'
        )
    train, val, val_part = _separate_val(config, train, val_part)
    if holdout is not None:
        parts, holdout = set_apart(train, holdout, '--holdout', is_primary(config))
        train, val = parts.train, parts.held
    elif val is None:
        val = _open_val(config, train)
    if train.num_classes < 2:
        raise RideError(
            f'{train.source} has only one class, {printable(train.class_names[0])}; give images of two or more, or '
            'name the file that has their labels with --table.'
        )
    check_apart(train, val)
    if is_primary(config):
        _tell_shared_groups(train, val)
    if pixel_range is None and measure:
        pixel_range = measure_range(train.dataset)
    train.dataset.pixel_range = val.dataset.pixel_range = pixel_range
    if pixel_range is not None and is_primary(config):
        _logger.info('Images of 16 bits: %d is black and %d white, stored with the network', *pixel_range)
    if not config.no_check_images and is_primary(config) and len(train.targets) + len(val.targets) <= MAX_CHECKED:
        check_images(train)
        check_images(val)
        tell_copies(train, val)
    groups = choose_groups(train.class_counts)
    if is_primary(config):
        _logger.info(_describe(train, val, groups))
    return RunData(train, val, groups, holdout, val_part)


def _separate_val(
    config: ResolvedConfig, train: DataSplit, part: SplitPlan | None
) -> tuple[DataSplit, DataSplit | None, SplitPlan | None]:
    """Take the evaluation images out of the training images, where the data has none."""
    if part is None:
        return train, None, None
    parts, part = set_apart(train, part, '--val-fraction', is_primary(config))
    return parts.train, parts.held, part


def _open_val(config: ResolvedConfig, train: DataSplit) -> DataSplit:
    """The evaluation images; a folder of class folders is not taken for both sides."""
    beside = Path(config.data_dir or '.', 'train').is_dir() and not (
        config.train_list or config.table
    )  # then the split's opener says more
    if not has_eval_images(config, config.val_split) and not beside:
        raise RideError(
            f'{train.source} has no evaluation images next to it; take a part of the training images with '
            f'--val-fraction 0.2, or name others ({config.val_split}/CLASS/*.jpg in --data-dir, or --val-list).'
        )
    return open_eval(config, config.in_chans or 3, train.class_names, config.val_split)


def _open_train(config: ResolvedConfig, class_names: tuple[str, ...] | None, exact: bool) -> DataSplit:
    """The training images, their classes in the order of `class_names` where these are the same."""
    channels = config.in_chans or 3
    train = open_train(config, channels)
    if class_names is None or train.class_names == class_names:
        return train
    missing, unknown = set(class_names) - set(train.class_names), set(train.class_names) - set(class_names)
    if not missing and not unknown:
        return open_train(config, channels, class_names)
    if exact:
        found = f'lacks {min(missing)}' if missing else f'has {min(unknown)} as well'
        raise RideError(
            f'The network of --init was trained on {len(class_names)} classes and {train.source} {found}; stage '
            f'{config.stage} needs the same classes.'
        )
    return train


def _tell_shared_groups(train: DataSplit, val: DataSplit) -> None:
    shared = shared_groups(train, val)
    if shared:
        _logger.warning(
            '%s on both sides, which inflates the accuracy, first %s; `ride-timm data` lists them',
            counted(len(shared), 'group of images stands', 'groups of images stand'), printable(shared[0]),
        )  # fmt: skip


def _describe(train: DataSplit, val: DataSplit, groups: GroupChoice) -> str:
    empty = int((val.class_counts == 0).sum())
    limits = f'thirds of the classes by training images, {groups.text}' if groups.rule == 'quantile' else groups.text
    return (
        f'{counted(train.num_classes, "class", "classes")}, {len(train.targets)} training images '
        f'({train.class_counts.max()} to {train.class_counts.min()} per class, imbalance factor '
        f'{imbalance_factor(train.class_counts):.1f}), {len(val.targets)} evaluation images'
        + _balance(val)
        + (f', {counted(empty, "class", "classes")} without any of them' if empty else '')
        + f'; groups: {limits}'
    )


def _balance(val: DataSplit) -> str:
    """That the evaluation images are not balanced, and what leads then."""
    tested = val.class_counts[val.class_counts > 0]
    if leading_accuracy(val.class_counts) == 'top1':
        return ''
    return f' (not balanced, {tested.min()} to {tested.max()} per class, so `balanced`, the mean over classes, leads)'
