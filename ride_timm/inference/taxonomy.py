"""What classes are part of: a file of `label,parent` lines, and answers at the level that is sure enough.

The probability of a genus is the sum over its species. An answer that is not confident enough to be said is replaced by
the nearest ancestor of the likeliest class that is, if there is one.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ride_timm.data.sources.base import known_names
from ride_timm.errors import RideError
from ride_timm.records.schema import read_text

__all__ = ['Taxonomy', 'read_taxonomy']


class Taxonomy:
    """The ancestors of C classes.

    Attributes:
        levels: For each level above the classes, the nearest first, the name of each class's ancestor there, C of them;
            above its topmost ancestor a class keeps that.
    """

    def __init__(self, ancestors: Sequence[Sequence[str]]) -> None:
        """Take the ancestors.

        Args:
            ancestors: Of each class its name, its parent, the parent of that, and so on.
        """
        height = max(map(len, ancestors))
        self.levels = [[chain[min(level, len(chain) - 1)] for chain in ancestors] for level in range(1, height)]
        self._ids = [np.unique(names, return_inverse=True)[1] for names in self.levels]

    def accuracies(self, confusion: ArrayLike) -> list[float]:
        """How often the answer has the right ancestor.

        Args:
            confusion: (C, C + 1) images by true and by named class; the last column is no answer.

        Returns:
            For each level above the classes, in percent of the images.
        """
        counts = np.asarray(confusion)
        named = counts[:, :-1]
        return [100 * int(named[ids[:, None] == ids].sum()) / int(counts.sum()) for ids in self._ids]

    def in_common(self, one: int, other: int) -> str | None:
        """The nearest ancestor that two classes share.

        Args:
            one: A class index.
            other: Another.

        Returns:
            Its name; None where they share none.
        """
        others = {names[other] for names in self.levels}
        return next((names[one] for names in self.levels if names[one] in others), None)

    def broader(self, probabilities: Tensor, limit: float) -> list[tuple[str, float] | None]:
        """The nearest ancestor of each likeliest class that is sure enough.

        Args:
            probabilities: Shape (B, C).
            limit: Least probability.

        Returns:
            For each image the ancestor and its probability; None where none reaches the limit.
        """
        best = probabilities.argmax(dim=1)
        found: list[tuple[str, float] | None] = [None] * len(best)
        for names, ids in zip(self.levels, self._ids, strict=True):
            places = torch.from_numpy(ids).to(best.device)
            same = places[best][:, None] == places
            sums = (probabilities * same).sum(dim=1).tolist()
            for row, (label, share) in enumerate(zip(best.tolist(), sums, strict=True)):
                if found[row] is None and share >= limit:
                    found[row] = (names[label], min(share, 1.0))
        return found


def read_taxonomy(path: str | Path, class_names: Sequence[str]) -> Taxonomy:
    """Read what classes are part of.

    Args:
        path: A CSV file of `label,parent` lines, with or without that heading; parents may have parents.
        class_names: C names in label order; a class that the file does not name has no ancestors.

    Returns:
        The ancestors.

    Raises:
        RideError: The file cannot be read, a line is none of these, a name has two parents or is part of itself, or no
            class is named.
    """
    parents: dict[str, str] = {}
    lines = read_text(Path(path)).removeprefix('\ufeff').splitlines()
    for number, cells in enumerate(csv.reader(lines), start=1):
        row = [cell.strip() for cell in cells]
        if not any(row) or (number == 1 and [cell.lower() for cell in row] == ['label', 'parent']):
            continue
        if len(row) != 2 or not row[0]:
            raise RideError(f'{path}, line {number}, is no `label,parent`; write the two with a comma between.')
        label, parent = known_names(row, class_names)
        if parents.get(label, parent) != parent:
            raise RideError(f'{path} gives "{label}" the parents "{parents[label]}" and "{parent}"; leave one out.')
        if parent:
            parents[label] = parent
    if not parents.keys() & set(class_names):
        raise RideError(
            f'{path} names no class of the network, such as {", ".join(class_names[:3])}; name its classes.'
        )
    return Taxonomy([_chain(name, parents, path) for name in class_names])


def _chain(name: str, parents: dict[str, str], path: str | Path) -> list[str]:
    chain = [name]
    while chain[-1] in parents:
        parent = parents[chain[-1]]
        if parent in chain:
            raise RideError(f'{path} makes "{parent}" a part of itself; correct its parents.')
        chain.append(parent)
    return chain
