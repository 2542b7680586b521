"""Finding image files that have no labels, from what a user names."""

import codecs
import glob
import logging
import mimetypes
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ride_timm.data.images import image_types

__all__ = ['FoundImages', 'find_images', 'is_visible', 'list_images', 'natural_order', 'tell_others']

_logger = logging.getLogger(__name__)

ARRAYS = '.npy'

_LEFT_BEHIND = {'__MACOSX', '@eaDir', 'Thumbs.db', 'desktop.ini', '$RECYCLE.BIN', 'System Volume Information'}


class FoundImages(NamedTuple):
    """Image files, and one clause for every name that led to none, or to a folder that cannot be read."""

    paths: list[str]
    problems: list[str]


def find_images(wanted: Iterable[str], stdin: BinaryIO | None = None) -> FoundImages:
    """Find image files, each once.

    A named file is taken whatever its type, even if it is none that can be read. Folders are searched recursively for
    all types that Pillow reads, through links too; hidden files and folders (`.name`, `__MACOSX`) are left out.

    Args:
        wanted: Names of files, folders and globs; a name that exists is no glob.
        stdin: What the name `-` stands for: a list of files and folders, one a line and none of them a glob, in the
            encoding of file names; None: `-` is a name.

    Returns:
        The files in the order of the names, those of a folder or a glob in natural order.
    """
    found: dict[Path, str] = {}
    problems: list[str] = []
    for name in wanted:
        lines = None if stdin is None or name != '-' else _lines(stdin)
        for entry in [name] if lines is None else lines:
            for path in _expand(entry, lines is None, problems):
                # the file itself is not resolved: two links to one file are two images, as two copies are
                found.setdefault(Path(path).parent.resolve() / Path(path).name, path)
    return FoundImages(list(found.values()), problems)


def _lines(file: BinaryIO) -> list[str]:
    lines = file.read().removeprefix(codecs.BOM_UTF8).split(b'\n')
    return [os.fsdecode(line.removesuffix(b'\r')) for line in lines if line not in (b'', b'\r')]


def _expand(name: str, expand: bool, problems: list[str]) -> Iterator[str]:
    try:
        mode = Path(name or '\0').stat().st_mode  # Path('') is the current folder
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        matches = sorted(glob.glob(name, recursive=True), key=natural_order) if expand else []  # noqa: PTH207  absolute too
        if not matches:
            problems.append(f'there is no image "{name}" ({getattr(error, "strerror", None) or error})')
        for match in matches:
            yield from _expand(match, False, problems)
        return
    if stat.S_ISDIR(mode):

        def note(error: OSError) -> None:
            problems.append(f'the folder {error.filename} cannot be read ({error.strerror})')

        images, others = list_images(Path(name), note)
        tell_others(name, others)
        if not images:
            problems.append(f'no image lies in the folder {name}')
        yield from images
    elif stat.S_ISREG(mode):
        yield name
    else:
        problems.append(f'{name} is neither a file nor a folder')


def list_images(
    folder: Path, note: Callable[[OSError], None], passed: Iterable[Path] = ()
) -> tuple[list[str], list[Path]]:
    """The images below a folder; each folder is searched once, also where links make a circle.

    Args:
        folder: Where to search.
        note: Called with the error of a folder that cannot be read.
        passed: Folders, resolved, that links do not lead back into.

    Returns:
        The images in natural order, a folder's own before those of its folders (arrays, `.npy`, only where there are no
        pictures, next to which they are something else), and the files of types of images that
        cannot be read here.
    """
    types = {*image_types(), ARRAYS}
    images: list[str] = []
    others: list[Path] = []
    seen = set(passed)
    for root, folders, files in os.walk(folder, onerror=note, followlinks=True):
        place = Path(root).resolve()
        folders[:] = [] if place in seen else sorted(filter(is_visible, folders), key=natural_order)
        if place in seen:
            continue
        seen.add(place)
        for path in (Path(root, file) for file in sorted(filter(is_visible, files), key=natural_order)):
            if path.suffix.lower() in types:
                images.append(str(path))
            elif (mimetypes.guess_type(path.name)[0] or '').startswith('image/'):
                others.append(path)
    pictures = [path for path in images if not path.lower().endswith(ARRAYS)]
    return pictures or images, others


def tell_others(folder: str | Path, others: Sequence[Path]) -> None:
    """Warn of images that are left out.

    Args:
        folder: Where they are.
        others: Of `list_images`.
    """
    if others:
        _logger.warning(
            '%d images in %s are left out because Pillow does not read them here, first %s: convert them',
            len(others), folder, others[0],
        )  # fmt: skip


def is_visible(name: str) -> bool:
    """Whether a file or folder is a person's own, and not what archives, cameras and network drives leave behind."""
    return not name.startswith('.') and name not in _LEFT_BEHIND


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sort key that counts: 2 before 10; the name itself breaks ties ('1' and '01', 'Cat' and 'cat').

    As timm's `natural_key`, which fails on names such as `²` and leaves ties to the order of a hash table.

    Args:
        name: Of a file or a class. Only ASCII digits are numbers.
    """
    parts = re.split(r'([0-9]+)', name)
    return [int(part) if i % 2 else part.lower() for i, part in enumerate(parts)], name
