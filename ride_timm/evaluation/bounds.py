"""Exact binomial bounds: what counts on n images tell about all images like them."""

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ['images_needed', 'least_loss', 'most_losses', 'share_interval']


def most_losses(images: int, max_loss: float, delta: float) -> int:
    """How many losses on n images still show that losses are rarer than `max_loss`.

    The largest k with P[Binomial(n, max_loss) <= k] <= delta: a network that loses on more than `max_loss` of all
    images shows so few on n of them with probability `delta` at most.

    Source: Angelopoulos et al., Learn then Test (arXiv:2110.01052), section 3, with the exact tail.

    Args:
        images: n.
        max_loss: From 0 to 1.
        delta: Probability that it is wrong, above 0.

    Returns:
        From 0 to n; -1 where not even n images without a loss show it.
    """
    if max_loss >= 1.0:
        return images  # nothing loses on more than all
    return int(np.searchsorted(_tails(images, max_loss), delta, side='right')) - 1


def least_loss(losses: int, images: int, delta: float) -> float:
    """The smallest share, in steps of 0.0001, of which so few losses show that losses are rarer.

    Source: Clopper and Pearson (doi:10.1093/biomet/26.4.404), one-sided.

    Args:
        losses: On how many images it lost.
        images: n.
        delta: Probability that it is wrong, above 0.
    """
    return min(1.0, math.ceil(10_000 * _upper(losses, images, delta)) / 10_000)


def images_needed(max_loss: float, delta: float) -> int | None:
    """How many images without a single loss it takes to show that losses are rarer than `max_loss`.

    Args:
        max_loss: From 0 to 1.
        delta: Probability that it is wrong, above 0.

    Returns:
        The number; None where no number suffices.
    """
    if max_loss >= 1.0 or delta >= 1.0:
        return 0
    if max_loss <= 0.0:
        return None
    return math.ceil(math.log(delta) / math.log1p(-max_loss))


def share_interval(count: int, images: int, confidence: float) -> tuple[float, float]:
    """Confidence interval of the share of all images, from `count` of n images.

    Source: Clopper and Pearson (doi:10.1093/biomet/26.4.404).

    Args:
        count: Images of that sort.
        images: n.
        confidence: Probability with which the share lies within, below 1.

    Returns:
        Lower and upper end, from 0 to 1; of no images, 0 and 1.
    """
    tail = (1.0 - confidence) / 2
    if images == 0:
        return 0.0, 1.0
    return 1.0 - _upper(images - count, images, tail), _upper(count, images, tail)


def _upper(count: int, images: int, tail: float) -> float:
    """The share above which so few images of n have this probability at most."""
    if count == images:
        return 1.0
    low, high = count / images, 1.0
    for _ in range(60):  # halved to below the last digit
        middle = (low + high) / 2
        low, high = (middle, high) if _tails(images, middle)[count] > tail else (low, middle)
    return high


def _tails(images: int, share: float) -> NDArray[np.float64]:
    """P[Binomial(n, share) <= k] for k = 0..n, shape (n + 1,)."""
    if share <= 0.0:
        return np.ones(images + 1)
    if share >= 1.0:
        return np.append(np.zeros(images), 1.0)
    k = np.arange(1, images + 1, dtype=np.float64)
    # log of P[= k] / P[= k - 1], added up from P[= 0]: no factorial overflows
    steps = np.log(images - k + 1) - np.log(k) + math.log(share) - math.log1p(-share)
    logs = np.concatenate([[0.0], np.cumsum(steps)]) + images * math.log1p(-share)
    return np.minimum(np.cumsum(np.exp(logs)), 1.0)
