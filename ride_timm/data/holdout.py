"""Training images set apart: to evaluate on where there are none for it, or for choices such as the threshold."""

import hashlib
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ride_timm.data.counts import IntArray, class_counts
from ride_timm.data.datasets import DataSplit
from ride_timm.data.grouped_rows import grouped_rows
from ride_timm.data.image_groups import classes_of_one_group
from ride_timm.data.images import ImageSet
from ride_timm.errors import RideError
from ride_timm.escaping import printable
from ride_timm.tables import counted

__all__ = ['HeldOut', 'hold_out', 'holdout_rows', 'split_digest']

VAL_FRACTION = 0.2
"""Part of the training images to evaluate on where there are no others."""


class HeldOut(NamedTuple):
    """A training set in two: `train` to train on, `held` to measure on, and the `digest` of the held-out images.

    `undivided` are the classes whose images are all of one group, which are to train on.
    """

    train: DataSplit
    held: DataSplit
    digest: str
    undivided: tuple[str, ...] = ()


def holdout_rows(
    targets: ArrayLike, fraction: float, class_names: Sequence[str], seed: int = 42
) -> tuple[IntArray, IntArray]:
    """Draw the same share of every class, and leave every class at least one image to train on.

    Of a class with n images the nearest whole number to `fraction` n is held out (a half counts up), but n - 1 at most.
    Each class has a random stream of its own, by its name, so neither the other classes nor their order change what is
    drawn of it.

    Args:
        targets: (N,) class index of each image.
        fraction: Share to hold out, above 0 and below 1.
        class_names: C class names, in label order.
        seed: Seed, at least 0.

    Returns:
        Image numbers to train on and image numbers held out, both ascending; together they are 0..N-1.

    Raises:
        ValueError: If `fraction` is not between 0 and 1, or a target lies outside 0..C-1.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f'the held-out fraction must lie between 0 and 1, not be {fraction}')
    labels = np.asarray(targets)
    counts = class_counts(labels, len(class_names))
    held: list[IntArray] = []
    for label, (name, count) in enumerate(zip(class_names, counts.tolist(), strict=True)):
        number = min(int(fraction * count + 0.5), max(count - 1, 0))
        rows = np.flatnonzero(labels == label)
        stream = np.random.default_rng([seed, *hashlib.sha256(name.encode()).digest()[:8]])
        held.append(stream.permutation(rows)[:number].astype(np.int64))
    rows_held = np.sort(np.concatenate(held)) if held else np.zeros(0, dtype=np.int64)
    rows_train = np.setdiff1d(np.arange(labels.size, dtype=np.int64), rows_held, assume_unique=True)
    return rows_train, rows_held


def hold_out(
    split: DataSplit, fraction: float, seed: int = 42, option: str = '--holdout', *, grouped: bool = True
) -> HeldOut:
    """Split the training images; the same images, fraction and seed give the same split.

    An image that the split has several times counts once, and all of its rows go to the same side, as do all images of
    a group.

    Args:
        split: All training images.
        fraction: Share of every class to hold out.
        seed: Seed, at least 0.
        option: What asked for it, for messages.
        grouped: Whether images of one group stay together, where the split has groups.

    Returns:
        Both parts, with transforms of their own, and the digest of the held-out one.

    Raises:
        RideError: If the fraction is not between 0 and 1, or holds out no image, or one image is in two groups.
    """
    own, image = _images(split)
    targets = split.targets[own]
    groups = _groups(split, own, image) if grouped and split.image_groups is not None else None
    try:
        if groups is None:
            parts = holdout_rows(targets, fraction, split.class_names, seed)
        else:
            parts = grouped_rows(targets, groups, fraction, split.num_classes, seed)
        train, held = (np.flatnonzero(np.isin(image, part)) for part in parts)
    except ValueError as error:
        raise RideError(f'{option} cannot be done: {error}; 0.1 is a good start.') from error
    largest = class_counts(targets, split.num_classes).max()
    if not held.size and largest == 1:
        raise RideError(
            f'{option} {fraction:g} of {split.source} holds out no image, as every class has a single one, needed '
            'for training; add images.'
        )
    if not held.size and groups is not None:
        number = counted(len(set(groups)), 'group')
        raise RideError(
            f'{option} {fraction:g} of {split.source} holds out no image, as its {len(targets)} images are of {number} '
            'and each class keeps images to train on; give a larger fraction, or smaller groups.'
        )
    if not held.size:
        raise RideError(
            f'{option} {fraction:g} of {split.source} holds out no image (the largest class has '
            f'{largest}); give a larger fraction.'
        )
    how = 'held out' if option == '--holdout' else 'set apart'
    text = f'{held.size} of {len(split.targets)} training images of {split.source}, {how}'
    held_split = _part(split, held, text)
    undivided = () if groups is None else classes_of_one_group(groups, targets, split.class_names)
    return HeldOut(_part(split, train, split.source), held_split, split_digest(held_split), undivided)


def split_digest(split: DataSplit) -> str:
    """Identify the images of a split by their names, in any order.

    Args:
        split: Any split.

    Returns:
        SHA-256 of the sorted file names (or row numbers, where the source has no files), in hexadecimal.
    """
    names = sorted(split.dataset.filenames())
    return hashlib.sha256('\n'.join(names).encode('utf-8', 'surrogateescape')).hexdigest()


def _images(split: DataSplit) -> tuple[IntArray, IntArray]:
    """The first row of each image, and for every row which of these it repeats: lists may name an image twice."""
    places = split.dataset.locations
    first: dict[str, int] = {}
    if places is None:
        every = np.arange(len(split.targets), dtype=np.int64)
        return every, every
    image = np.array([first.setdefault(os.path.normpath(place), len(first)) for place in places], dtype=np.int64)
    return np.unique(image, return_index=True)[1].astype(np.int64), image


def _groups(split: DataSplit, own: IntArray, image: IntArray) -> list[str]:
    """The group of each image."""
    groups = split.image_groups or ()
    for row, first in enumerate(own[image].tolist()):
        if groups[row] != groups[first]:
            raise RideError(
                f'{printable(split.dataset.filename(row))} is in the groups {printable(groups[first])} and '
                f'{printable(groups[row])} of {split.source}; give it one.'
            )
    return [groups[row] for row in own.tolist()]


def _part(split: DataSplit, rows: IntArray, source: str) -> DataSplit:
    images = split.dataset
    targets = split.targets[rows]
    # a data set of its own: the two parts are transformed differently
    part = ImageSet(images.base, targets, images.rows[rows], images.mode, images.pixel_range)
    groups = None if split.image_groups is None else tuple(split.image_groups[row] for row in rows.tolist())
    return DataSplit(part, split.class_names, targets, source, groups)
