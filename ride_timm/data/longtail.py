"""The exponential long-tailed cut of a balanced data set, exactly as the field's benchmarks draw it."""

import numpy as np
from numpy.typing import ArrayLike

from ride_timm.data.counts import IntArray, class_counts

__all__ = ['long_tail_counts', 'long_tail_indices']


def long_tail_counts(num_classes: int, max_count: float, imb_factor: float) -> IntArray:
    """Exponential profile: class i keeps int(max_count (1 / imb_factor)^(i / (C - 1))) images.

    Source: the CIFAR-LT profile of arXiv:1901.05555, section 5.1, in the form of arXiv:1906.07413's code.

    Args:
        num_classes: C, the number of classes; class 0 is the largest.
        max_count: Images of class 0.
        imb_factor: Largest class over smallest class, at least 1 (100, not 0.01).

    Returns:
        (C,) number of images to keep per class.

    Raises:
        ValueError: If there is no class or `imb_factor` is below 1 or not finite.
    """
    if num_classes < 1:
        raise ValueError(f'num_classes must be at least 1, not {num_classes}')
    if not 1 <= imb_factor < float('inf'):
        raise ValueError(f'the imbalance factor is largest over smallest class, so at least 1, not {imb_factor}')
    last = max(num_classes - 1, 1)
    # Python's own power, not NumPy's: the benchmark's counts come from truncating exactly this float
    return np.array([int(max_count * (1 / imb_factor) ** (i / last)) for i in range(num_classes)], dtype=np.int64)


def long_tail_indices(targets: ArrayLike, imb_factor: float, num_classes: int, seed: int = 0) -> IntArray:
    """Rows of a balanced data set that its long-tailed version keeps.

    Class by class in label order, the class's rows are shuffled once and the first ones kept; the largest class keeps
    N / C rows. One local `numpy.random.RandomState(seed)` does it, so the global generators are neither read nor moved.
    With seed 0 and the official row order these are the images of CIFAR-10-LT and CIFAR-100-LT in arXiv:1906.07413 and
    all who follow it.

    Args:
        targets: (N,) class indices of the whole set.
        imb_factor: Largest class over smallest class, at least 1.
        num_classes: C, the number of classes.
        seed: Seed of the shuffles; the benchmarks use 0.

    Returns:
        Row numbers, class by class in label order, shuffled within a class. A class with fewer rows than the profile
        asks for keeps all of them.

    Raises:
        ValueError: If a target lies outside 0..C-1 or `imb_factor` is below 1.
    """
    labels = np.asarray(targets)
    class_counts(labels, num_classes)  # refuses labels that the loop below would pass over
    keep = long_tail_counts(num_classes, labels.size / num_classes, imb_factor)
    generator = np.random.RandomState(seed)
    kept = []
    for label in range(num_classes):
        rows = np.flatnonzero(labels == label)
        generator.shuffle(rows)
        kept.append(rows[: keep[label]])
    return np.concatenate(kept).astype(np.int64)
