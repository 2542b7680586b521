"""The lines of list files: which separator they use, whether there is a header, and each line's image and label."""

import codecs
import csv
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

from PIL import Image

from ride_timm.errors import RideError
from ride_timm.escaping import printable

__all__ = ['ListLine', 'parse_list', 'read_lines']

Fields: TypeAlias = list[str]

_SEPARATORS = {'\t': 'tab', ',': 'comma', ';': 'semicolon', ' ': 'space'}
_MAX_BYTES = 2**29  # of a list; some million lines
_SAMPLE = 200  # lines that the separator is found from
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

    The separator (blank, tab, comma or semicolon) is the one that leaves image names before it. The label is what
    follows the last separator, so a name may hold blanks or commas; with a header that names them, columns may come in
    any order and number. CSV fields may be quoted.

    Args:
        file: The list.

    Returns:
        Its images, in order; at least one.

    Raises:
        RideError: If the file cannot be read, or a line is no pair of an image and a label; names the line.
    """
    lines = read_lines(file, 'the list')
    separator = _find_separator([text for _, text in lines[:_SAMPLE]], Path(file).suffix.lower())
    header = _fields(lines[0][1], separator)
    columns = _header_columns(header)
    if columns is None and _is_header(header, lines, separator):
        if len(header) != 2:
            raise _line_error(file, lines[0], f'names no column of paths (such as {_PATH_COLUMNS[0]}) and labels')
        columns = (0, 1)
    body = lines if columns is None else lines[1:]
    if not body:
        raise RideError(f'the list {file} has a header and no image: write "path label" on each line')
    pick = _picker(columns, len(header) if columns else 2, separator)
    return [_parse(file, line, separator, pick) for line in body]


def _parse(
    file: str | Path, line: tuple[int, str], separator: str, pick: Callable[[Fields], tuple[str, str] | None]
) -> ListLine:
    pair = pick(_fields(line[1], separator))
    if pair is None or not all(pair):
        raise _line_error(file, line, 'is no image and label')
    path, label = pair
    numbers = label.split()
    # blanks are part of a name, a tab divides columns
    if (
        _is_image(label)
        or '\t' in label
        or (len(numbers) > 1 and all(re.fullmatch(r'-?[\d.]+', number) for number in numbers))
    ):
        raise _line_error(file, line, f'would give the image {path} the label "{label}"')
    return ListLine(path, label, line[0])


def _picker(columns: tuple[int, int] | None, width: int, separator: str) -> Callable[[Fields], tuple[str, str] | None]:
    """A function from a line's fields to (path, label); None for a line with the wrong number of fields."""
    if width == 2 and columns in (None, (0, 1)):
        return lambda fields: (separator.join(fields[:-1]).strip(), fields[-1].strip()) if len(fields) > 1 else None
    assert columns is not None
    path, label = columns
    return lambda fields: (fields[path].strip(), fields[label].strip()) if len(fields) == width else None


def _line_error(file: str | Path, line: tuple[int, str], what: str) -> RideError:
    text = printable(line[1] if len(line[1]) <= 100 else f'{line[1][:100]}...')
    return RideError(
        f'line {line[0]} of {file}, "{text}", {what}: write "path label" or "path,label", and quote names with commas'
    )


def _fields(text: str, separator: str) -> Fields:
    """The fields of a line; with blanks as separator two at most, the path up to its image suffix and the rest."""
    if separator == ' ':
        match = _image_and_rest().fullmatch(text)
        return list(match.groups()) if match else text.rsplit(None, 1)
    try:
        return next(csv.reader([text], delimiter=separator, skipinitialspace=True))
    except csv.Error:  # a line that is no CSV has no fields, which is reported with its number
        return []


def _find_separator(sample: Sequence[str], suffix: str) -> str:
    """The separator that leaves a path of an image before it and something else behind it, in most lines."""
    first = {'.csv': ',', '.tsv': '\t'}.get(suffix, ' ')

    def score(separator: str) -> tuple[int, bool, bool]:
        pairs = sum(_is_pair(_fields(text, separator)) for text in sample)
        return pairs, _header_columns(_fields(sample[0], separator)) is not None, separator == first

    return max(_SEPARATORS, key=score)


def _is_pair(fields: Fields) -> bool:
    images = [_is_image(field.strip()) for field in fields]
    return len(fields) > 1 and any(images) and not images[-1]


def _is_header(header: Fields, lines: Sequence[tuple[int, str]], separator: str) -> bool:
    """Whether the first line holds no image and the second one does."""
    if len(lines) < 2 or any(_is_image(field.strip()) for field in header):
        return False
    return any(_is_image(field.strip()) for field in _fields(lines[1][1], separator))


def _header_columns(header: Fields) -> tuple[int, int] | None:
    """Columns of path and label, where the first line names them."""
    names = [field.strip().lower().replace(' ', '_') for field in header]
    path = next((names.index(name) for name in _PATH_COLUMNS if name in names), None)
    label = next((names.index(name) for name in _LABEL_COLUMNS if name in names), None)
    return None if path is None or label is None else (path, label)


def _is_image(text: str) -> bool:
    return text[text.rfind('.') :].lower() in _suffixes() if '.' in text else False


@cache
def _suffixes() -> frozenset[str]:
    return frozenset(Image.registered_extensions())


@cache
def _image_and_rest() -> re.Pattern[str]:
    known = '|'.join(re.escape(suffix) for suffix in sorted(_suffixes()))
    return re.compile(rf'(.*(?:{known}))\s+(\S.*)', re.IGNORECASE)
