"""Experts that stop agreeing on wrong classes."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import ExpertLogits, ExpertLoss, is_soft, kl_divergence, prepare_batch
from ._counts import ClassCounts, class_vector
from .logit_adjusted import LogitAdjustedLoss, Tau

__all__ = ['SoftSuppressionLoss']

_EXCLUDED = -30.0


class SoftSuppressionLoss(ExpertLoss):
    """Pulls wrong classes that outrank the true one down to the average, to add to a classification loss.

    sum_k KL(t || p_k), averaged over the batch, with p_k the probabilities of expert k and t the softmax of the
    experts' mean logit zbar, changed in two places: each class that zbar ranks above the true one gets the mean of zbar
    over the classes, and the true one -30, which leaves it to the classification loss. t gets no gradient.

    The true class of a soft target is that of its largest share. Logits are taken as log probabilities, where -30 is
    next to nothing whatever their offset.

    Give `tau` where the experts are trained for different class priors, and z_k + tau_k log pi takes the place of z_k
    throughout.

    Source: Trust-calibrated Collaborative Learning (CVPR 2026): consensus error calibration, which is weighted with
    0.02 there. Written from a summary of the paper, whose mean logit is read as zbar's mean over the classes.

    Args:
        class_counts: Training images per class, shape (C,).
        tau: Logit adjustment of each expert; None takes the logits as they are.

    Raises:
        RideError: If an option is out of range.

    Example:
        >>> loss = SoftSuppressionLoss([100, 10, 1], tau=(0.0, 1.0, 2.0))
        >>> loss(torch.zeros(4, 3, 3), torch.tensor([0, 0, 1, 2])).shape
        torch.Size([])
    """

    def __init__(self, class_counts: ClassCounts, tau: Tau | None = None) -> None:
        super().__init__()
        counts = class_vector(class_counts, 'class_counts')
        self.num_classes = len(counts)
        self.adjustment = None if tau is None else LogitAdjustedLoss(counts, tau)

    def parts(self, logits: ExpertLogits, target: Tensor) -> dict[str, Tensor]:
        """Computes the loss.

        Args:
            logits: Expert logits, shape (B, K, C).
            target: Class indices, shape (B,), or class probabilities, shape (B, C).

        Returns:
            `loss`, and the same number as `soft_suppression`, detached.

        Raises:
            RideError: If K or C differ from what the loss was made for.
            ValueError: If the shapes do not fit.
        """
        logits, target = prepare_batch(logits, target, self.num_classes)
        if self.adjustment is not None:
            logits = self.adjustment.adjusted(logits)
        teacher = _suppressed(logits.detach().mean(1), target).unsqueeze(1)
        loss = kl_divergence(teacher, logits.log_softmax(-1)).sum(1).mean()
        return {'loss': loss, 'soft_suppression': loss.detach()}

    def extra_repr(self) -> str:
        """Describes the loss in one line."""
        return f'num_classes={self.num_classes}'


def _suppressed(logits: Tensor, target: Tensor) -> Tensor:
    """Log probabilities (B, C) of mean logits (B, C) without what outranks the target."""
    label = (target.argmax(1) if is_soft(target) else target).unsqueeze(1)
    values = logits.log_softmax(-1)
    above = values > values.gather(1, label)
    values = torch.where(above, values.mean(1, keepdim=True), values)
    return values.scatter(1, label, _EXCLUDED).log_softmax(-1)
