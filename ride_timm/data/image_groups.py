"""Images that belong together: of one place, burst, patient or specimen. A split must not divide them."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from ride_timm.data.datasets import DataSplit
from ride_timm.errors import RideError
from ride_timm.escaping import printable
from ride_timm.options import DataForm

__all__ = ['GROUPED_BY', 'classes_of_one_group', 'is_grouped', 'match_groups', 'shared_groups', 'with_groups']

GROUPED_BY = ('group_column', 'group_pattern')
"""Options of the data that say which images belong together."""


def is_grouped(form: DataForm) -> bool:
    """Whether the options say which images belong together."""
    return any(getattr(form, name) is not None for name in GROUPED_BY)


def match_groups(names: Sequence[str], pattern: str) -> tuple[str, ...]:
    """The group of each image, by its name.

    Args:
        names: N names, with `/` between folders.
        pattern: Regular expression that is searched for in each; the group is what its first parentheses hold, or the
            whole match without any.

    Returns:
        N groups; an image that does not match is a group of its own, called by its name.

    Raises:
        RideError: The pattern is no regular expression, or matches no name.
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise RideError(
            f"--group-pattern '{pattern}' is not a regular expression ({error}); give one such as '([^/]+)_'."
        ) from None
    matches = [search(name) for name in names]
    groups = [None if match is None else match[1 if match.re.groups else 0] for match in matches]
    if names and not any(groups):
        raise RideError(
            f"--group-pattern '{pattern}' finds no group in the names of the images, such as {printable(names[0])}; "
            'give a pattern that matches a part of them.'
        )
    return tuple(group or name for group, name in zip(groups, names, strict=True))


def with_groups(split: DataSplit, form: DataForm) -> DataSplit:
    """The split with the groups that `--group-pattern` finds; without it, with those that its source knows.

    Raises:
        RideError: As in `match_groups`, or no image has a `--group-column`.
    """
    if form.group_column is not None and split.image_groups is None:
        raise RideError(
            f'--group-column {form.group_column} was given, but is empty for all images of {split.source}; name '
            'another column, or leave it out.'
        )
    if form.group_pattern is None:
        return split
    names = [name.replace(os.sep, '/') for name in split.dataset.filenames()]
    return replace(split, image_groups=match_groups(names, form.group_pattern))


def shared_groups(train: DataSplit, val: DataSplit) -> list[str]:
    """The groups with images on both sides, sorted; none where groups are not known."""
    return sorted(set(train.image_groups or ()) & set(val.image_groups or ()))


def classes_of_one_group(groups: Sequence[str], labels: ArrayLike, names: Sequence[str]) -> tuple[str, ...]:
    """The classes whose images, two or more, are all of one group, in label order.

    Args:
        groups: (N,) group of each image.
        labels: (N,) class index of each.
        names: C class names.
    """
    own = np.asarray(labels)
    number = np.unique(groups, return_inverse=True)[1]
    spread = np.bincount(np.unique(np.stack([own, number]), axis=1)[0], minlength=len(names))
    alone = (spread == 1) & (np.bincount(own, minlength=len(names)) > 1)
    return tuple(names[label] for label in np.flatnonzero(alone).tolist())
