"""What every file that names images is read into: a row for each image, or for each box on one."""

from typing import NamedTuple

__all__ = ['GUESS', 'Box', 'Columns', 'ImageRow', 'Listed']


class Box(NamedTuple):
    """A part of an image: left and upper edge, width and height.

    In pixels of the upright image, or, if `relative`, in shares (0..1) of its width and height. `confidence` (0..1) is
    that of a detector; 1 where a person drew the box.
    """

    x: float
    y: float
    width: float
    height: float
    relative: bool = False
    confidence: float = 1.0


class ImageRow(NamedTuple):
    """An image as a file names it.

    `path` and `label` are as written, and `line` is the number of the line or entry, from 1. `split` and `group`
    (place, sequence, patient, sample) are None where the file does not say; `box` is the part of the image that the
    label is of.
    """

    path: str
    label: str
    line: int
    split: str | None = None
    group: str | None = None
    box: Box | None = None


class Columns(NamedTuple):
    """Names of a table's columns; None: guess."""

    image: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None


GUESS = Columns()


class Listed(NamedTuple):
    """The rows of a file.

    `form` says in words what the file was read as, `unit` what `line` counts, and `notes` what is worth knowing of the
    reading. `contained` holds for formats of exchange: no path in them may lead out of the data folder. Where the form
    is `many`, an image has a row for everything seen on it; elsewhere two labels are a mistake.
    """

    rows: list[ImageRow]
    form: str
    unit: str = 'line'
    notes: tuple[str, ...] = ()
    contained: bool = False
    many: bool = False
