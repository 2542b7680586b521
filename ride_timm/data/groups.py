"""Many, medium and few: groups of classes by their number of training images."""

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ride_timm.data.counts import IntArray

__all__ = ['GROUP_NAMES', 'ClassGroups', 'GroupChoice', 'choose_groups', 'frequency_groups', 'quantile_groups']

GROUP_NAMES = ('many', 'medium', 'few')
_MANY, _FEW = 100, 20
ClassGroups: TypeAlias = dict[str, IntArray]


class GroupChoice(NamedTuple):
    """Groups together with how they were drawn.

    `groups` maps a name to the (n,) class indices of that group, `rule` is `threshold` or `quantile`, and `text` states
    the limits, for example `many > 100, medium 20..100, few < 20`.
    """

    groups: ClassGroups
    rule: str
    text: str


def _present(masks: dict[str, np.ndarray]) -> ClassGroups:
    """Turn boolean masks over classes into index arrays, leaving out the empty ones."""
    return {name: np.flatnonzero(mask).astype(np.int64) for name, mask in masks.items() if mask.any()}


def frequency_groups(counts: ArrayLike) -> ClassGroups:
    """Group the classes by fixed limits on the training count, as every long-tail paper does (arXiv:1904.05160).

    More than 100 images are `many`, fewer than 20 `few`, and the others `medium`.

    Args:
        counts: (C,) number of training images per class.

    Returns:
        Class indices per group, ascending; a group without classes is absent.
    """
    n = np.asarray(counts)
    return _present({'many': n > _MANY, 'medium': (n >= _FEW) & (n <= _MANY), 'few': n < _FEW})


def quantile_groups(counts: ArrayLike) -> ClassGroups:
    """Group the classes into thirds by rank of training count, for data that the fixed limits do not divide.

    Classes with equal counts stay together, in the third that holds the middle of their ranks.

    Args:
        counts: (C,) number of training images per class.

    Returns:
        Class indices per group, ascending; a group without classes is absent (balanced data has `medium` only).
    """
    n = np.asarray(counts)
    larger = (n[None, :] > n[:, None]).sum(1)
    ties = (n[None, :] == n[:, None]).sum(1)
    # the middle rank in (0, 1) is (larger + ties / 2) / C; kept in whole numbers so that thirds are exact
    middle = 3 * (2 * larger + ties)
    third, two_thirds = 2 * n.size, 4 * n.size
    return _present(
        {'many': middle < third, 'medium': (middle >= third) & (middle <= two_thirds), 'few': middle > two_thirds}
    )


def choose_groups(counts: ArrayLike) -> GroupChoice:
    """Take the fixed limits, or thirds where a limit leaves a group empty and thirds fill more groups.

    Args:
        counts: (C,) number of training images per class.

    Returns:
        The groups, the name of the rule, and its limits as text.
    """
    groups = frequency_groups(counts)
    text = f'many > {_MANY}, medium {_FEW}..{_MANY}, few < {_FEW}'
    if len(groups) == len(GROUP_NAMES):
        return GroupChoice(groups, 'threshold', text)
    thirds = quantile_groups(counts)
    if len(thirds) <= len(groups):
        return GroupChoice(groups, 'threshold', text)
    n = np.asarray(counts)
    limits = (f'{name} {_span(n[index])}' for name, index in thirds.items())
    return GroupChoice(thirds, 'quantile', ', '.join(limits))


def _span(counts: np.ndarray) -> str:
    low, high = counts.min(), counts.max()
    return f'{low}' if low == high else f'{low}..{high}'
