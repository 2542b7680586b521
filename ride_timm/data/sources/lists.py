"""Data sets given as lists of images and labels, the form that long-tailed splits are published in."""

import logging
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from ride_timm._compat import Reader
from ride_timm.data.images import image_types, open_regular
from ride_timm.data.sources.base import Source, wrap_reader
from ride_timm.data.sources.list_lines import ListLine, parse_list, read_lines
from ride_timm.errors import RideError
from ride_timm.escaping import printable

__all__ = ['ListReader', 'read_class_names', 'read_list']

_logger = logging.getLogger(__name__)


class ListReader(Reader):
    """timm reader of files that are named one by one.

    Args:
        paths: N files.
        names: N names of these files for messages, such as the path as written in a list.
    """

    def __init__(self, paths: Sequence[str], names: Sequence[str]) -> None:
        super().__init__()
        self.paths = list(paths)
        self.names = list(names)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        return open_regular(self.paths[index]), -1

    def __len__(self) -> int:
        return len(self.paths)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self.paths[index] if absolute else self.names[index]
        return os.path.basename(name) if basename else name  # noqa: PTH119, a Path for each of 10^5 names is slow


def read_list(
    file: str | Path, data_dir: str | Path | None = None, names: Sequence[str] | None = None, tell: bool = True
) -> Source:
    """Open the images of a list.

    Args:
        file: Lines of `path label` or `path,label` (see `parse_list`); ImageNet-LT's, Places-LT's and iNaturalist's
            lists are of this form.
        data_dir: Folder that the paths are relative to; None means the list's own.
        names: What numbers stand for, see `name_labels`.
        tell: As in `name_labels`.

    Returns:
        The images in the list's order.

    Raises:
        RideError: If the list or a file in it is missing or malformed, or one image has two labels.
    """
    lines = parse_list(file)
    root = Path(data_dir) if data_dir is not None else Path(file).parent
    if not root.is_dir():
        raise RideError(f'the data folder {root} of the list {file} does not exist: give the folder its paths are in')
    paths = _find_files(lines, file, root)
    _check_repeats(lines, paths, file)
    return wrap_reader(
        ListReader(paths, [line.path for line in lines]),
        [line.label for line in lines],
        str(file),
        names=names,
        place=lambda index: f'line {lines[index].line} of {file}',
        tell=tell,
    )


def read_class_names(file: str | Path) -> tuple[str, ...]:
    """Read a file with one class name on each line; the first line names the class with the number 0.

    Args:
        file: The file.

    Returns:
        C names.

    Raises:
        RideError: If the file cannot be read, has a blank line between names, or a name twice.
    """
    lines = read_lines(file, 'the file of class names')
    first: dict[str, int] = {}
    for number, name in lines:
        if name in first:
            raise RideError(
                f'the file of class names {file} has "{printable(name)}" on the lines {first[name]} and {number}: '
                'give every class a name of its own'
            )
        first[name] = number
    gap = next((place for place, (number, _) in enumerate(lines, 1) if number != place), None)
    if gap is not None:
        raise RideError(
            f'line {gap} of the file of class names {file} is blank, so the numbers of the later classes are unclear: '
            'fill or remove it'
        )
    return tuple(first)


def _find_files(lines: Sequence[ListLine], file: str | Path, root: Path) -> list[str]:
    """The file of each line, each folder being listed once; a list may have 10^5 lines, on a slow disk."""
    folders: dict[str, dict[str, str]] = {}
    paths, missing = [], []
    for line in lines:
        found = _find_file(os.path.join(root, line.path), folders)  # noqa: PTH118, as above
        if found is None:
            missing.append(line)
        paths.append(found or '')
    if missing:
        first = missing[0]
        number = f'{len(missing)} of the {len(lines)} images' if len(missing) > 1 else 'an image'
        raise RideError(
            f'{number} of {file} cannot be found, first {printable(str(root / first.path))} (line {first.line}): check '
            'the data folder (--data-dir), which the paths are relative to'
        )
    return paths


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


def _check_repeats(lines: Sequence[ListLine], paths: Sequence[str], file: str | Path) -> None:
    """Refuse an image with two labels; say so when one is listed twice with the same label."""
    first: dict[str, ListLine] = {}
    repeated = []
    for line, path in zip(lines, map(os.path.normpath, paths), strict=True):
        other = first.setdefault(path, line)
        if other.label != line.label:
            raise RideError(
                f'{file} gives the image {printable(line.path)} two labels, {printable(other.label)} on line '
                f'{other.line} and {printable(line.label)} on line {line.line}: remove the wrong line'
            )
        if other is not line:
            repeated.append(line)
    if repeated:
        _logger.warning(
            '%d lines of %s repeat an image, first line %d (%s): it counts each time',
            len(repeated), file, repeated[0].line, printable(repeated[0].path),
        )  # fmt: skip
