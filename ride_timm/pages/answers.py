"""What a report draws from the answers of a network: confusions, reliability, and how far its experts agree."""

import numpy as np
from numpy.typing import NDArray

from ride_timm.evaluation.metrics import NUM_BINS
from ride_timm.evaluation.one_pass import Answers

__all__ = ['agreement', 'reliability', 'worst_pairs']

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def worst_pairs(confusion: Ints, most: int = 15) -> list[tuple[int, int, int, int]]:
    """The pairs of classes that are taken for each other most often.

    Args:
        confusion: (C, C + 1) as in `Measured`.
        most: How many pairs at most.

    Returns:
        True class, named class, images, and images of the true class; the most frequent first, at equal numbers the
        larger share of the true class.
    """
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    images = confusion.sum(1)
    rows, columns = np.nonzero(wrong)
    found = [(int(i), int(j), int(wrong[i, j]), int(images[i])) for i, j in zip(rows, columns, strict=True)]
    return sorted(found, key=lambda pair: (-pair[2], pair[3], pair[0], pair[1]))[:most]


def reliability(answers: Answers) -> tuple[Ints, Floats, Floats]:
    """Accuracy over confidence, in the bins of the calibration error (arXiv:1706.04599).

    Returns:
        For each of the M bins the images, the share of right answers and the mean confidence, (M,) each; NaN for an
        empty bin.
    """
    edges = (np.arange(1, NUM_BINS) / NUM_BINS).astype(np.float32)
    place = np.searchsorted(edges, answers.confidence.astype(np.float32), side='left')
    images = np.bincount(place, minlength=NUM_BINS)
    right = np.bincount(place, answers.answers == answers.targets, minlength=NUM_BINS)
    confidence = np.bincount(place, answers.confidence, minlength=NUM_BINS)
    divisor = np.where(images > 0, images, np.nan)
    return images, right / divisor, confidence / divisor


def agreement(answers: Answers) -> Floats:
    """How often two experts name the same class.

    Args:
        answers: What was said by K experts.

    Returns:
        (K, K) percent of the images.
    """
    votes = answers.experts
    same: Floats = 100.0 * (votes[:, :, None] == votes[:, None, :]).mean(0)
    return same
