"""Groups of images that nobody declared and that their names suggest: `00012_00003`, frame 3 of track 12."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ride_timm.data.image_groups import match_groups

__all__ = ['LikelyGroups', 'likely_groups']

_FRAME = re.compile(r'(?P<group>[^/]*\d[^/]*)(?P<by>[_-])\d+(?P<suffix>\.[^/.]+)?')
_FEWEST = 10  # groups; fewer are rather years, cameras or parts of a collection
_LARGEST = 200  # images of a group on average; more are rather kinds


class LikelyGroups(NamedTuple):
    """The `pattern` that tells them, the group of each image, and how many images have others in theirs."""

    pattern: str
    groups: tuple[str, ...]
    number: int
    images: int


def likely_groups(names: Sequence[str], labels: Sequence[int]) -> LikelyGroups | None:
    """Find groups by names that end in a number, after something with a number that several images of a class share.

    Most of the images have such names, most of these are not alone in their group, and most are of classes that have
    several groups: a common word before the number, or the number of the class, is no group.

    Args:
        names: N paths below the folder of the split, with `/` between folders.
        labels: (N,) class index of each.

    Returns:
        The groups, None without any. Where each class counts its own from 0 or 1, they are groups of the class; else
        the same number is the same group in all classes.
    """
    frames = [_FRAME.fullmatch(name.rpartition('/')[2]) for name in names]
    by = Counter(frame['by'] for frame in frames if frame)
    if not by:
        return None
    separator, number = by.most_common(1)[0]
    rows = [row for row, frame in enumerate(frames) if frame and frame['by'] == separator]
    if number < len(names) / 2:
        return None
    heads = np.array([str((frames[row] or {'group': ''})['group']) for row in rows])
    own = np.asarray(labels)[rows]
    suffixed = all(frame['suffix'] for frame in frames if frame)
    end = rf'{separator}\d+' + (r'\.\w+$' if suffixed else r'(\.\w+)?$')
    pattern = ('(.+)' if _counted_by_class(heads, own) else '([^/]+)') + end
    groups = match_groups(names, pattern)
    _, group, sizes = np.unique([groups[row] for row in rows], return_inverse=True, return_counts=True)
    pairs = np.unique(np.stack([own, group]), axis=1)
    several = np.bincount(pairs[0], minlength=own.max() + 1) > 1
    shared = int((sizes[group] > 1).sum())
    if not len(sizes) >= _FEWEST or sizes.mean() > _LARGEST:
        return None
    if shared < number / 2 or sizes.mean() < 2 or several[own].sum() < number / 2:
        return None
    return LikelyGroups(pattern, groups, len(sizes), shared)


def _counted_by_class(heads: np.ndarray, labels: np.ndarray) -> bool:
    """Whether the heads are numbers that each of most classes counts from 0 or 1."""
    if not all(head.isdecimal() for head in heads):
        return False
    counted = []
    for label in np.unique(labels):
        numbers = {int(head) for head in heads[labels == label]}
        counted.append(min(numbers) <= 1 and len(numbers) > (max(numbers) - min(numbers)) * 0.8)
    return len(counted) > 1 and sum(counted) > len(counted) / 2
