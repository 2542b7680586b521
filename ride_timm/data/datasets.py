"""Opening the training and evaluation images of a data set, labelled by class name."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from timm.data import create_dataset

from ride_timm.data.counts import IntArray, class_counts, imbalance_factor
from ride_timm.data.folders import find_split_folder, read_folder, refuse_empty_classes
from ride_timm.data.images import ImageSet, image_mode
from ride_timm.data.longtail import long_tail_indices
from ride_timm.errors import RideError

__all__ = ['DataSplit', 'open_eval_split', 'open_train_split']

_BALANCED = 2.0  # a set counts as balanced, and may be cut, up to this imbalance (ImageNet's training set has 1.8)


@dataclass(frozen=True, eq=False)
class DataSplit:
    """Images of one split with labels that mean the same in every split.

    Args:
        dataset: (image, class index) pairs; loaders set its `transform`.
        class_names: C class names of the training set; the class index counts in this order.
        targets: (N,) class index of each item.
        source: Where the images come from, for messages.
    """

    dataset: ImageSet
    class_names: tuple[str, ...]
    targets: IntArray
    source: str

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.class_names)

    @property
    def class_counts(self) -> IntArray:
        """(C,) number of images per class."""
        return class_counts(self.targets, self.num_classes)


class _Source(NamedTuple):
    """A split as stored: `labels` (N,) index into the source's own `names`, `rows` (N,) the rows of `base`."""

    base: Any
    rows: IntArray
    labels: IntArray
    names: tuple[str, ...]
    text: str


def open_train_split(
    data_dir: str | Path,
    dataset: str = '',
    *,
    imb_factor: float | None = None,
    seed: int = 0,
    download: bool = False,
    in_chans: int = 3,
    class_names: Sequence[str] | None = None,
) -> DataSplit:
    """Open the training images; their class names define the labels.

    Args:
        data_dir: Image folder (`train/<class>/<image>`, or the class folders themselves), or torchvision's root.
        dataset: Empty or `folder` for an image folder, `torch/<name>` (`torch/cifar100`) for a torchvision data set.
        imb_factor: Cut a balanced set to this imbalance (see `long_tail_indices`); None keeps every image.
        seed: Seed of the cut; the published benchmarks use 0.
        download: Let torchvision download what is missing.
        in_chans: 3 for colour, 1 for grey.
        class_names: Class names to use instead of the ones found, in this order, such as a checkpoint's; the set must
            hold exactly these classes.

    Returns:
        The split; every class has at least one image.

    Raises:
        RideError: If the data is missing, misplaced or ambiguous, a class is empty, or the cut does not fit the data.
    """
    source = _open_source(data_dir, dataset, 'train', download)
    names = tuple(class_names) if class_names is not None else source.names
    labels = _labels_by_name(source, names)
    missing = sorted(set(names) - set(source.names))
    if missing:
        raise RideError(
            f'{source.text} lacks {len(missing)} of the {len(names)} expected classes, first "{missing[0]}": '
            'add their images, or train without the expected class names'
        )
    if imb_factor is not None:
        source, labels = _cut(source, labels, names, imb_factor, seed)
    return _split(source, labels, names, in_chans)


def open_eval_split(
    data_dir: str | Path,
    dataset: str = '',
    *,
    class_names: Sequence[str],
    split: str = 'val',
    download: bool = False,
    in_chans: int = 3,
) -> DataSplit:
    """Open evaluation images and label them by the training set's class names.

    Args:
        data_dir: Image folder (`val/<class>/<image>` or timm's other names, or the class folders themselves), or
            torchvision's root.
        dataset: As in `open_train_split`.
        class_names: C class names of the training set (or of the weights), in label order.
        split: Name of the split.
        download: Let torchvision download what is missing.
        in_chans: 3 for colour, 1 for grey.

    Returns:
        The split; a class may have no image in it.

    Raises:
        RideError: If the data is missing or misplaced, or holds a class that `class_names` lacks.
    """
    source = _open_source(data_dir, dataset, split, download)
    names = tuple(class_names)
    return _split(source, _labels_by_name(source, names), names, in_chans)


