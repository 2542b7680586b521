"""Mutual distillation: every expert learns from every other."""

from __future__ import annotations

import torch
from torch import Tensor

from ride_timm.errors import RideError

from ._common import ExpertLogits, ExpertLoss, kl_divergence, prepare_logits
from ._counts import ClassCounts
from ._options import check_integer, check_number
from .logit_adjusted import LogitAdjustedLoss, Tau

__all__ = ['MutualLoss']


class MutualLoss(ExpertLoss):
    """Pulls the experts' predictions together, an auxiliary term to add to a classification loss.

    sum over j != k of T^2 KL(sg softmax(z_j / T) || softmax(z_k / T)) / (K - 1), averaged over the batch, with sg a
    stopped gradient. The hard-class form restricts both softmaxes to the `num_hard` classes of largest mean logit of
    each image and renormalises them. It is 0 for a single expert.

    Experts that were trained for different class priors predict different distributions by design. Give `tau` and
    `class_counts`, and z_k + tau_k log pi takes the place of z_k throughout; or pass logits that are adjusted already.

    Source: Zhang et al., arXiv:1706.00384 (mutual learning); Li et al., arXiv:2203.15359 (among long-tailed experts, on
    adjusted logits, with hard categories).

    Args:
        temperature: Softmax temperature T.
        hard_classes: Whether to restrict the softmaxes to the hard classes of each image.
        num_hard: How many classes are hard; C if there are fewer.
        tau: Logit adjustment of each expert; None takes the logits as they are.
        class_counts: Training images per class, shape (C,); needed with `tau`.

    Raises:
        RideError: If an option is out of range, or only one of `tau` and `class_counts` is given.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        hard_classes: bool = False,
        num_hard: int = 30,
        tau: Tau | None = None,
        class_counts: ClassCounts | None = None,
    ) -> None:
        super().__init__()
        check_number('temperature', temperature, low=0.0, exclusive=True)
        check_integer('num_hard', num_hard, low=1)
        self.temperature, self.hard_classes, self.num_hard = temperature, hard_classes, num_hard
        self.adjustment: LogitAdjustedLoss | None = None
        if tau is not None and class_counts is not None:
            self.adjustment = LogitAdjustedLoss(class_counts, tau)
        elif tau is not None or class_counts is not None:
            missing = 'class_counts' if class_counts is None else 'tau'
            raise RideError(f'Adjusting the logits needs both tau and class_counts, but {missing} is missing.')

    def parts(self, logits: ExpertLogits, target: Tensor | None = None) -> dict[str, Tensor]:
        """Computes the loss.

        Args:
            logits: Expert logits, shape (B, K, C).
            target: Not used; the loss needs no labels.

        Returns:
            `loss`, and the same number as `mutual`, detached.

        Raises:
            RideError: If K or C differ from what `tau` and `class_counts` were given for.
            ValueError: If the logits are not (B, K, C).
        """
        logits = prepare_logits(logits) if self.adjustment is None else self.adjustment.adjusted(logits)
        if self.hard_classes:
            logits = _largest_on_average(logits, self.num_hard)
        log_probs = (logits / self.temperature).log_softmax(-1)
        experts = logits.shape[1]
        # one student at a time: all pairs at once would hold (B, K, K, C) numbers. The pair j = k adds nothing to value
        # or gradient, and keeps the zero of a single expert part of the graph.
        pairs = [kl_divergence(log_probs, log_probs[:, k : k + 1]).sum(1) for k in range(experts)]
        loss = self.temperature**2 / max(experts - 1, 1) * torch.stack(pairs).sum(0).mean()
        return {'loss': loss, 'mutual': loss.detach()}

    def forward(self, logits: ExpertLogits, target: Tensor | None = None) -> Tensor:
        """Computes the loss.

        Args:
            logits: Expert logits, shape (B, K, C).
            target: Not used; the loss needs no labels.

        Returns:
            The loss, a scalar in float32 (float64 for float64 logits).
        """
        return self.parts(logits, target)['loss']


def _largest_on_average(logits: Tensor, count: int) -> Tensor:
    """Keeps, of logits (B, K, C), each image's `count` classes of largest mean over experts: (B, K, count)."""
    hard = logits.detach().mean(1).topk(min(count, logits.shape[-1]), dim=-1).indices
    return logits.gather(2, hard.unsqueeze(1).expand(-1, logits.shape[1], -1))
