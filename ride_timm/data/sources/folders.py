"""Image folders: one folder per class, whose name is the label."""

import logging
import os
from pathlib import Path
from typing import NoReturn

import numpy as np
from timm.data import ImageDataset

from ride_timm.data.finding import is_visible, list_images, natural_order, tell_others
from ride_timm.data.images import image_types
from ride_timm.data.sources.base import TRAIN_NAMES, VAL_NAMES, Source, split_names
from ride_timm.data.sources.lists import ListReader
from ride_timm.errors import RideError

__all__ = ['find_split_folder', 'has_split', 'read_folder']


class NoImagesError(RideError):
    """A folder holds no image."""


_logger = logging.getLogger(__name__)

_USUAL = ('.jpg', '.png', '.tif', '.webp', '.bmp', '.ppm')


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
        raise RideError(f'The data folder {root} {found}; give a folder with train/<class>/<image> in it.')
    names = split_names(split)
    for name in names:
        if has_split(root, name):
            return root / name
    if split not in TRAIN_NAMES and any(has_split(root, name) for name in TRAIN_NAMES):
        raise RideError(
            f'{root} has a training folder but none for evaluation; add one named {", ".join(names)}, or take a part '
            'of the training images with --val-fraction 0.2.'
        )
    return root


def has_split(root: Path, name: str) -> bool:
    """Whether a folder has a split of this name.

    A class may be named as a split is, such as CIFAR-100's `train`: its folder lies next to other classes and no split,
    and holds no folders.

    Args:
        root: The folder of the splits, or of the classes.
        name: Of the split.
    """
    if not (root / name).is_dir():
        return False
    folders = {entry.name for entry in root.iterdir() if entry.is_dir() and is_visible(entry.name)} - {name}
    alone = folders and folders.isdisjoint({*TRAIN_NAMES, *VAL_NAMES, 'test'})
    return not alone or any(entry.is_dir() for entry in (root / name).iterdir() if is_visible(entry.name))


def read_folder(folder: Path) -> Source:
    """List the images of a folder of class folders, and label them by folder name.

    Hidden names, as `.git` and `__MACOSX`, are passed over. timm labels an image by the innermost folder, so that
    `a/x/1.png` and `b/x/2.png` become one class `x`; here images anywhere but directly in a class folder are refused.

    Returns:
        The images, of all types that Pillow reads, and their labels; class folders without images are among the names.

    Raises:
        RideError: If there is no image, one does not lie directly in a class folder, or a folder cannot be read.
    """
    names, loose = _entries(folder)
    images, others = ([str(path) for path in loose], [])
    for name in names:
        found, left = list_images(folder / name, _refuse, (folder.resolve(),))
        images += found
        others += left
    images.sort(key=natural_order)
    below = len(str(folder).rstrip(os.sep)) + 1
    parts = [Path(path[below:]).parts for path in images]
    wrong = next((row for row, each in enumerate(parts) if len(each) != 2), None)
    if wrong is not None:
        deep = len(parts[wrong]) > 2
        where = 'more than one folder deep' if deep else 'without a class folder'
        hint = ', or name the folders of classes with --train-split and --val-split' if deep else ''
        raise RideError(f'The image {images[wrong]} lies {where}; expected {folder}/<class>/<image>, so move it{hint}.')
    if not images:
        hint = f', and {len(others)} of types that Pillow does not read here, first {others[0]}' if others else ''
        raise NoImagesError(
            f'No image in {folder}{hint}; put images ({", ".join(_USUAL)}, ...) into {folder}/<class>/.'
        )
    tell_others(folder, others)
    index = {name: i for i, name in enumerate(names)}
    labels = np.array([index[each[0]] for each in parts], dtype=np.int64)
    base = ImageDataset('', reader=ListReader(images, [path[below:] for path in images]))
    return Source(base, np.arange(len(images), dtype=np.int64), labels, names, str(folder))


def _entries(folder: Path) -> tuple[tuple[str, ...], list[Path]]:
    """Names of the class folders, and the images next to them."""
    names, loose = [], []
    try:
        entries = [entry for entry in folder.iterdir() if is_visible(entry.name)]
        for entry in entries:
            if entry.is_dir():
                if folder.resolve().is_relative_to(entry.resolve()):
                    _logger.warning('%s is left out: it is a link to a folder that contains it', entry)
                else:
                    names.append(entry.name)
            elif entry.suffix.lower() in image_types():
                loose.append(entry)
    except OSError as error:
        _refuse(error)
    return tuple(sorted(names, key=natural_order)), loose


def _refuse(error: OSError) -> NoReturn:
    raise RideError(f'{error.filename} cannot be read ({error.strerror}); allow it, or take it out of the data.')