def _split(source: _Source, labels: IntArray, names: tuple[str, ...], in_chans: int) -> DataSplit:
    images = ImageSet(source.base, labels, source.rows, image_mode(in_chans))
    return DataSplit(images, names, labels, source.text)


def _open_source(data_dir: str | Path, dataset: str, split: str, download: bool) -> _Source:
    prefix, _, rest = dataset.partition('/')
    if dataset in ('', 'folder'):
        return _open_folder(data_dir, split)
    if prefix.lower() == 'torch' and rest:
        return _open_torchvision(data_dir, dataset, split, download)
    raise RideError(
        f'the data set "{dataset}" is not supported: use an image folder (no --dataset) or torch/<name>, '
        'for example torch/cifar100'
    )


def _open_folder(data_dir: str | Path, split: str) -> _Source:
    folder = find_split_folder(data_dir, split)
    found = read_folder(folder)
    if split == 'train':
        refuse_empty_classes(folder, found.names, class_counts(found.labels, len(found.names)))
    return _Source(*found, str(folder))


def _open_torchvision(data_dir: str | Path, dataset: str, split: str, download: bool) -> _Source:
    text = f'{dataset} ({split})'
    try:
        base = create_dataset(dataset, root=str(data_dir), split=split, download=download)
    except AssertionError as error:  # how timm reports a name that it does not know
        raise RideError(
            f'timm knows no data set {dataset}: use for example torch/cifar100 or an image folder'
        ) from error
    except (RuntimeError, OSError) as error:
        reason = ' '.join(str(error).split()).rstrip('.')
        raise RideError(
            f'{text} cannot be opened in {data_dir} ({reason}): pass --dataset-download to fetch it'
        ) from error
    labels = np.asarray(getattr(base, 'targets', ()))
    classes: Any = getattr(base, 'wnids', None) or getattr(
        base, 'classes', ()
    )  # ImageNet's names repeat, its ids do not
    if labels.ndim != 1 or labels.size == 0 or len(set(classes)) != len(classes) or not classes:
        raise RideError(f'{text} has no plain list of class names and labels: export it to an image folder first')
    rows = np.arange(labels.size, dtype=np.int64)
    return _Source(base, rows, labels.astype(np.int64), tuple(map(str, classes)), text)


def _labels_by_name(source: _Source, names: tuple[str, ...]) -> IntArray:
    """Translate the source's labels into indices of `names`."""
    index = {name: i for i, name in enumerate(names)}
    if len(index) != len(names):
        raise RideError('the class names repeat, so labels would be ambiguous: give every class its own name')
    unknown = [name for name in source.names if name not in index]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, 1)
        hint = f' (nearest: "{near[0]}")' if near else ''
        raise RideError(
            f'{source.text} has the class "{unknown[0]}"{f" and {len(unknown) - 1} more" if unknown[1:] else ""}, '
            f'which is not one of the {len(names)} classes of the training set{hint}: rename or remove it'
        )
    return np.array([index[name] for name in source.names], dtype=np.int64)[source.labels]


def _cut(
    source: _Source, labels: IntArray, names: tuple[str, ...], imb_factor: float, seed: int
) -> tuple[_Source, IntArray]:
    """Keep the long-tailed part of a balanced source."""
    found = imbalance_factor(class_counts(labels, len(names)))
    if found > _BALANCED:
        raise RideError(
            f'{source.text} is already imbalanced (largest over smallest class {found:.4g}) and '
            'an imbalance factor is for cutting a balanced set: drop --imb-factor'
        )
    try:
        keep = long_tail_indices(labels, imb_factor, len(names), seed)
    except ValueError as error:
        raise RideError(f'the cut of {source.text} cannot be made: {error}') from error
    empty = np.flatnonzero(class_counts(labels[keep], len(names)) == 0)
    if empty.size:
        raise RideError(
            f'an imbalance factor of {imb_factor:g} leaves {empty.size} classes of {source.text} without an image, '
            f'first "{names[empty[0]]}": use at most {labels.size / len(names):g}'
        )
    text = f'{source.text} cut to imbalance factor {imb_factor:g}'
    return source._replace(rows=source.rows[keep], text=text), labels[keep]
