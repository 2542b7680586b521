"""Data sets given by a file that names the images: lists, as long-tailed splits are published, tables and JSON."""

import logging
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple

from ride_timm._compat import Reader
from ride_timm.data.finding import is_visible
from ride_timm.data.images import image_types, open_regular
from ride_timm.data.sources.base import TRAIN_NAMES, Source, split_names, wrap_reader
from ride_timm.data.sources.crops import cut_out, one_label_each, part_name, with_boxes
from ride_timm.data.sources.list_lines import read_lines
from ride_timm.data.sources.reading import read_rows
from ride_timm.data.sources.rows import GUESS, Box, Columns, ImageRow, Listed
from ride_timm.errors import RideError
from ride_timm.escaping import printable

__all__ = [
    'Crop', 'ListReader', 'Parts', 'find_parts', 'has_split', 'open_unlabelled', 'read_class_names', 'read_list',
]  # fmt: skip

_logger = logging.getLogger(__name__)

BOXES = 'boxes'


class Crop(NamedTuple):
    """Parts of images instead of images.

    `boxes` is `boxes` for those of the file that names the images, or another file with boxes, as MegaDetector's
    results; those of a lower `confidence` are left out.
    """

    boxes: str
    confidence: float = 0.2


class Parts(NamedTuple):
    """Images, or parts of them: the row that names each, its file, and what it is called in messages."""

    rows: list[ImageRow]
    paths: list[str]
    names: list[str]


class ListReader(Reader):
    """timm reader of files that are named one by one.

    Args:
        paths: N files.
        names: N names of these files for messages, such as the path as written in a list.
        boxes: The part of each file that is read; None: all of it.
        groups: What each image belongs to (a place, a patient), where the list says so.
    """

    def __init__(
        self,
        paths: Sequence[str],
        names: Sequence[str],
        boxes: Sequence[Box | None] | None = None,
        groups: Sequence[str | None] | None = None,
    ) -> None:
        super().__init__()
        self.paths = list(paths)
        self.names = list(names)
        self.boxes = None if boxes is None or not any(boxes) else list(boxes)
        self.groups = None if groups is None or not any(groups) else tuple(groups)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        file, box = open_regular(self.paths[index]), None if self.boxes is None else self.boxes[index]
        return file if box is None else cut_out(file, box), -1

    def __len__(self) -> int:
        return len(self.paths)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self.names[index]
        if absolute:
            name = part_name(self.paths[index], None if self.boxes is None else self.boxes[index])
        return os.path.basename(name) if basename else name  # noqa: PTH119, a Path for each of 10^5 names is slow


def read_list(
    file: str | Path,
    data_dir: str | Path | None = None,
    names: Sequence[str] | None = None,
    tell: bool = True,
    *,
    columns: Columns = GUESS,
    split: str | None = None,
    crop: Crop | None = None,
) -> Source:
    """Open the images that a file names.

    Args:
        file: Of any form that `read_rows` reads; ImageNet-LT's, Places-LT's and iNaturalist's lists are of one.
        data_dir: Folder that the paths are relative to; None means the file's own.
        names: What numbers stand for, see `name_labels`.
        tell: As in `name_labels`.
        columns: Columns of a table, see `read_rows`.
        split: The split whose rows are taken, in a file that says of which each is; None takes all.
        crop: Take parts of the images.

    Returns:
        The images in the list's order.

    Raises:
        RideError: If the file or an image is missing or malformed, or one image has two labels.
    """
    listed = read_rows(file, columns)
    parts = find_parts(listed, file, data_dir, split=split, crop=crop)
    _check_repeats(parts, listed, file)
    return wrap_reader(
        ListReader(parts.paths, parts.names, [row.box for row in parts.rows], [row.group for row in parts.rows]),
        [row.label for row in parts.rows],
        f'{file} ({split})' if split is not None and any(row.split for row in parts.rows) else str(file),
        names=names,
        place=lambda index: f'{listed.unit} {parts.rows[index].line} of {file}',
        tell=tell,
    )


