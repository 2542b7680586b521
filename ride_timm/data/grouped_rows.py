"""Dividing images so that those of one group stay on one side."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ride_timm.data.counts import IntArray, class_counts

__all__ = ['grouped_rows']

_ROUNDS = 10  # of the search, which seldom takes more than three
_LEAST = 1e-9  # rounding


def grouped_rows(
    targets: ArrayLike, groups: Sequence[str], fraction: float, num_classes: int, seed: int = 42
) -> tuple[IntArray, IntArray]:
    """Hold whole groups out, about the same share of every class, and leave every class images to train on.

    Shares come as close to `fraction` as a local search brings them: it starts from groups that are taken class by
    class, the rarest first, in an order drawn by `seed` and their names; then single groups change sides while that
    lowers the sum of the squared errors of all classes' shares. To hold out no image of a class costs as much as all of
    it, from g `fraction` = 1/2 on for a class with images in g groups. A class that lives in one group keeps it.

    Args:
        targets: (N,) class index of each image.
        groups: (N,) group of each image.
        fraction: Share to hold out, above 0 and below 1.
        num_classes: C, the number of classes.
        seed: Seed, at least 0.

    Returns:
        Image numbers to train on and image numbers held out, both ascending; together they are 0..N-1.

    Raises:
        ValueError: If `fraction` is not between 0 and 1, or a target lies outside 0..C-1.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f'the held-out fraction must lie between 0 and 1, not be {fraction}')
    labels = np.asarray(targets, dtype=np.int64)
    total = class_counts(labels, num_classes)
    if not labels.size:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    division = _Division(labels, group, total, fraction)
    order = sorted(range(len(names)), key=lambda index: _draw(seed, str(names[index])))
    members: list[list[int]] = [[] for _ in range(num_classes)]
    for index in order:
        for label in division.classes[index].tolist():
            members[label].append(index)
    for label in np.lexsort((division.spread, total)).tolist():
        for index in members[label]:
            if not division.has_room(label):
                break
            if not division.is_held[index] and division.gain(index) > _LEAST:
                division.flip(index)
    for _ in range(_ROUNDS):
        better = [index for index in order if division.gain(index) > _LEAST and division.flip(index)]
        if not better:
            break
    held = division.is_held[group]
    return np.flatnonzero(~held).astype(np.int64), np.flatnonzero(held).astype(np.int64)


class _Division:
    """Which groups are held out so far, and what that makes of every class."""

    def __init__(self, labels: IntArray, group: IntArray, total: IntArray, fraction: float) -> None:
        pairs, counts = np.unique(group * len(total) + labels, return_counts=True)
        of, label = np.divmod(pairs, len(total))
        ends = np.flatnonzero(np.diff(of)) + 1
        self.classes: list[IntArray] = np.split(label, ends)
        self.counts: list[IntArray] = np.split(counts, ends)
        self.spread = np.bincount(label, minlength=len(total))
        self.total = total
        self.fraction = fraction
        self.tested = self.spread * fraction >= 0.5
        self.held: IntArray = np.zeros(len(total), dtype=np.int64)
        self.is_held: NDArray[np.bool_] = np.zeros(len(self.classes), dtype=bool)

    def has_room(self, label: int) -> bool:
        """Whether fewer images of a class are held out than wanted, a half counting up."""
        return bool(self.held[label] + 0.5 < self.fraction * self.total[label])

    def gain(self, group: int) -> float:
        """By how much it lowers the errors if the group changes sides; below 0 where a class would lose its last."""
        classes = self.classes[group]
        now = self.held[classes]
        then = now - self.counts[group] if self.is_held[group] else now + self.counts[group]
        total, tested = self.total[classes], self.tested[classes]
        if (then >= total).any():
            return -1.0
        errors = [(held / total - self.fraction) ** 2 + (tested & (held == 0)) for held in (now, then)]
        return float((errors[0] - errors[1]).sum())

    def flip(self, group: int) -> bool:
        """Have a group change sides."""
        change = -self.counts[group] if self.is_held[group] else self.counts[group]
        self.held[self.classes[group]] += change
        self.is_held[group] = not self.is_held[group]
        return True


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f'{seed}\n{name}'.encode('utf-8', 'surrogateescape')).digest()
