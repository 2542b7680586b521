"""Image folders: one folder per class, whose name is the label."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from timm.data import create_dataset, get_img_extensions

from ride_timm.data.finding import natural_order
from ride_timm.data.sources import TRAIN_NAMES, Source, split_names
from ride_timm.errors import RideError

__all__ = ['find_split_folder', 'read_folder']

_logger = logging.getLogger(__name__)

_OTHER_IMAGES = ('.avif', '.bmp', '.gif', '.heic', '.jfif', '.jp2', '.ppm', '.tif', '.tiff', '.webp')


def find_split_folder(data_dir: str | Path, split: str) -> Path:
    """Find the folder of a split, under timm's names for it.

    Args:
        data_dir: Folder that holds the splits, or is itself a folder of classes.
        split: `train`, `val` (`test` is taken where there is no validation folder) or a folder's name.

    Returns:
        The folder of class folders. `data_dir` itself when it has no folder for the split; for an evaluation split only
        if it has no training folder either, so that training images are never evaluated by accident.

    Raises:
        RideError: If `data_dir` or the split's folder does not exist.
    """
    root = Path(data_dir)
    if not root.is_dir():
        found = 'is not a folder' if root.exists() else 'does not exist'
        raise RideError(f'the data folder {root} {found}: give a folder with train/<class>/<image> in it')
    names = split_names(split)
    for name in names:
        if (root / name).is_dir():
            return root / name
    if split not in TRAIN_NAMES and any((root / name).is_dir() for name in TRAIN_NAMES):
        raise RideError(
            f'{root} has a training folder but none for evaluation: add one named {", ".join(names)}, or take a part '
            'of the training images with --val-fraction 0.2'
        )
    return root


def read_folder(folder: Path) -> Source:
    """List the images of a folder of class folders with timm's reader, and label them by folder name.

    Names that start with a dot are passed over. timm labels an image by the innermost folder, so that `a/x/1.png` and
    `b/x/2.png` become one class `x`; here images anywhere but directly in a class folder are refused instead.

    Args:
        folder: The folder of class folders.

    Returns:
        The images and their labels; class folders without images are among the names.

    Raises:
        RideError: If there is no image, or an image does not lie directly in a class folder.
    """
    try:
        base = create_dataset('', root=str(folder), search_split=False)
    except RuntimeError as error:
        raise _no_image(folder) from error
    except ValueError as error:  # of timm's sort key
        raise RideError(
            f'a folder or file in {folder} has a sign in its name, such as a raised 2, that timm takes for a number '
            f'and cannot count with ({error}): rename it'
        ) from error
    names = _class_folders(folder)
    below = len(str(folder).rstrip(os.sep)) + 1
    index = {name: i for i, name in enumerate(names)}
    rows, labels = [], []
    for row, (path, _) in enumerate(base.reader.samples):
        parts = Path(path[below:]).parts
        if any(part.startswith('.') for part in parts):
            continue
        if len(parts) != 2:
            deep = len(parts) > 2
            where = 'more than one folder deep' if deep else 'without a class folder'
            hint = ', or name the folders of classes with --train-split and --val-split' if deep else ''
            raise RideError(f'the image {path} lies {where}: expected {folder}/<class>/<image>, so move it{hint}')
        rows.append(row)
        labels.append(index[parts[0]])
    if not rows:
        raise _no_image(folder)
    _report_other_images(folder, names)
    return Source(base, np.array(rows, dtype=np.int64), np.array(labels, dtype=np.int64), names, str(folder))


def _extensions() -> str:
    return ', '.join(get_img_extensions())


def _class_folders(folder: Path) -> tuple[str, ...]:
    names = (entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith('.'))
    return tuple(sorted(names, key=natural_order))


def _no_image(folder: Path) -> RideError:
    others = _other_images(folder, _class_folders(folder))
    if others:
        return RideError(
            f'no image in {folder} is of a type that folders are searched for ({_extensions()}), and {len(others)} are '
            f'of others, first {others[0]}: convert them, or name them in a list (--train-list), which takes any type'
        )
    return RideError(f'no image in {folder}: put images ({_extensions()}) into {folder}/<class>/')


def _other_images(folder: Path, names: Sequence[str]) -> list[Path]:
    unread = set(_OTHER_IMAGES) - get_img_extensions(as_set=True)
    return [file for name in names for file in (folder / name).iterdir() if file.suffix.lower() in unread]


def _report_other_images(folder: Path, names: Sequence[str]) -> None:
    """Say so when images are passed over for their file type."""
    others = _other_images(folder, names)
    if others:
        _logger.warning(
            '%d images of %s are left out because only %s are read, first %s: timm.data.add_img_extensions adds types',
            len(others), folder, _extensions(), others[0],
        )  # fmt: skip