def open_unlabelled(
    file: str | Path,
    data_dir: str | Path | None = None,
    *,
    columns: Columns = GUESS,
    crop: Crop | None = None,
) -> ListReader:
    """Open the images that a file names, each once, whether or not it has labels.

    Args:
        file: As in `read_list`, like the other arguments.
        data_dir: See there.
        columns: See there.
        crop: See there.

    Returns:
        A reader of the images; a file that is missing is found out when it is read.

    Raises:
        RideError: The file cannot be read, or names no image.
    """
    parts = find_parts(read_rows(file, columns, labelled=False), file, data_dir, crop=crop, lenient=True)
    first: dict[tuple[str, Box | None], int] = {}
    for i, (row, path) in enumerate(zip(parts.rows, parts.paths, strict=True)):
        first.setdefault((path, row.box), i)
    kept = list(first.values())
    rows = [parts.rows[i] for i in kept]
    return ListReader(
        [parts.paths[i] for i in kept],
        [parts.names[i] for i in kept],
        [row.box for row in rows],
        [row.group for row in rows],
    )


def find_parts(
    listed: Listed,
    file: str | Path,
    data_dir: str | Path | None = None,
    *,
    split: str | None = None,
    crop: Crop | None = None,
    lenient: bool = False,
) -> Parts:
    """Find the files of a list's images, and the parts of them that are to be images.

    Args:
        listed: The rows.
        file: Where they are written.
        data_dir: As in `read_list`.
        split: See there.
        crop: See there.
        lenient: A missing file keeps the path as written.

    Returns:
        An image for each row, or for each box of one. Images that show several classes are left out.

    Raises:
        RideError: The split or a file is missing, a path leads out of the folder, or nothing is left.
    """
    own = Path(file) if Path(file).is_dir() else Path(file).parent  # a package may be named by its folder
    root = Path(data_dir) if data_dir is not None else own
    if not root.is_dir():
        raise RideError(f'The data folder {root} of the list {file} does not exist; give the folder its paths are in.')
    rows = listed.rows if split is None else _of_split(listed.rows, file, split)
    if listed.many and (crop is None or crop.boxes != BOXES):
        rows, several = one_label_each(rows)
        if several:
            _logger.warning(
                '%d of the %d images of %s show several classes and are left out; if there are boxes, use --crop boxes',
                several, several + len(rows), file,
            )  # fmt: skip
        if not rows:
            raise RideError(f'Every image of {file} shows several classes; give one with boxes and --crop boxes.')
    paths = _find_files(rows, listed, file, root, lenient)
    if crop is None:
        return Parts(list(rows), paths, [row.path for row in rows])
    boxes = None if crop.boxes == BOXES else _boxes_of(crop.boxes, root, paths)
    indices, found = with_boxes(rows, boxes, crop.confidence)
    where = file if boxes is None else crop.boxes
    if not found:
        raise RideError(
            f'{where} has no box of confidence {crop.confidence:g} or more on the {len(rows)} images; give a file with '
            'boxes, a lower --crop-confidence, or leave --crop out.'
        )
    images = len(set(paths))
    _logger.log(
        logging.WARNING if lenient else logging.INFO,  # predict leaves them out, which its user must know
        '%d boxes of %s on %d of the %d images are taken; images without one are left out',
        len(found), where, len({paths[index] for index in indices}), images,
    )  # fmt: skip
    # parts of one image stay together
    parts = [
        rows[i]._replace(box=box, group=rows[i].group or rows[i].path) for i, box in zip(indices, found, strict=True)
    ]
    return Parts(parts, [paths[index] for index in indices], [part_name(row.path, row.box) for row in parts])


