"""torchvision's data sets, opened by timm."""

from pathlib import Path
from typing import Any

import numpy as np
from timm.data import create_dataset

from ride_timm.data.sources.base import Source
from ride_timm.errors import RideError, reason_of

__all__ = ['read_torchvision']


def read_torchvision(data_dir: str | Path, dataset: str, split: str, download: bool = False) -> Source:
    """Open a torchvision data set.

    Args:
        data_dir: torchvision's root folder.
        dataset: timm's name for it, such as `torch/cifar100`.
        split: `train`, `val` or what timm takes.
        download: Let torchvision download what is missing.

    Returns:
        All its images, with its own class names.

    Raises:
        RideError: If timm does not know it, it is not there, or it has no plain list of labels.
    """
    text = f'{dataset} ({split})'
    try:
        base = create_dataset(dataset, root=str(data_dir), split=split, download=download)
    except AssertionError as error:  # how timm reports a name that it does not know
        raise RideError(
            f'timm knows no data set {dataset}; use for example torch/cifar100 or an image folder.'
        ) from error
    except (RuntimeError, OSError) as error:
        raise RideError(
            f'{text} cannot be opened in {data_dir} ({reason_of(error)}); pass --dataset-download to fetch it.'
        ) from error
    labels = np.asarray(getattr(base, 'targets', ()))
    # ImageNet's names repeat, its ids do not
    classes: Any = getattr(base, 'wnids', None) or getattr(base, 'classes', ())
    if labels.ndim != 1 or labels.size == 0 or len(set(classes)) != len(classes) or not classes:
        raise RideError(f'{text} has no plain list of class names and labels; export it to an image folder first.')
    rows = np.arange(labels.size, dtype=np.int64)
    return Source(base, rows, labels.astype(np.int64), tuple(map(str, classes)), text)
