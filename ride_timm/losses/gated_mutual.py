"""Mutual distillation from the experts that are right, weighted towards classes that are not learnt yet."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import ExpertLogits, ExpertLoss, is_soft, kl_divergence, prepare_batch
from ._counts import ClassCounts, class_vector
from ._options import check_number
from .logit_adjusted import LogitAdjustedLoss, Tau

__all__ = ['GatedMutualLoss']


class GatedMutualLoss(ExpertLoss):
    """Lets experts learn from those that recognise an image, an auxiliary term to add to a classification loss.

    sum over k != j of 1[expert k is right] w_y KL(sg p_k || p_j), averaged over the batch, with p the experts'
    probabilities and sg a stopped gradient. w_c is proportional to sqrt(1 - acc_c) and has the mean 1 over the classes
    with training images. acc_c is a moving average over epochs of the share of class c that the experts have right in
    training. It starts at 0, so that all weights are 1 in the first epoch; they are 1 too once all classes are learnt.
    The loss of a single expert is 0.

    Of a soft target, expert k counts with the target's share of the class that it predicts, so that the loss of mixed
    targets is the mixture of the losses.

    Give `tau` where the experts are trained for different class priors, and z_k + tau_k log pi takes the place of z_k
    throughout, also where it is decided which expert is right.

    `accuracy` is the only state; it belongs into a checkpoint (`state_dict`), and `end_epoch` renews it.

    Source: Trust-calibrated Collaborative Learning (CVPR 2026): knowledge quality gate and tail-class compensation.
    Written from a summary of the paper, which leaves open how the average moves and what becomes of soft targets.

    Args:
        class_counts: Training images per class, shape (C,).
        tau: Logit adjustment of each expert; None takes the logits as they are.
        momentum: Share of the average that an epoch keeps.

    Raises:
        RideError: If an option is out of range.

    Example:
        >>> loss = GatedMutualLoss([100, 10, 1], tau=(0.0, 1.0, 2.0))
        >>> loss(torch.zeros(4, 3, 3), torch.tensor([0, 0, 1, 2])).shape
        torch.Size([])
    """

    present: Tensor
    accuracy: Tensor
    right: Tensor
    seen: Tensor

    def __init__(self, class_counts: ClassCounts, tau: Tau | None = None, momentum: float = 0.8) -> None:
        super().__init__()
        check_number('momentum', momentum, low=0.0, high=1.0)
        self.momentum = momentum
        counts = class_vector(class_counts, 'class_counts')
        self.adjustment = None if tau is None else LogitAdjustedLoss(counts, tau)
        zeros = torch.zeros(len(counts), dtype=torch.float32, device='cpu')
        self.register_buffer('present', (counts > 0).float(), persistent=False)
        self.register_buffer('accuracy', zeros)
        self.register_buffer('right', zeros.clone(), persistent=False)  # images of this epoch, by class
        self.register_buffer('seen', zeros.clone(), persistent=False)

    @property
    def class_weight(self) -> Tensor:
        """The weights w, shape (C,): mean 1 over the classes with training images, and 1 for the others."""
        raw = (1.0 - self.accuracy).clamp(min=0.0).sqrt()
        mean = (raw * self.present).sum() / self.present.sum().clamp(min=1.0)
        return torch.where((self.present > 0) & (mean > 0), raw / mean, torch.ones_like(raw))

    def parts(self, logits: ExpertLogits, target: Tensor) -> dict[str, Tensor]:
        """Computes the loss, and in training mode counts what the experts have right.

        Args:
            logits: Expert logits, shape (B, K, C).
            target: Class indices, shape (B,), or class probabilities, shape (B, C).

        Returns:
            `loss`, and the same number as `mutual_gated`, detached.

        Raises:
            RideError: If K or C differ from what the loss was made for.
            ValueError: If the shapes do not fit.
        """
        logits, target = prepare_batch(logits, target, len(self.present))
        log_probs = (logits if self.adjustment is None else self.adjustment.adjusted(logits)).log_softmax(-1)
        predicted = log_probs.argmax(-1)
        share = _share_of(predicted, target, log_probs)
        gate = share * self.class_weight.to(share.dtype)[predicted]
        if self.training:
            self._count(predicted, share, target)
        # one student at a time, as in MutualLoss; the pair j = k adds nothing
        experts = logits.shape[1]
        pairs = [(gate * kl_divergence(log_probs, log_probs[:, j : j + 1])).sum(1) for j in range(experts)]
        loss = torch.stack(pairs).sum(0).mean()
        return {'loss': loss, 'mutual_gated': loss.detach()}

    @torch.no_grad()
    def _count(self, predicted: Tensor, share: Tensor, target: Tensor) -> None:
        """Add up how much of each class was there, and how much of it the experts had right, on average over K."""
        found = share.to(self.right.dtype).flatten() / predicted.shape[1]
        self.right.index_add_(0, predicted.flatten(), found)
        if is_soft(target):
            self.seen.add_(target.sum(0).to(self.seen.dtype))
        else:
            self.seen.index_add_(0, target, torch.ones_like(target, dtype=self.seen.dtype))

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Move the average by what this epoch counted, over all processes; classes that were not drawn keep theirs."""
        counted = torch.stack((self.right, self.seen))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counted)
        right, seen = counted
        moved = self.momentum * self.accuracy + (1.0 - self.momentum) * right / seen
        self.accuracy.copy_(torch.where(seen > 0, moved, self.accuracy))
        self.right.zero_()
        self.seen.zero_()

    def extra_repr(self) -> str:
        """Describes the loss in one line."""
        return f'momentum={self.momentum}, num_classes={len(self.present)}'


def _share_of(predicted: Tensor, target: Tensor, like: Tensor) -> Tensor:
    """The target's share of each expert's prediction, (B, K): 1 or 0 for class indices, t_c for soft targets t."""
    if is_soft(target):
        return target.gather(1, predicted)
    return (predicted == target.unsqueeze(1)).to(like.dtype)
