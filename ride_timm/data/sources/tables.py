"""Tables of images with a header, as CSV, TSV or JSON: which columns are meant, and a row for each image."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ride_timm.data.images import is_image_name
from ride_timm.data.sources.base import TRAIN_NAMES
from ride_timm.data.sources.rows import GUESS, Columns, ImageRow, Listed
from ride_timm.errors import RideError, did_you_mean
from ride_timm.escaping import printable

__all__ = ['Table', 'divide', 'from_records', 'names_columns', 'read_table']

_IMAGE = (
    'path', 'file', 'filepath', 'filename', 'image', 'imagepath', 'img', 'imgpath', 'imagefile', 'imagename',
    'imagefilename', 'imgfilename', 'mediapath', 'imageid', 'fname', 'photo', 'idcode', 'id',
)  # fmt: skip
_LABEL = (
    'label', 'class', 'target', 'category', 'classname', 'labelname', 'categoryname', 'classid', 'labelid',
    'categoryid', 'labels', 'species', 'scientificname', 'classification', 'diagnosis', 'dx', 'y',
    'objectannotationcategory',
)  # fmt: skip
_SPLIT = ('split', 'set', 'subset', 'partition')
_GROUP = ('locationremapped',)  # WILDS; sample_id only of EcoTaxa, since it is as often the number of the image
_RANKS = {'kingdom', 'phylum', 'order', 'family', 'genus'}  # next to these "class" is a rank above the species
_STATUS = 'objectannotationstatus'
_BITS = {'0': False, '1': True, '0.0': False, '1.0': True}
_NONE = {'na', 'nan', 'n/a', 'null', 'none', '#n/a'}
_DELIMITERS = ',\t;|'
_SHOWN = 12  # columns that a message names


class Table(NamedTuple):
    """Names of the columns, and for each row its line or entry, from 1, and its cells."""

    header: list[str]
    body: list[tuple[int, list[str]]]
    unit: str = 'line'


def divide(text: str, file: str, columns: Columns = GUESS) -> Table | None:
    """Divide a text into the cells of a table, with the delimiter that its first line has most of.

    Fields may be quoted, also around delimiters and line ends; lines without any content are passed over.

    Args:
        text: The file's content.
        file: Its name, for messages.
        columns: Columns that are asked for; the delimiter is one that divides their names.

    Returns:
        The table, whose `header` is the first line, whatever it holds; None if that line has one field, which is no
        usual name of a column of images.

    Raises:
        RideError: A field is too long for a table.
    """
    first = next((line for line in re.split('\r\n|\n|\r', text) if line.strip()), '')
    wanted = {name for name in columns if name is not None}

    def merit(delimiter: str) -> tuple[int, int]:
        fields = _fields(first, delimiter)
        return len(wanted.intersection(fields)), len(fields)

    delimiter = max(_DELIMITERS, key=merit)  # the first of equal ones
    header = _fields(first, delimiter)
    if len(header) < 2 and not wanted.intersection(header) and _usual(list(map(_key, header)), _IMAGE) is None:
        return None
    return Table(header, list(_rows(text, delimiter, file))[1:])


def from_records(records: Sequence[dict[str, Any]]) -> Table:
    """A table of JSON objects, each being a row and its keys the columns.

    Args:
        records: The objects; missing keys, nulls and nested values are empty cells.
    """
    header = list(dict.fromkeys(key for record in records for key in record))
    body = [(i, [_cell(record.get(name)) for name in header]) for i, record in enumerate(records, 1)]
    return Table(header, body, 'entry')


def names_columns(header: Sequence[str]) -> bool:
    """Whether the fields are usual names of a column of images and one of labels."""
    keys = list(map(_key, header))
    return _usual(keys, _IMAGE) is not None and _usual(keys, _LABEL) is not None


def read_table(table: Table, file: str, columns: Columns, labelled: bool = True) -> Listed | None:
    """Find the columns of images and labels, by the names given or the usual ones, and read the rows.

    Without a label column the classes may be columns with a single 1 in each row, as in ISIC's tables. EcoTaxa's tables
    have the types of their columns in a second line; of them the rows with the status `validated` are taken.

    Args:
        table: The table.
        file: Its name, for messages.
        columns: Names of columns; those that are None are guessed.
        labelled: Labels are needed.

    Returns:
        The rows; None where no column is named and the first line holds no name of a column.

    Raises:
        RideError: A column is not there or cannot be guessed, or a row lacks an image or a label.
    """
    keys = list(map(_key, table.header))
    image = _column(table.header, columns.image, '--image-column', file)
    if image is None:
        image = _usual(keys, _IMAGE)
    if image is None:
        image = _by_content(table)
    if image is None and columns.label is None:
        return None
    if image is None:
        raise RideError(f'{file} has {_columns(table.header)}, none known to hold images; name it with --image-column.')
    body, ecotaxa, notes = _without_types(_even(table, file), keys, file, labelled)
    if not body:
        raise RideError(f'{file} has a header and no image below it; write a row for each image.')
    chosen = _choose(table.header, body, image, columns, file, labelled, ecotaxa)
    names = [table.header[i] for i in chosen.hot]
    rows = []
    for line, cells in body:
        place = f'{table.unit.capitalize()} {line} of {file}'
        path = cells[image].strip()
        if not path:
            column = printable(table.header[image])
            raise RideError(f'{place} names no image in the column "{column}"; fill it in, or remove the row.')
        label = '' if chosen.label is None else cells[chosen.label].strip()
        if names:
            label = _hot(cells, chosen.hot, names, place)
        elif labelled and not label:
            column = printable(table.header[chosen.label or 0])
            raise RideError(
                f'{place} has no label in the column "{column}" ({printable(path)}); fill it in, or remove the row.'
            )
        split = None if chosen.split is None else cells[chosen.split].strip()
        group = None if chosen.group is None else cells[chosen.group].strip() or None
        rows.append(ImageRow(path, label, line, split, group))
    if labelled:
        notes += _suspicious(rows)
    form = 'an EcoTaxa table' if ecotaxa else 'a table with a column for each class' if names else 'a table'
    return Listed(rows, form, table.unit, (_told(table.header, chosen), *notes))


class _Chosen(NamedTuple):
    """Numbers of columns; `hot` are those with a 1 for the class, where there is no column of labels."""

    image: int
    label: int | None
    split: int | None
    group: int | None
    hot: list[int]


def _choose(
    header: list[str],
    body: list[tuple[int, list[str]]],
    image: int,
    columns: Columns,
    file: str,
    labelled: bool,
    ecotaxa: bool,
) -> _Chosen:
    """The columns that are asked for, or else the usual ones."""
    keys = list(map(_key, header))
    split = _column(header, columns.split, '--split-column', file)
    if split is None:
        split = _split_column(keys, body)
    group = _column(header, columns.group, '--group-column', file)
    if group is None:
        group = _usual(keys, ('sampleid', *_GROUP) if ecotaxa else _GROUP)
    others = [i for i in range(len(header)) if i not in (image, split, group)]
    label = _column(header, columns.label, '--label-column', file)
    if label is None:
        label = _label_column(keys, others)
    hot = _one_hot(body, others) if labelled and label is None else []
    if labelled and label is None and not hot:
        raise RideError(f'{file} has {_columns(header)}, none known to hold labels; name it with --label-column.')
    return _Chosen(image, label, split, group, hot)


def _told(header: Sequence[str], chosen: _Chosen) -> str:
    """What was chosen, in words."""
    parts = [('images are in the column', chosen.image), ('labels in', chosen.label), ('splits in', chosen.split)]
    return ', '.join(f'{what} "{printable(header[i])}"' for what, i in parts if i is not None)


def _suspicious(rows: Sequence[ImageRow]) -> list[str]:
    """Labels that other programs write for none."""
    found = Counter(row.label for row in rows if row.label.lower() in _NONE)
    return [f'the label "{label}" of {number} rows is taken as a class' for label, number in found.items()]


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])]
    except csv.Error:
        return []


def _rows(text: str, delimiter: str, file: str) -> Iterator[tuple[int, list[str]]]:
    """Line and cells of each row, the first line among them."""
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, skipinitialspace=True)
    line = 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1
            if any(map(str.strip, cells)):
                yield start, cells
    except csv.Error as error:
        raise RideError(f'Line {line} of {file} cannot be split into fields ({error}); correct it.') from None


def _even(table: Table, file: str) -> list[tuple[int, list[str]]]:
    """The rows, each with as many cells as there are columns, but for empty ones at the end."""
    width, body = len(table.header), []
    for line, cells in table.body:
        if len(cells) < width or any(cell.strip() for cell in cells[width:]):
            raise RideError(
                f'{table.unit.capitalize()} {line} of {file} has {len(cells)} fields and the first line {width}; write '
                'as many in each line, and quote fields with the delimiter in them.'
            )
        body.append((line, cells))
    return body


def _cell(value: Any) -> str:
    if value is None or isinstance(value, (dict, list)):
        return ''
    return str(value).lower() if isinstance(value, bool) else str(value)


def _key(name: str) -> str:
    return re.sub('[^a-z0-9]', '', name.lower())


def _usual(keys: Sequence[str], names: Sequence[str]) -> int | None:
    return next((keys.index(name) for name in names if name in keys), None)


def _columns(header: Sequence[str]) -> str:
    names = ', '.join(printable(name) for name in header[:_SHOWN])
    return f'the columns {names}{f" and {len(header) - _SHOWN} more" if len(header) > _SHOWN else ""}'


def _column(header: Sequence[str], wanted: str | None, option: str, file: str) -> int | None:
    """The column of that name."""
    if wanted is None:
        return None
    if wanted in header:
        return list(header).index(wanted)
    hint = did_you_mean(wanted, header, ';')
    raise RideError(
        f'{file} has {_columns(header)}, and none called "{wanted}"{hint} choose one of them with {option}.'
    )


def _by_content(table: Table) -> int | None:
    """The only column of files of images, where its own first cell, the name, is none."""
    sample = [cells for _, cells in table.body[:20] if len(cells) == len(table.header)]
    found = [
        i
        for i, name in enumerate(table.header)
        if sample and not is_image_name(name) and all(is_image_name(cells[i]) for cells in sample)
    ]
    return found[0] if len(found) == 1 else None


def _without_types(
    body: list[tuple[int, list[str]]], keys: Sequence[str], file: str, labelled: bool
) -> tuple[list[tuple[int, list[str]]], bool, list[str]]:
    """EcoTaxa's rows without the line of types, and without those whose labels nobody has looked at."""
    if not body or not {cell.strip() for cell in body[0][1]} <= {'[t]', '[f]'}:
        return body, False, []
    body = body[1:]
    if not labelled or _STATUS not in keys:
        return body, True, []
    status = keys.index(_STATUS)
    taken = [row for row in body if row[1][status].strip().lower() == 'validated']
    if body and not taken:
        raise RideError(
            f'None of the {len(body)} rows of {file} is validated; validate some in EcoTaxa, and export again.'
        )
    left = len(body) - len(taken)
    return taken, True, [f'{left} of {len(body)} rows are not validated and left out'] if left else []


