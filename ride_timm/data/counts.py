"""Training images per class."""

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ['IntArray', 'class_counts', 'imbalance_factor']

IntArray: TypeAlias = NDArray[np.int64]


def class_counts(targets: ArrayLike, num_classes: int | None = None) -> IntArray:
    """Count the images of every class.

    Args:
        targets: (N,) integer class indices, such as the `targets` of torchvision's data sets.
        num_classes: C, the number of classes; classes that do not occur count 0. None: up to the largest index.

    Returns:
        (C,) number of images per class.

    Raises:
        ValueError: If `targets` is not one-dimensional, not integer, or holds an index outside 0..C-1.

    Example:
        >>> import ride_timm
        >>> ride_timm.class_counts([0, 0, 2, 0]).tolist()
        [3, 0, 1]
    """
    labels = np.asarray(targets)
    if num_classes is None:
        num_classes = int(labels.max()) + 1 if labels.size else 0
    if labels.size == 0:
        return np.zeros(num_classes, dtype=np.int64)
    if labels.ndim != 1 or labels.dtype.kind not in 'iu':
        raise ValueError(f'targets must be a list of class indices, not {labels.dtype} of shape {labels.shape}')
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if outside.size:
        raise ValueError(f'class index {outside[0]} lies outside 0..{num_classes - 1}')
    return np.bincount(labels, minlength=num_classes).astype(np.int64)


def imbalance_factor(counts: ArrayLike) -> float:
    """Largest class size divided by the smallest; a class without images counts as one image.

    Args:
        counts: (C,) number of images per class.

    Returns:
        The factor, 1.0 for balanced data.

    Raises:
        ValueError: If there is no class.
    """
    sizes = np.maximum(np.asarray(counts), 1)
    if sizes.size == 0:
        raise ValueError('the imbalance factor of no classes is undefined')
    return float(sizes.max() / sizes.min())
