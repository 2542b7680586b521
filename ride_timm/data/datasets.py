"""Opening the training and evaluation images of a data set, labelled by class name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ride_timm.data.counts import IntArray, class_counts, imbalance_factor
from ride_timm.data.forms import open_source
from ride_timm.data.images import ImageSet, image_mode
from ride_timm.data.longtail import long_tail_indices
from ride_timm.data.sources.base import Source, known_names
from ride_timm.errors import RideError, did_you_mean
from ride_timm.escaping import printable

__all__ = ['DataSplit', 'as_eval_split', 'as_train_split', 'open_eval_split', 'open_train_split']

_BALANCED = 2.0  # a set counts as balanced, and may be cut, up to this imbalance (ImageNet's training set has 1.8)


@dataclass(frozen=True, eq=False)
class DataSplit:
    """Images of one split with labels that mean the same in every split.

    Args:
        dataset: (image, class index) pairs; loaders set its `transform`.
        class_names: C class names of the training set; the class index counts in this order.
        targets: (N,) class index of each item.
        source: Where the images come from, for messages.
        image_groups: (N,) what each item belongs to (a place, a patient), which splits do not divide; None: nothing.
    """

    dataset: ImageSet
    class_names: tuple[str, ...]
    targets: IntArray
    source: str
    image_groups: tuple[str, ...] | None = None

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.class_names)

    @property
    def class_counts(self) -> IntArray:
        """(C,) number of images per class."""
        return class_counts(self.targets, self.num_classes)


def open_train_split(
    data_dir: str | Path | None,
    dataset: str = '',
    *,
    split: str = 'train',
    imb_factor: float | None = None,
    seed: int = 0,
    in_chans: int = 3,
    class_names: Sequence[str] | None = None,
    **form: Any,
) -> DataSplit:
    """Open the training images; their class names define the labels.

    Args:
        data_dir: Image folder (`train/<class>/<image>`, or the class folders themselves), torchvision's root, the
            folder that a list's paths are relative to, ...; see `open_source`.
        dataset: Form of the data, see `open_source`; empty for an image folder or a list.
        split: Name of the split.
        imb_factor: Cut a balanced set to this imbalance (see `long_tail_indices`); None keeps every image.
        seed: Seed of the cut; the published benchmarks use 0.
        in_chans: 3 for colour, 1 for grey.
        class_names: Class names to use instead of the ones found, in this order, such as a checkpoint's; the set must
            hold exactly these classes.
        **form: `list_file`, `columns`, `divided`, `crop`, `names_file`, `input_key`, `target_key` and `download` of
            `open_source`.

    Returns:
        The split; every class has at least one image.

    Raises:
        RideError: If the data is missing, misplaced or ambiguous, a class is empty, or the cut does not fit the data.
    """
    source = open_source(data_dir, dataset, split, training=True, **form)
    return as_train_split(source, class_names, imb_factor=imb_factor, seed=seed, in_chans=in_chans)


def as_train_split(
    source: Source,
    class_names: Sequence[str] | None = None,
    *,
    imb_factor: float | None = None,
    seed: int = 0,
    in_chans: int = 3,
) -> DataSplit:
    """Label training images by class name.

    Args:
        source: The images as stored.
        class_names: As in `open_train_split`, like the other arguments.
        imb_factor: See there.
        seed: See there.
        in_chans: See there.

    Returns:
        The split; every class has at least one image.

    Raises:
        RideError: If a class is empty, the classes are not the expected ones, or the cut does not fit the data.
    """
    _refuse_empty_classes(source)
    names = tuple(class_names) if class_names is not None else source.names
    labels = _labels_by_name(source, names)
    missing = sorted(set(names) - set(known_names(source.names, names)))
    if missing:
        raise RideError(
            f'{source.text} lacks {len(missing)} of the {len(names)} expected classes, first "{missing[0]}"; '
            'add their images, or train without the expected class names.'
        )
    if imb_factor is not None:
        source, labels = _cut(source, labels, names, imb_factor, seed)
    return _split(source, labels, names, in_chans)


def open_eval_split(
    data_dir: str | Path | None,
    dataset: str = '',
    *,
    class_names: Sequence[str],
    split: str = 'val',
    in_chans: int = 3,
    **form: Any,
) -> DataSplit:
    """Open evaluation images and label them by the training set's class names.

    Args:
        data_dir: As in `open_train_split`, with `val/<class>/<image>` or timm's other names for it.
        dataset: As in `open_train_split`.
        class_names: C class names of the training set (or of the weights), in label order.
        split: Name of the split.
        in_chans: 3 for colour, 1 for grey.
        **form: As in `open_train_split`.

    Returns:
        The split; a class may have no image in it.

    Raises:
        RideError: If the data is missing or misplaced, or holds a class that `class_names` lacks.
    """
    return as_eval_split(open_source(data_dir, dataset, split, **form), class_names, in_chans)


def as_eval_split(source: Source, class_names: Sequence[str], in_chans: int = 3) -> DataSplit:
    """Label evaluation images by the training set's class names.

    Args:
        source: The images as stored.
        class_names: C class names of the training set, in label order.
        in_chans: 3 for colour, 1 for grey.

    Returns:
        The split; a class may have no image in it.

    Raises:
        RideError: If the source has a class that `class_names` lacks.
    """
    names = tuple(class_names)
    return _split(source, _labels_by_name(source, names), names, in_chans)


def _split(source: Source, labels: IntArray, names: tuple[str, ...], in_chans: int) -> DataSplit:
    _refuse_undecodable(source)
    images = ImageSet(source.base, labels, source.rows, image_mode(in_chans))
    return DataSplit(images, names, labels, source.text, images.groups)


def _refuse_empty_classes(source: Source) -> None:
    empty = [name for name, count in zip(source.names, source.counts, strict=True) if not count]
    if not empty:
        return
    folder = Path(source.text) / empty[0]
    others = f' ({len(empty)} such {"folders" if folder.is_dir() else "classes"})' if len(empty) > 1 else ''
    if folder.is_dir():
        raise RideError(f'The class folder {folder} holds no image{others}; add images of it, or remove the folder.')
    raise RideError(f'{source.text} holds no image of the class "{empty[0]}"{others}; add images of it.')


def _refuse_undecodable(source: Source) -> None:
    """Names that are no text could not be written into tables and checkpoints after the training."""
    wrong = next((name for name in source.names if not _is_text(name)), None)
    if wrong is not None:
        raise RideError(f'The class name "{printable(wrong)}" of {source.text} is not in UTF-8; rename it.')


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _labels_by_name(source: Source, names: tuple[str, ...]) -> IntArray:
    """Translate the source's labels into indices of `names`."""
    index = {name: i for i, name in enumerate(names)}
    if len(index) != len(names):
        raise RideError('The class names repeat, so labels would be ambiguous; give every class its own name.')
    own = known_names(source.names, names)
    unknown = [name for name in own if name not in index]
    if unknown:
        hint = did_you_mean(unknown[0], names, ';')
        raise RideError(
            f'{source.text} has the class "{unknown[0]}"{f" and {len(unknown) - 1} more" if unknown[1:] else ""}, '
            f'which is not one of the {len(names)} classes of the training set{hint} rename or remove it.'
        )
    return np.array([index[name] for name in own], dtype=np.int64)[source.labels]


def _cut(
    source: Source, labels: IntArray, names: tuple[str, ...], imb_factor: float, seed: int
) -> tuple[Source, IntArray]:
    """Keep the long-tailed part of a balanced source."""
    found = imbalance_factor(class_counts(labels, len(names)))
    if found > _BALANCED:
        raise RideError(
            f'{source.text} is already imbalanced (largest over smallest class {found:.4g}) and '
            'an imbalance factor is for cutting a balanced set; drop --imb-factor.'
        )
    try:
        keep = long_tail_indices(labels, imb_factor, len(names), seed)
    except ValueError as error:
        raise RideError(f'The cut of {source.text} cannot be made: {error}.') from error
    empty = np.flatnonzero(class_counts(labels[keep], len(names)) == 0)
    if empty.size:
        raise RideError(
            f'An imbalance factor of {imb_factor:g} leaves {empty.size} classes of {source.text} without an image, '
            f'first "{names[empty[0]]}"; use at most {labels.size / len(names):g}.'
        )
    text = f'{source.text} cut to imbalance factor {imb_factor:g}'
    return source._replace(rows=source.rows[keep], text=text), labels[keep]