def _split_column(keys: Sequence[str], body: Sequence[tuple[int, list[str]]]) -> int | None:
    """A column of a usual name with a training split in it."""
    column = _usual(keys, _SPLIT)
    if column is None or not any(cells[column].strip().lower() in TRAIN_NAMES for _, cells in body):
        return None
    return column


def _label_column(keys: Sequence[str], others: Sequence[int]) -> int | None:
    names = [name for name in _LABEL if name != 'class' or not _RANKS.intersection(keys)]
    return others[0] if len(others) == 1 else _usual(keys, names)


def _one_hot(body: Sequence[tuple[int, list[str]]], others: Sequence[int]) -> list[int]:
    """Columns of zeros and ones; next to others only if each row has a single 1 in them."""
    hot = [i for i in others if all(cells[i].strip() in _BITS for _, cells in body)]
    if len(hot) < 2:
        return []
    alone = len(hot) == len(others)
    return hot if alone or all(sum(_BITS[cells[i].strip()] for i in hot) == 1 for _, cells in body) else []


def _hot(cells: Sequence[str], hot: Sequence[int], names: Sequence[str], place: str) -> str:
    """The only class of a row."""
    found = [name for i, name in zip(hot, names, strict=True) if _BITS[cells[i].strip()]]
    if len(found) != 1:
        what = f'1 for {" and ".join(map(printable, found))}' if found else 'no 1 for any class'
        raise RideError(f'{place} has {what}; give each image exactly one class, or name one column (--label-column).')
    return found[0]
