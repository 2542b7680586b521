"""Classification losses of single experts and their sum: cross-entropy, focal and LDAM, with deferred re-weighting."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ride_timm.errors import RideError

from ._common import (
    ExpertLogits,
    ExpertLoss,
    in_training,
    is_soft,
    label_weights,
    log_likelihoods,
    prepare_batch,
    weighted_mean,
)
from ._counts import ClassCounts, clean_counts, effective_number_weights, ldam_margins
from ._options import check_choice, check_epoch, check_number

__all__ = ['BASES', 'CrossEntropyExperts', 'focal_modulation', 'subtract_margin']

BASES = ('ce', 'focal', 'ldam')
"""The classification losses that one expert can be trained with."""

_NEVER = (None, -1)


class CrossEntropyExperts(ExpertLoss):
    """Sums a classification loss over the experts, each trained on its own logits: sum_k CE_w(z_k, y).

    CE_w is the weighted mean sum_i w_{y_i} l_i / sum_i w_{y_i} over the batch. Until `reweight_epoch` all w are 1, from
    then on w_c is proportional to (1 - beta) / (1 - beta^n_c), mean 1 (deferred re-weighting). The loss l of a sample:

    * `ce`: -log p_y, with p = softmax(z);
    * `focal`: -(1 - p_y)^gamma log p_y;
    * `ldam`: cross-entropy of z - margin_scale m_y onehot(y), with m_c = 0.5 (n_min / n_c)^(1/4).

    `ce` and `focal` take soft targets t (mixup, cutmix): the loss of a sample is then the mean of the losses under its
    labels, and CE_w = sum_ic t_ic w_c l_ic / sum_ic t_ic w_c, which is the definition above for one-hot t. (torch
    divides by B instead when soft targets meet weights.)

    Under DistributedDataParallel each process divides by the weights of its own share of the batch, so the gradient is
    the mean of the processes' weighted means, not the weighted mean over the global batch.

    Source: focal loss, arXiv:1708.02002, eq. 4; LDAM and deferred re-weighting, arXiv:1906.07413, sections 3.2 and
    3.3; effective numbers, arXiv:1901.05555, section 4; summed over experts as in RIDE, arXiv:2010.01809.

    Args:
        class_counts: Training images per class n, shape (C,); below 1 counts as 1. None is allowed where nothing
            depends on them: no `ldam`, no re-weighting.
        base: `ce`, `focal` or `ldam`.
        margin_scale: Logits per unit of margin, the scale of a cosine head (`ldam` only).
        gamma: Focusing exponent, 0 is cross-entropy (`focal` only).
        beta: How far the weights follow the inverse frequency, between 0 and 1.
        reweight_epoch: Epoch index, counted from 0, from which the classes are re-weighted; None or -1 for never.

    Raises:
        RideError: If an option is out of range or class counts are needed and missing.

    Example:
        >>> import torch
        >>> loss = CrossEntropyExperts([100, 10, 1], base='ldam', reweight_epoch=160)
        >>> loss.set_epoch(0)
        >>> loss(torch.zeros(4, 2, 3), torch.tensor([0, 0, 1, 2])).shape
        torch.Size([])
    """

    margins: Tensor
    class_weight: Tensor

    def __init__(
        self,
        class_counts: ClassCounts | None = None,
        base: str = 'ce',
        margin_scale: float = 30.0,
        gamma: float = 2.0,
        beta: float = 0.9999,
        reweight_epoch: int | None = None,
    ) -> None:
        super().__init__()
        check_choice('base', base, BASES)
        check_number('margin_scale', margin_scale, low=0.0)
        check_number('gamma', gamma, low=0.0)
        _check_reweight_epoch(reweight_epoch)
        self.base, self.gamma, self.margin_scale = base, gamma, margin_scale
        self.reweight_epoch = None if reweight_epoch in _NEVER else reweight_epoch
        self.num_classes: int | None = None
        if class_counts is not None:
            counts = clean_counts(class_counts)
            self.num_classes = len(counts)
            self.register_buffer('margins', ldam_margins(counts).float(), persistent=False)
            self.register_buffer('class_weight', effective_number_weights(counts, beta), persistent=False)
        elif base == 'ldam' or self.reweight_epoch is not None:
            what = "base='ldam'" if base == 'ldam' else 're-weighting'
            raise RideError(f'No class_counts were given, but {what} needs the number of training images per class.')
        self.reweighting = self.reweight_epoch == 0
        self._waits_for_epoch = bool(self.reweight_epoch)

    def set_epoch(self, epoch: int) -> None:
        """Switches the re-weighting on or off; depends on nothing but the epoch, so a resumed run needs no state.

        Args:
            epoch: Index of the epoch that begins, counted from 0.
        """
        check_epoch(epoch)
        self._waits_for_epoch = False
        self.reweighting = self.reweight_epoch is not None and epoch >= self.reweight_epoch

    def per_expert(self, logits: ExpertLogits, target: Tensor) -> Tensor:
        """Computes the loss of each expert.

        Args:
            logits: Expert logits, shape (B, K, C).
            target: Class indices, shape (B,), or class probabilities, shape (B, C) (not for `ldam`).

        Returns:
            The batch's (weighted) mean loss of each expert, shape (K,).

        Raises:
            RideError: If C differs from the number of class counts, or soft targets meet `ldam`.
            ValueError: If the shapes do not fit.
        """
        logits, target = prepare_batch(logits, target, self.num_classes)
        if self._waits_for_epoch and in_training(logits):
            self._waits_for_epoch = False
            warnings.warn(
                f'set_epoch was never called on a loss with reweight_epoch={self.reweight_epoch}, so the classes '
                'are never re-weighted; call criterion.set_epoch(epoch) as each epoch begins, or pass '
                'reweight_epoch=None.',
                stacklevel=2,
            )
        if self.base == 'ldam':
            logits = subtract_margin(logits, target, self.margin_scale * self.margins)
        log_likelihood = log_likelihoods(logits.log_softmax(-1), target)
        losses = -log_likelihood
        if self.base == 'focal':
            losses = losses * focal_modulation(log_likelihood, self.gamma)
        return weighted_mean(losses, label_weights(target, logits, self.class_weight if self.reweighting else None))

    def parts(self, logits: ExpertLogits, target: Tensor) -> dict[str, Tensor]:
        """Computes the loss.

        Args:
            logits: Expert logits, shape (B, K, C).
            target: Class indices, shape (B,), or class probabilities, shape (B, C) (not for `ldam`).

        Returns:
            `loss`, and the same number as `classification`, detached.

        Raises:
            RideError: If C differs from the number of class counts, or soft targets meet `ldam`.
            ValueError: If the shapes do not fit.
        """
        loss = self.per_expert(logits, target).sum()
        return {'loss': loss, 'classification': loss.detach()}

    def extra_repr(self) -> str:
        """Describes the loss in one line."""
        return f'base={self.base!r}, num_classes={self.num_classes}, reweight_epoch={self.reweight_epoch}'


def subtract_margin(logits: Tensor, target: Tensor, margins: Tensor) -> Tensor:
    """Lowers the logit of the label by the margin of its class: z - m_y onehot(y).

    Args:
        logits: Expert logits, shape (B, K, C).
        target: Class indices, shape (B,).
        margins: Margins in units of the logits, shape (C,).

    Returns:
        The lowered logits, shape (B, K, C).

    Raises:
        RideError: If the target is soft: a margin belongs to one label.
    """
    if is_soft(target):
        raise RideError(
            'LDAM subtracts a margin from the one true class and takes no soft targets; '
            "switch mixup, cutmix and label smoothing off, or train with base='ce'."
        )
    is_label = torch.arange(logits.shape[-1], device=logits.device) == target.unsqueeze(1)
    lowered = is_label * margins.to(logits.dtype)
    return logits - lowered.unsqueeze(1)


def focal_modulation(log_likelihood: Tensor, gamma: float) -> Tensor:
    """Computes the focal factor (1 - p)^gamma of probabilities given as log p.

    Args:
        log_likelihood: Log probabilities, any shape.
        gamma: Focusing exponent, at least 0.

    Returns:
        The factors, same shape.
    """
    # clamped, as the derivative of the power at p = 1 is infinite for gamma < 1 and would make the gradient NaN
    error = (-torch.expm1(log_likelihood)).clamp(min=torch.finfo(log_likelihood.dtype).tiny)
    return error**gamma


def _check_reweight_epoch(epoch: int | None) -> None:
    if epoch not in _NEVER and (not isinstance(epoch, int) or epoch < 0):
        raise RideError(f'reweight_epoch is {epoch!r}, but must be an epoch index from 0 on, or None for never.')
