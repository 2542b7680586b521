"""Temperatures: what logits are divided by, so that confidences are as high as answers are right.

A temperature changes no answer of the network as it stands. The mean logits of more experts are smaller, for the same
answer, than those of fewer, so there is one temperature for each number of experts that may answer.

Source: Guo et al., arXiv:1706.04599, section 4.2.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ['COOLEST', 'HOTTEST', 'fit_temperature', 'tempered']

COOLEST, HOTTEST = 0.01, 100.0
"""Where a temperature is looked for."""


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the least cross-entropy on held-out images.

    As if one image more had every class for its label in equal parts: otherwise images that are all answered right
    would call for certainty.

    Args:
        logits: Finite, shape (N, C), N at least 1.
        labels: Class indices, shape (N,).

    Returns:
        From `COOLEST` to `HOTTEST`.
    """
    logits = logits.double()
    centred = logits - logits.mean(dim=1, keepdim=True)
    share = 1 / (len(logits) + 1)
    # of the smoothed label, whose part in equal parts has the mean logit: 0
    wanted = (1 - share) * float(centred.gather(1, labels[:, None]).mean())
    low, high = math.log(COOLEST), math.log(HOTTEST)
    for _ in range(50):  # the cross-entropy is convex in 1 / T, so its slope has one change of sign
        middle = (low + high) / 2
        expected = float(((centred / math.exp(middle)).softmax(1) * centred).sum(1).mean())
        low, high = (middle, high) if expected > wanted else (low, middle)
    return math.exp((low + high) / 2)


def tempered(logits: Tensor, temperatures: Sequence[float] | None, passed: Tensor | None = None) -> Tensor:
    """Logits divided by the temperature of as many experts as each image passed.

    Args:
        logits: Mean logits, shape (B, C); of single experts, shape (B, K, C), with `passed` None.
        temperatures: One for each number of experts, from 1 on; None leaves the logits as they are.
        passed: How many experts each image passed, shape (B,), int64; None: all.

    Returns:
        The same shape, in float32 or float64.
    """
    if temperatures is None:
        return logits
    scale = torch.tensor(temperatures, dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
    if passed is None:
        return logits / scale[-1]
    return logits / scale[passed.clamp(min=1) - 1, None]  # a plain network counts 0 experts
