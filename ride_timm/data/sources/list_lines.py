"""The lines of list files: each image and its label."""

import codecs
import csv
import re
from pathlib import Path

from ride_timm.data.images import is_image_name
from ride_timm.data.sources.rows import ImageRow, Listed
from ride_timm.data.sources.tables import names_columns
from ride_timm.errors import RideError
from ride_timm.escaping import printable

__all__ = ['parse_lines', 'read_lines', 'read_text']

_MAX_BYTES = 2**29  # of a list; some million lines


def read_text(file: str | Path, what: str) -> str:
    """Read a text file, with or without a byte-order mark.

    Args:
        file: A text file in UTF-8, or in UTF-16 with a mark.
        what: What the file is, for messages.

    Returns:
        Its content.

    Raises:
        RideError: If the file is missing, not text in these encodings, or blank.
    """
    try:
        with Path(file).open('rb') as opened:
            data = opened.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, 'strerror', None) or error
        raise RideError(f'{what} {file} cannot be read ({reason}); give the path of a text file.') from error
    if len(data) > _MAX_BYTES:
        raise RideError(
            f'{what} {file} has more than {_MAX_BYTES:,} bytes; give the path of a text file, or parts of it.'
        )
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode('utf-16' if utf16 else 'utf-8-sig')
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b'\n') + 1
        raise RideError(f'{what} {file} is not in UTF-8 (line {line}); save it in that encoding.') from error
    if not text.strip():
        raise RideError(f'{what} {file} is empty; write one entry on each line.')
    return text


def read_lines(file: str | Path, what: str) -> list[tuple[int, str]]:
    """Read the lines of a text file that are not blank, with any line ends.

    Returns:
        (number from 1, text without blanks around it) of each line.

    Raises:
        RideError: As in `read_text`.
    """
    return _lines(read_text(file, what))


def parse_lines(text: str, file: str, labelled: bool = True) -> Listed:
    """Read a list of images and labels.

    A line is divided at its last blank, or if it has none at its last comma; in a `.csv` at its comma or semicolon and
    in a `.tsv` at its tab, fields being quoted where needed. A first line `path label` is passed over.

    Args:
        text: The list.
        file: Its name, for messages.
        labelled: Labels are needed; else a line may be a path alone.

    Returns:
        Its images, in order; at least one.

    Raises:
        RideError: If a line is no pair of an image and a label; names the line.
    """
    lines = _lines(text)
    suffix = Path(file).suffix.lower()
    separator = '\t' if suffix == '.tsv' else ';' if ',' not in lines[0][1] and ';' in lines[0][1] else ','

    def fields(line: str) -> list[str]:
        if suffix not in ('.csv', '.tsv'):
            return line.rsplit(None, 1) if len(line.split(None, 1)) > 1 else line.rsplit(',', 1)
        try:
            return next(csv.reader([line], delimiter=separator, skipinitialspace=True))
        except csv.Error:  # a line that is no CSV has no fields, which is reported with its number
            return []

    if names_columns(fields(lines[0][1])):
        lines = lines[1:]
    if not lines:
        raise RideError(f'The list {file} has a header and no image; write "path label" on each line.')
    found = []
    for number, line in lines:
        row = [field.strip() for field in fields(line)]
        if not labelled and (len(row) != 2 or is_image_name(row[1])):
            row = [line, '']
        elif len(row) != 2 or not all(row) or is_image_name(row[1]):
            raise RideError(
                f'Line {number} of {file}, "{printable(line[:100])}", is not an image and a label; write "path label", '
                'or in a table a header that names the columns.'
            )
        found.append(ImageRow(row[0], row[1], number))
    return Listed(found, 'a list of images')


def _lines(text: str) -> list[tuple[int, str]]:
    # not str.splitlines, which also splits at characters that may stand in a file name
    numbered = enumerate(re.split('\r\n|\n|\r', text), 1)
    return [(number, line.strip()) for number, line in numbered if line.strip()]
