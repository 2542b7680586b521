"""The two sides of a data set as a report looks at them, and what it finds."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ride_timm.data.images import ImageSet
from ride_timm.data.scan import ImageFacts
from ride_timm.escaping import printable

__all__ = ['ERROR', 'OK', 'WARNING', 'Finding', 'Side']

ERROR, WARNING, OK = 'error', 'warning', 'ok'


@dataclass
class Finding:
    """Something found: `level` is `error` (a training refuses the data), `warning` or `ok`; `details` are examples."""

    level: str
    text: str
    details: list[str] = field(default_factory=list)


@dataclass
class Side:
    """The training or the evaluation images: where they are, the class of each, and the group where that is known."""

    text: str
    images: ImageSet
    names: tuple[str, ...]
    labels: Any
    root: str
    groups: tuple[str, ...] | None = None
    facts: list[ImageFacts] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Images of each class, by name."""
        found = np.bincount(self.labels, minlength=len(self.names)).tolist()
        return dict(zip(self.names, found, strict=True))

    def place(self, index: int) -> str:
        """Where image number `index` is, below the data's folder, for messages."""
        return printable(self.images.filename(index, absolute=True).removeprefix(self.root))

    def name(self, index: int) -> str:
        """Class of image number `index`, for messages."""
        return printable(self.names[int(self.labels[index])])