def has_split(file: str | Path, split: str, columns: Columns = GUESS) -> bool:
    """Whether a file has images of a split; one that names no splits has training images alone.

    Args:
        file: The file.
        split: Name of the split.
        columns: Columns of a table, see `read_rows`.

    Raises:
        RideError: It cannot be read.
    """
    found = {row.split.lower() for row in read_rows(file, columns).rows if row.split is not None}
    return bool(found.intersection(split_names(split.lower()))) if found else split in TRAIN_NAMES


def _of_split(rows: Sequence[ImageRow], file: str | Path, split: str) -> list[ImageRow]:
    """The rows of a split, under the first of its names that occurs."""
    if all(row.split is None for row in rows):
        if split in TRAIN_NAMES:
            return list(rows)
        raise RideError(
            f'{file} does not say which images are to evaluate on; name the column with --split-column, or take a part '
            'of the training images with --val-fraction 0.2.'
        )
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.split or ''] = counts.get(row.split or '', 0) + 1
    for name in split_names(split):
        found = [row for row in rows if (row.split or '').lower() == name.lower()]
        if found:
            return found
    have = ', '.join(f'"{printable(name)}" ({number})' for name, number in list(counts.items())[:12])
    raise RideError(
        f'{file} has no images of the split {split} but of {have}; name one of them with --train-split or --val-split.'
    )


def _boxes_of(file: str, root: Path, paths: Sequence[str]) -> dict[int, list[Box]]:
    """The boxes that a file has for images, by the number of the image."""
    listed = read_rows(file, labelled=False)
    boxes: dict[str, list[Box]] = {}
    for row, path in zip(listed.rows, _find_files(listed.rows, listed, file, root, lenient=True), strict=True):
        if row.box is not None:
            boxes.setdefault(os.path.normpath(path), []).append(row.box)
    return {i: found for i, path in enumerate(paths) if (found := boxes.get(os.path.normpath(path)))}


def read_class_names(file: str | Path) -> tuple[str, ...]:
    """Read a file with one class name on each line; the first line names the class with the number 0.

    Args:
        file: The file.

    Returns:
        C names.

    Raises:
        RideError: If the file cannot be read, has a blank line between names, or a name twice.
    """
    lines = read_lines(file, 'The file of class names')
    first: dict[str, int] = {}
    for number, name in lines:
        if name in first:
            raise RideError(
                f'The file of class names {file} has "{printable(name)}" on the lines {first[name]} and {number}; '
                'give every class a name of its own.'
            )
        first[name] = number
    gap = next((place for place, (number, _) in enumerate(lines, 1) if number != place), None)
    if gap is not None:
        raise RideError(
            f'Line {gap} of the file of class names {file} is blank, so the numbers of the later classes are unclear; '
            'fill or remove it.'
        )
    return tuple(first)


def _find_files(
    rows: Sequence[ImageRow], listed: Listed, file: str | Path, root: Path, lenient: bool = False
) -> list[str]:
    """The file of each row, each folder being listed once; a list may have 10^5 rows, on a slow disk."""
    folders: dict[str, dict[str, str]] = {}
    paths: list[str] = []
    missing: list[int] = []
    base = str(root)
    for index, row in enumerate(rows):
        if listed.contained:
            _refuse_outside(row, listed, file, root)
        path = os.path.join(base, row.path)  # noqa: PTH118, as above
        found = _find_file(path, folders)
        paths.append(found or path)
        if found is None:
            missing.append(index)
    below = _below(root) if any(_is_plain(rows[index]) for index in missing) else {}
    still: list[int] = []
    for index in missing:
        row = rows[index]
        places = below.get(unicodedata.normalize('NFC', row.path), []) if _is_plain(row) else []
        if len(places) > 1:
            raise RideError(
                f'The image {printable(row.path)} ({listed.unit} {row.line} of {file}) may be {printable(places[0])} '
                f'or {printable(places[1])}; write the folder before the name, or give another --data-dir.'
            )
        if len(places) == 1:
            paths[index] = places[0]
        else:
            still.append(index)
    if len(still) < len(missing):
        number = len(missing) - len(still)
        _logger.info('%d of the %d images of %s lie in folders below %s', number, len(rows), file, root)
    if still and not lenient:
        first = rows[still[0]]
        which = f'{len(still)} of the {len(rows)} images' if len(still) > 1 else 'An image'
        raise RideError(
            f'{which} of {file} cannot be found, first {printable(str(root / first.path))} ({listed.unit} '
            f'{first.line}); check the data folder (--data-dir), which the paths are relative to.'
        )
    return paths


