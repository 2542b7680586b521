"""What every form of data is brought into: rows of a timm data set, and a class name for each."""

import logging
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from timm.data import ImageDataset

from ride_timm._compat import Reader
from ride_timm.data.counts import IntArray, class_counts
from ride_timm.data.finding import natural_order
from ride_timm.errors import RideError
from ride_timm.escaping import printable

__all__ = [
    'TRAIN_NAMES',
    'VAL_NAMES',
    'Source',
    'known_names',
    'name_labels',
    'split_names',
    'wrap_reader',
]

_logger = logging.getLogger(__name__)

TRAIN_NAMES = ('train', 'training')
"""timm's names for the training split."""
VAL_NAMES = ('val', 'valid', 'validation', 'eval', 'evaluation')
"""timm's names for the evaluation split."""


class Source(NamedTuple):
    """A split as stored.

    `base` is the whole as timm or torchvision opens it, `rows` (N,) the rows of it that are used, `labels` (N,) the
    index of each into the source's own class `names`, and `text` says where the images are.
    """

    base: Any
    rows: IntArray
    labels: IntArray
    names: tuple[str, ...]
    text: str

    @property
    def counts(self) -> IntArray:
        """(C,) images per class of the source's own names."""
        return class_counts(self.labels, len(self.names))


def wrap_reader(reader: Reader, labels: Sequence[str], text: str, **naming: Any) -> Source:
    """Make a source of a reader and the label of each of its rows.

    Args:
        reader: Opens a row's file by its number, as timm's readers do.
        labels: N labels, one per row.
        text: Where the images are.
        **naming: `names`, `place`, `tell` and `numbered` of `name_labels`.

    Returns:
        The source.

    Raises:
        RideError: As in `name_labels`.
    """
    found, own = name_labels(labels, text, **naming)
    rows = np.arange(len(labels), dtype=np.int64)
    return Source(ImageDataset('', reader=reader), rows, found, own, text)


def name_labels(
    labels: Sequence[str],
    text: str,
    names: Sequence[str] | None = None,
    place: Callable[[int], str] | None = None,
    tell: bool = True,
    numbered: bool = True,
) -> tuple[IntArray, tuple[str, ...]]:
    """Turn labels as written into class names and indices.

    A label is a name, and so is a number: 0, 1, 3 are three classes called "0", "1" and "3", in the order of the
    numbers, so that labels 0..C-1 without a gap keep their numbers as indices. Only a list of names says that a number
    stands for another name: label i is then the name on line i, counted from 0.

    Args:
        labels: N labels.
        text: Where they are, for messages.
        names: Names that numbers stand for, or that labels are to be one of; those without images are left out.
        place: Says where label number i is written, for messages.
        tell: Log gaps in numbers and names without images; they are ordinary in evaluation images.
        numbered: A label that is a number stands for a name; False where the labels are names already.

    Returns:
        (N,) class indices, and the C class names: in the order of `names`, or in natural order without them.

    Raises:
        RideError: If a label is neither one of the names nor a number of one, or could be either.
    """
    written = dict.fromkeys(labels)
    translated = names is not None and (numbered or not written.keys() <= set(names))
    known = _translate(written, names or (), labels, text, place) if translated else {name: name for name in written}
    used = set(known.values())
    if names is None:
        own = tuple(sorted(used, key=natural_order))
    else:
        own = tuple(name for name in names if name in used)
    if tell and names is None:
        _tell_gap(own, text)
    elif tell and names is not None:
        _tell_unused(names, used, text)
    index = {name: i for i, name in enumerate(own)}
    numbers = {label: index[name] for label, name in known.items()}
    return np.fromiter((numbers[label] for label in labels), dtype=np.int64, count=len(labels)), own


def known_names(written: Sequence[str], names: Sequence[str]) -> list[str]:
    """Class names as `names` write them: archives made on a Mac hold decomposed letters, which look the same.

    Args:
        written: Names from elsewhere.
        names: The known names.

    Returns:
        For each of `written` the known name that it is, or itself where it is none.
    """
    known = {unicodedata.normalize('NFC', name): name for name in names} | {name: name for name in names}
    return [known.get(name, known.get(unicodedata.normalize('NFC', name), name)) for name in written]


def split_names(split: str) -> tuple[str, ...]:
    """The names under which a split is looked for: timm's for the same, and `test` where there is no validation one.

    Args:
        split: `train`, `val`, or any other name, which stands for itself.
    """
    if split in TRAIN_NAMES:
        return tuple(dict.fromkeys((split, *TRAIN_NAMES)))
    return tuple(dict.fromkeys((split, *VAL_NAMES, 'test'))) if split in VAL_NAMES else (split,)


def _translate(
    written: dict[str, None],
    names: Sequence[str],
    labels: Sequence[str],
    text: str,
    place: Callable[[int], str] | None,
) -> dict[str, str]:
    """The name of each label as written."""
    own, known = set(names), {}
    for label in written:
        number = int(label) if label.isascii() and label.isdigit() else -1
        numbered = names[number] if 0 <= number < len(names) else None
        if label in own and numbered not in (None, label):
            raise RideError(
                f'The label {label} in {text} is a class name and also the number of the class "{numbered}"; give '
                'class names that are no numbers, or write names instead of numbers.'
            )
        if label not in own and numbered is None:
            where = place(labels.index(label)) if place else text
            raise RideError(
                f'The label "{printable(label)}" ({where}) is none of the {len(names)} class names and no number from '
                f'0 to {len(names) - 1}; fix the label, or the file of class names.'
            )
        known[label] = label if label in own else str(numbered)
    return known


def _tell_gap(names: tuple[str, ...], text: str) -> None:
    """Say so when labels look like 0..C-1 with a gap: the numbers are then not the indices."""
    if not all(name.isascii() and name.isdigit() for name in names):
        return
    numbers = sorted({int(name) for name in names})
    first = numbers[0] if numbers[0] in (0, 1) else 0  # counting from 1 is no gap
    missing = next((first + i for i, number in enumerate(numbers) if number != first + i), None)
    if missing is not None:
        _logger.info(
            'The labels of %s are numbers up to %d without %d; they are taken as the names of %d classes',
            text, numbers[-1], missing, len(names),
        )  # fmt: skip


def _tell_unused(names: Sequence[str], used: set[str], text: str) -> None:
    unused = [name for name in names if name not in used]
    if unused:
        _logger.info(
            '%d of the %d class names have no image in %s, first "%s"; they are left out',
            len(unused), len(names), text, printable(unused[0]),
        )  # fmt: skip
