"""The lines of list files: each image and its label."""

import codecs
import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ride_timm.errors import RideError
from ride_timm.escaping import printable

__all__ = ['ListLine', 'parse_list', 'read_lines']

_MAX_BYTES = 2**29  # of a list; some million lines
_PATH_COLUMNS = (
    'path', 'file', 'filename', 'file_name', 'filepath', 'file_path', 'image', 'image_path', 'img', 'img_path',
    'image_file', 'image_name', 'image_id', 'fname',
)  # fmt: skip
_LABEL_COLUMNS = (
    'label', 'class', 'target', 'category', 'class_name', 'label_name', 'category_name', 'class_id', 'label_id',
    'category_id', 'classid', 'labels', 'species', 'y',
)  # fmt: skip


class ListLine(NamedTuple):
    """One image of a list: its path as written, its label as written, and the number of its line, from 1."""

    path: str
    label: str
    line: int


def read_lines(file: str | Path, what: str) -> list[tuple[int, str]]:
    """Read the lines of a text file that are not blank, with any line ends and with or without a byte-order mark.

    Args:
        file: A text file in UTF-8, or in UTF-16 with a mark.
        what: What the file is, for messages.

    Returns:
        (number from 1, text without blanks around it) of each line.

    Raises:
        RideError: If the file is missing, not text in these encodings, or blank.
    """
    try:
        with Path(file).open('rb') as opened:
            data = opened.read(_MAX_BYTES + 1)
    except OSError as error:
        raise RideError(f'{what} {file} cannot be read ({error.strerror}): give the path of a text file') from error
    if len(data) > _MAX_BYTES:
        raise RideError(
            f'{what} {file} has more than {_MAX_BYTES:,} bytes: give the path of a text file, or parts of it'
        )
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode('utf-16' if utf16 else 'utf-8-sig')
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b'\n') + 1
        raise RideError(f'{what} {file} is not in UTF-8 (line {line}): save it in that encoding') from error
    # not str.splitlines, which also splits at characters that may stand in a file name
    numbered = enumerate(re.split('\r\n|\n|\r', text), 1)
    lines = [(number, line.strip()) for number, line in numbered if line.strip()]
    if not lines:
        raise RideError(f'{what} {file} is empty: write one entry on each line')
    return lines


def parse_list(file: str | Path) -> list[ListLine]:
    """Read a list of images and labels.

    A `.csv` is divided by commas (or by semicolons, if its first line has no comma), a `.tsv` by tabs; fields may be
    quoted. A line of any other file is divided at its last blank, or if it has none at its last comma. If the first
    line names a column of paths and one of labels, columns may come in any order and number; else there are two.

    Args:
        file: The list.

    Returns:
        Its images, in order; at least one.

    Raises:
        RideError: If the file cannot be read, or a line is no pair of an image and a label; names the line.
    """
    lines = read_lines(file, 'the list')
    suffix = Path(file).suffix.lower()
    separator = '\t' if suffix == '.tsv' else ';' if ',' not in lines[0][1] and ';' in lines[0][1] else ','

    def fields(text: str) -> list[str]:
        if suffix not in ('.csv', '.tsv'):
            return text.rsplit(None, 1) if len(text.split(None, 1)) > 1 else text.rsplit(',', 1)
        try:
            return next(csv.reader([text], delimiter=separator, skipinitialspace=True))
        except csv.Error:  # a line that is no CSV has no fields, which is reported with its number
            return []

    header = fields(lines[0][1])
    columns = _header_columns(header)
    body, width = (lines, 2) if columns is None else (lines[1:], len(header))
    if not body:
        raise RideError(f'the list {file} has a header and no image: write "path label" on each line')
    path, label = columns or (0, 1)
    found = []
    for number, text in body:
        row = [field.strip() for field in fields(text)]
        if len(row) != width or not row[path] or not row[label] or _is_image(row[label]):
            raise RideError(
                f'line {number} of {file}, "{printable(text[:100])}", is no image and label: write "path label", or in '
                'a .csv path,label with quoted names or a header that names the columns "path" and "label"'
            )
        found.append(ListLine(row[path], row[label], number))
    return found


def _header_columns(header: Sequence[str]) -> tuple[int, int] | None:
    """Columns of path and label, where the first line names them."""
    names = [field.strip().lower().replace(' ', '_') for field in header]
    path = next((names.index(name) for name in _PATH_COLUMNS if name in names), None)
    label = next((names.index(name) for name in _LABEL_COLUMNS if name in names), None)
    return None if path is None or label is None else (path, label)


def _is_image(text: str) -> bool:
    return Path(text).suffix.lower() in Image.registered_extensions()
