"""Finding unreadable images, and images on both sides, before a training starts instead of hours into it."""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tqdm import tqdm

from ride_timm.data.datasets import DataSplit
from ride_timm.data.scan import content_digest
from ride_timm.errors import RideError
from ride_timm.escaping import printable
from ride_timm.logs import interactive

__all__ = ['check_apart', 'check_images', 'find_unreadable', 'tell_copies']

_logger = logging.getLogger(__name__)

_THREADS = 4  # Pillow decodes outside Python's global lock
_CHUNK = 64 * _THREADS  # images between two reports of progress
_NAMED = 3  # files that a message names


def find_unreadable(split: DataSplit, progress: Callable[[int], object] | None = None) -> list[tuple[str, str]]:
    """Decode every image once and list those that fail.

    Args:
        split: The images.
        progress: Called now and then with the number of images decoded since the last call.

    Returns:
        (file, reason) of each unreadable image, in the order of the split.
    """
    found: list[tuple[str, str]] = []
    size = len(split.dataset)
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, size, _CHUNK):
            chunk = range(start, min(start + _CHUNK, size))
            reasons = pool.map(split.dataset.unreadable, chunk)
            found += [
                (split.dataset.filename(i, absolute=True), why) for i, why in zip(chunk, reasons, strict=True) if why
            ]
            if progress is not None:
                progress(len(chunk))
    return found


def check_images(split: DataSplit) -> None:
    """Refuse a split that holds unreadable images.

    Args:
        split: The images.

    Raises:
        RideError: If an image cannot be decoded; names the first few and the number of all.
    """
    with tqdm(total=len(split.dataset), desc='Checking', unit='image', leave=False, disable=not interactive()) as bar:
        found = find_unreadable(split, bar.update)
    if not found:
        return
    named = ', '.join(f'{path} ({reason})' for path, reason in found[:_NAMED])
    rest = f' and {len(found) - _NAMED} more' if len(found) > _NAMED else ''
    raise RideError(
        f'{len(found)} of {len(split.dataset)} images of {split.source} cannot be read: '
        f'{named}{rest}; remove or replace them.'
    )


def check_apart(train: DataSplit, val: DataSplit) -> None:
    """Refuse evaluation images that are training images too.

    Files are the same if they lie at the same place, through whatever links their folders are reached; copies and
    links of single files are for a comparison of contents, `tell_copies`.

    Args:
        train: The training images.
        val: The evaluation images.

    Raises:
        RideError: If they share an image; names the first and the number of all.
    """
    places = train.dataset.locations, val.dataset.locations
    if places[0] is None or places[1] is None:
        return
    folders: dict[str, str] = {}
    known = set(_real(places[0], folders))
    shared = [place for place in _real(places[1], folders) if place in known]
    if shared:
        number = 'All' if len(shared) == len(val.targets) else f'{len(shared)} of the'
        raise RideError(
            f'{number} {len(val.targets)} evaluation images ({val.source}) are training images too, first '
            f'{printable(shared[0])}; evaluate on images that were not trained on, such as those of --val-fraction 0.2.'
        )


def tell_copies(train: DataSplit, val: DataSplit) -> None:
    """Log a warning where files with the same content are on both sides, or under different classes.

    Args:
        train: The training images.
        val: The evaluation images.
    """
    first: dict[bytes, tuple[str, str, bool]] = {}
    sides: list[str] = []
    classes: list[str] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for split in (train, val):
            digests = pool.map(partial(_digest, split), range(len(split.targets)))
            for index, digest in enumerate(digests):
                if digest is None:
                    continue
                place, name = split.dataset.filename(index, absolute=True), split.class_names[int(split.targets[index])]
                other, label, trained_on = first.setdefault(digest, (place, name, split is train))
                pair = f'{printable(other)} = {printable(place)}'
                classes += [pair] if label != name else []
                sides += [pair] if trained_on and split is val else []
    if sides:
        _logger.warning(
            '%d of the %d evaluation images %s too, which inflates the accuracy, first %s; `ride-timm data` lists them',
            len(sides), len(val.targets), 'is a training image' if len(sides) == 1 else 'are training images', sides[0],
        )  # fmt: skip
    if classes:
        _logger.warning(
            'The same file is in different classes%s, first %s; `ride-timm data` lists them',
            f' ({len(classes)} times)' if len(classes) > 1 else '', classes[0],
        )  # fmt: skip


def _digest(split: DataSplit, index: int) -> bytes | None:
    """Identifies the content of a file; None in a source without files."""
    opened = split.dataset.open(index)
    if opened is None:
        return None
    with opened as file:
        return content_digest(file.read())


def _real(paths: list[str], folders: dict[str, str]) -> list[str]:
    """The paths without links among their folders, each folder being resolved once."""
    real = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            # rows of tables have names that are no places
            folders[folder] = os.path.realpath(folder) if os.path.exists(folder) else folder  # noqa: PTH110
        real.append(os.path.join(folders[folder], name))  # noqa: PTH118, a Path for each is slow
    return real