def _is_plain(row: ImageRow) -> bool:
    """Whether the row names no folder."""
    return '/' not in row.path and '\\' not in row.path


def _refuse_outside(row: ImageRow, listed: Listed, file: str | Path, root: Path) -> None:
    """No path in a file of exchange leads out of the data folder."""
    parts = PurePosixPath(row.path.replace('\\', '/'))
    if '://' in row.path:
        raise RideError(
            f'{listed.unit.capitalize()} {row.line} of {file} is at the address {printable(row.path)}; download '
            'the images, and write their paths.'
        )
    outside = parts.is_absolute() and not parts.is_relative_to(root.absolute())
    if '..' in parts.parts or PureWindowsPath(row.path).drive or outside:
        raise RideError(
            f'{listed.unit.capitalize()} {row.line} of {file} names {printable(row.path)}, which may lie outside of '
            f'{root}; write paths relative to the data folder.'
        )


def _below(root: Path) -> dict[str, list[str]]:
    """The images in all folders below one, by their names with and without suffix."""
    found: dict[str, list[str]] = {}
    types = image_types()
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(filter(is_visible, folders))
        for name in filter(is_visible, files):
            stem, suffix = os.path.splitext(name)  # noqa: PTH122
            if suffix.lower() in types:
                place = os.path.join(folder, name)  # noqa: PTH118
                for key in (unicodedata.normalize('NFC', name), unicodedata.normalize('NFC', stem)):
                    found.setdefault(key, []).append(place)
    return found


def _find_file(path: str, folders: dict[str, dict[str, str]]) -> str | None:
    """The path if there is such a file, also where only its slashes or its Unicode form are written differently."""
    folder, name = os.path.split(path)
    if folder not in folders:
        folders[folder] = _listing(folder)
    # archives made on a Mac hold decomposed names
    found = folders[folder].get(name) or folders[folder].get(unicodedata.normalize('NFC', name))
    if found is not None:
        return path if found == name else os.path.join(folder, found)  # noqa: PTH118, as above
    if os.path.isfile(path):  # noqa: PTH113, a file system that tells names apart in another way than here
        return path
    for suffix in image_types():  # ids are often written without
        if name + suffix in folders[folder]:
            return path + suffix
    return _find_file(path.replace('\\', '/'), folders) if '\\' in path else None


def _listing(folder: str) -> dict[str, str]:
    """Names of the files in a folder, each also under its composed form."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_file()]
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return {}
    return {unicodedata.normalize('NFC', name): name for name in names} | {name: name for name in names}


def _check_repeats(parts: Parts, listed: Listed, file: str | Path) -> None:
    """Refuse an image with two labels; say so when one is listed twice with the same label."""
    first: dict[tuple[str, Box | None], ImageRow] = {}
    repeated = []
    for row, path in zip(parts.rows, map(os.path.normpath, parts.paths), strict=True):
        other = first.setdefault((path, row.box), row)
        if other.label != row.label:
            raise RideError(
                f'{file} gives the image {printable(row.path)} two labels, {printable(other.label)} on {listed.unit} '
                f'{other.line} and {printable(row.label)} on {listed.unit} {row.line}; remove the wrong one.'
            )
        if other is not row:
            repeated.append(row)
    if repeated:
        _logger.warning(
            '%d %ss of %s repeat an image, first %s %d (%s); it counts each time',
            len(repeated), listed.unit, file, listed.unit, repeated[0].line, printable(repeated[0].path),
        )  # fmt: skip
