"""What the losses derive from the number of training images per class."""

import math
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch
from timm.loss import compute_class_weights
from torch import Tensor

from ride_timm.errors import RideError

from ._options import check_number

ClassCounts: TypeAlias = Iterable[float] | Tensor
"""Training images per class in the order of the model's classes: a list, a NumPy array or a tensor of shape (C,)."""


def class_vector(values: ClassCounts, name: str) -> Tensor:
    """Reads one finite, non-negative number per class.

    Args:
        values: The numbers, shape (C,).
        name: What the user calls them, for the error message.

    Returns:
        The numbers in float64 on the CPU, shape (C,).

    Raises:
        RideError: If they are a mapping, not one-dimensional, empty, negative or not finite.
    """
    if isinstance(values, Mapping):
        raise RideError(
            f'{name} is a {type(values).__name__}, which has no class order; pass a list with one number per class, '
            "in the order of the model's classes."
        )
    if isinstance(values, Tensor):
        vector = values.detach().to('cpu', torch.float64)
    else:
        try:
            vector = torch.tensor([float(value) for value in values], dtype=torch.float64, device='cpu')
        except (TypeError, ValueError) as error:
            raise RideError(f'{name} must be a list with one number per class, but holds {values!r}.') from error
    if vector.ndim != 1 or not vector.numel():
        raise RideError(f'{name} has shape {tuple(vector.shape)}, but must be a non-empty list, one number per class.')
    if not bool(torch.isfinite(vector).all()) or bool((vector < 0).any()):
        raise RideError(f'{name} must be finite and not negative, but ranges from {vector.min()} to {vector.max()}.')
    return vector


def clean_counts(class_counts: ClassCounts) -> Tensor:
    """Reads class counts; a count below 1 counts as 1, so that logarithms, powers and quotients stay finite.

    Args:
        class_counts: Training images per class, shape (C,).

    Returns:
        The counts in float64 on the CPU, shape (C,), each at least 1.

    Raises:
        RideError: If they are not a flat list of finite, non-negative numbers.
    """
    return class_vector(class_counts, 'class_counts').clamp(min=1.0)


def class_prior(class_counts: ClassCounts) -> Tensor:
    """Computes the class prior pi_c = n_c / sum n of the training set.

    Args:
        class_counts: Training images per class n, shape (C,).

    Returns:
        The prior in float64 on the CPU, shape (C,), positive and of sum 1.

    Raises:
        RideError: If the counts are not a flat list of finite, non-negative numbers.
    """
    counts = clean_counts(class_counts)
    return counts / counts.sum()


def effective_number_weights(class_counts: ClassCounts, beta: float = 0.9999) -> Tensor:
    """Computes class weights from effective numbers, w_c proportional to (1 - beta) / (1 - beta^n_c), mean 1.

    Source: Cui et al., arXiv:1901.05555, sections 3 and 4; the arithmetic is `timm.loss.compute_class_weights`.

    Args:
        class_counts: Training images per class n, shape (C,).
        beta: Between 0 (all weights equal) and 1 (inverse frequency), both excluded.

    Returns:
        The weights in float32 on the CPU, shape (C,).

    Raises:
        RideError: If the counts are not a flat list of finite, non-negative numbers, or beta is out of range.
    """
    check_number('beta', beta, low=0.0, high=1.0, exclusive=True)
    counts = clean_counts(class_counts)
    _, weights = compute_class_weights(counts, math.ceil(counts.sum().item()), method='effective_num', beta=beta)
    return weights


def ldam_margins(class_counts: ClassCounts) -> Tensor:
    """Computes the label-distribution-aware margins m_c = 0.5 (n_min / n_c)^(1/4).

    Source: Cao et al., arXiv:1906.07413, section 3.2, with the largest margin set to 0.5.

    Args:
        class_counts: Training images per class n, shape (C,).

    Returns:
        The margins in float64 on the CPU, shape (C,), in units of the cosine (multiply by the head's scale for logits).

    Raises:
        RideError: If the counts are not a flat list of finite, non-negative numbers.
    """
    counts = clean_counts(class_counts)
    return 0.5 * (counts.min() / counts) ** 0.25
