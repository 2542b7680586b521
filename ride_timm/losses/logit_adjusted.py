"""Experts trained for different class priors: balanced softmax, BalPoE, SADE, and the correction for a test prior."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import torch
from torch import Tensor

from ride_timm.errors import RideError

from ._common import (
    ExpertLogits,
    ExpertLoss,
    check_classes,
    label_weights,
    log_likelihoods,
    prepare_batch,
    prepare_logits,
    weighted_mean,
)
from ._counts import ClassCounts, class_prior, class_vector
from ._options import check_choice, check_integer, check_number

__all__ = [
    'LogitAdjustedLoss',
    'SadeLoss',
    'balanced_softmax_loss',
    'balpoe_loss',
    'balpoe_tau',
    'prior_correction',
    'rank_reversed_prior',
]

Tau: TypeAlias = float | Iterable[float]
"""The logit adjustment: one number per expert, or one for all."""

_REDUCTIONS = ('mean', 'sum')
_SPREADS = {'balpoe': (0.0, 2.0), 'mdcs': (-0.5, 3.0), 'tcl': (0.9, 0.2)}  # least tau, and largest minus least


class LogitAdjustedLoss(ExpertLoss):
    """Trains each expert with its own share of the class prior: reduce_k CE(z_k + tau_k log pi, y).

    An expert with tau 0 learns the prior of the training set, with tau 1 a uniform one, with tau 2 an inverted one.
    With the mean of tau equal to 1 the mean logit is unbiased for balanced test data; `prior_correction` serves any
    other prior. tau = 1 for all is the balanced softmax, (0, 1, 2) is BalPoE; with `reduction='sum'` (-0.5, 1, 2.5) is
    the classification term of MDCS and (0.9, 1, 1.1) that of TCL.

    Source: Menon et al., arXiv:2007.07314 (logit adjustment); Aimar et al., arXiv:2206.05260 (one tau per expert).

    Args:
        class_counts: Training images per class, shape (C,); below 1 counts as 1.
        tau: One number per expert, or one for all of any number of experts.
        reduction: `mean` or `sum` over the experts (the batch is averaged always).

    Raises:
        RideError: If an option is out of range.

    Example:
        >>> import torch
        >>> loss = LogitAdjustedLoss([100, 10, 1], tau=(0.0, 1.0, 2.0))
        >>> loss(torch.zeros(4, 3, 3), torch.tensor([0, 0, 1, 2])).shape
        torch.Size([])
    """

    log_prior: Tensor
    tau_vector: Tensor

    def __init__(self, class_counts: ClassCounts, tau: Tau = (0.0, 1.0, 2.0), reduction: str = 'mean') -> None:
        super().__init__()
        check_choice('reduction', reduction, _REDUCTIONS)
        self.reduction = reduction
        self.tau: float | tuple[float, ...] = _read_tau(tau)
        self.register_buffer('log_prior', class_prior(class_counts).log().float(), persistent=False)
        self.register_buffer('tau_vector', torch.tensor(self.tau, dtype=torch.float32, device='cpu'), persistent=False)

    def adjusted(self, logits: ExpertLogits) -> Tensor:
        """Adds its share of the log prior to each expert's logits.

        Args:
            logits: Expert logits, shape (B, K, C).

        Returns:
            z_k + tau_k log pi, shape (B, K, C): estimates of log p(y|x) under the training prior, up to a constant.

        Raises:
            RideError: If K or C differ from what the loss was made for.
        """
        logits = prepare_logits(logits)
        _check_experts(logits.shape[1], self.tau)
        check_classes(logits.shape[2], len(self.log_prior))
        tau = self.tau_vector.to(logits.dtype)
        return logits + tau[..., None] * self.log_prior.to(logits.dtype)

    def parts(self, logits: ExpertLogits, target: Tensor) -> dict[str, Tensor]:
        """Computes the loss.

        Args:
            logits: Expert logits, shape (B, K, C).
            target: Class indices, shape (B,), or class probabilities, shape (B, C).

        Returns:
            `loss`, and the same number as `classification`, detached.

        Raises:
            RideError: If K or C differ from what the loss was made for.
            ValueError: If the shapes do not fit.
        """
        logits, target = prepare_batch(logits, target)
        return _adjusted_cross_entropy(self.adjusted(logits), target, self.reduction)

    def extra_repr(self) -> str:
        """Describes the loss in one line."""
        return f'tau={self.tau}, reduction={self.reduction!r}, num_classes={len(self.log_prior)}'


class SadeLoss(ExpertLoss):
    """Trains three experts for the training, the uniform and the inverted class prior (SADE).

    CE(z_0, y) + CE(z_1 + log pi, y) + CE(z_2 + log pi - 2 log pi_rev, y), with pi_rev the rank-reversed prior. The last
    adjustment is no multiple of log pi, so the loss has no tau list and `prior_correction` does not apply.

    Source: Zhang et al., arXiv:2107.09249 (inverse softmax loss), in the form of the authors' code.

    Args:
        class_counts: Training images per class, shape (C,); below 1 counts as 1.

    Raises:
        RideError: If the counts are not a flat list of finite, non-negative numbers.
    """

    adjustment: Tensor

    def __init__(self, class_counts: ClassCounts) -> None:
        super().__init__()
        prior = class_prior(class_counts)
        forward, reverse = prior.log(), rank_reversed_prior(prior).log()
        adjustment = torch.stack((torch.zeros_like(forward), forward, forward - 2.0 * reverse))
        self.register_buffer('adjustment', adjustment.float(), persistent=False)

    def parts(self, logits: ExpertLogits, target: Tensor) -> dict[str, Tensor]:
        """Computes the loss.

        Args:
            logits: Expert logits, shape (B, 3, C).
            target: Class indices, shape (B,), or class probabilities, shape (B, C).

        Returns:
            `loss`, and the same number as `classification`, detached.

        Raises:
            RideError: If there are not three experts, or C differs from the number of class counts.
            ValueError: If the shapes do not fit.
        """
        logits, target = prepare_batch(logits, target, self.adjustment.shape[1])
        if logits.shape[1] != len(self.adjustment):
            raise RideError(f'SADE trains three experts, but the logits come from {logits.shape[1]}.')
        return _adjusted_cross_entropy(logits + self.adjustment.to(logits.dtype), target, 'sum')


def balanced_softmax_loss(class_counts: ClassCounts, reduction: str = 'mean') -> LogitAdjustedLoss:
    """Makes the balanced softmax of any number of experts: every tau is 1.

    Source: Ren et al., arXiv:2007.10740.

    Args:
        class_counts: Training images per class, shape (C,); below 1 counts as 1.
        reduction: `mean` or `sum` over the experts.

    Returns:
        The loss.
    """
    return LogitAdjustedLoss(class_counts, tau=1.0, reduction=reduction)


def balpoe_loss(class_counts: ClassCounts, tau: Tau = (0.0, 1.0, 2.0)) -> LogitAdjustedLoss:
    """Makes the loss of BalPoE, the mean over experts of logit-adjusted cross-entropies.

    Source: Aimar et al., arXiv:2206.05260; their tau is (0, 1, 2) on CIFAR, (0, 1.25, 2.5) on ImageNet-LT and
    (-1, 1, 3) on iNaturalist 2018.

    Args:
        class_counts: Training images per class, shape (C,); below 1 counts as 1.
        tau: One number per expert; `balpoe_tau` gives lists for any number of experts.

    Returns:
        The loss.
    """
    return LogitAdjustedLoss(class_counts, tau=tau, reduction='mean')


def balpoe_tau(num_experts: int, form: str = 'balpoe') -> tuple[float, ...]:
    """Spaces tau evenly around 1, so that the mean is 1 and the mean logit is unbiased for balanced test data.

    Args:
        num_experts: The number of experts K, at least 1.
        form: `balpoe` (0 to 2), `mdcs` (-0.5 to 2.5) or `tcl` (0.9 to 1.1), the lists of these papers
            for three experts.

    Returns:
        K numbers; (1.0,) for one expert.

    Raises:
        RideError: If K is below 1 or the form unknown.
    """
    check_integer('num_experts', num_experts, low=1)
    check_choice('tau', form, tuple(_SPREADS))
    if num_experts == 1:
        return (1.0,)
    least, width = _SPREADS[form]
    return tuple(least + width * expert / (num_experts - 1) for expert in range(num_experts))


def prior_correction(
    logits: Tensor, class_counts: ClassCounts, tau: Tau | None, target_prior: ClassCounts | None = None
) -> Tensor:
    """Turns mean logits into logits for another class prior: zbar + (mean(tau) - 1) log pi + log q.

    Source: Aimar et al., arXiv:2206.05260 (unbiased if the mean of tau is 1; the rest undoes the bias that is left).

    Args:
        logits: Mean logits zbar over the experts, shape (B, C).
        class_counts: Training images per class, shape (C,); below 1 counts as 1.
        tau: What the experts were trained with (`LogitAdjustedLoss.tau`); None if they had no tau list.
        target_prior: Class frequencies q to expect, shape (C,), of any sum; 0 rules a class out. None is uniform.

    Returns:
        The corrected logits, shape (B, C), in float32 or float64.

    Raises:
        RideError: If there is no tau list, or the lengths do not fit.
        ValueError: If the logits are not (B, C).
    """
    if tau is None:
        raise RideError(
            'These weights have no tau list, so the bias of their mean logits is unknown and no class prior can be '
            'corrected for; take weights trained with balanced_softmax, balpoe or logit_adjusted.'
        )
    logits = prepare_logits(logits, axes='BC')
    classes = logits.shape[1]
    taus = _read_tau(tau)
    mean_tau = taus if isinstance(taus, float) else sum(taus) / len(taus)
    prior = class_prior(class_counts)
    check_classes(classes, len(prior))
    wanted = class_vector([1.0] * classes if target_prior is None else target_prior, 'target_prior')
    if len(wanted) != classes or not bool(wanted.sum() > 0):
        raise RideError(
            f'target_prior has {len(wanted)} entries of sum {wanted.sum()}, '
            f'but must have {classes}, one per class, not all 0.'
        )
    shift = (mean_tau - 1.0) * prior.log() + (wanted / wanted.sum()).log()
    return logits + shift.to(logits.device, logits.dtype)


def rank_reversed_prior(prior: Tensor) -> Tensor:
    """Gives the most frequent class the frequency of the rarest, the second most that of the second rarest, and so on.

    Equal frequencies are ranked by class index.

    Args:
        prior: Class frequencies, shape (C,).

    Returns:
        The same frequencies in reversed order of rank, shape (C,).
    """
    frequencies, order = prior.sort(stable=True)
    reversed_prior = torch.empty_like(prior)
    reversed_prior[order] = frequencies.flip(0)
    return reversed_prior


def _adjusted_cross_entropy(adjusted: Tensor, target: Tensor, reduction: str) -> dict[str, Tensor]:
    losses = -log_likelihoods(adjusted.log_softmax(-1), target)
    per_expert = weighted_mean(losses, label_weights(target, adjusted))
    loss = per_expert.mean() if reduction == 'mean' else per_expert.sum()
    return {'loss': loss, 'classification': loss.detach()}


def _read_tau(tau: Tau | str) -> float | tuple[float, ...]:
    if isinstance(tau, str):
        raise RideError(
            f'tau is {tau!r}, but must be a finite number or one per expert; balpoe_tau(K, form) gives lists by name.'
        )
    values = tuple(tau) if isinstance(tau, Iterable) else (tau,)
    if not values:
        raise RideError('tau is an empty list, but must have one number per expert.')
    for value in values:
        check_number('tau', value)
    return tuple(map(float, values)) if isinstance(tau, Iterable) else float(tau)


def _check_experts(experts: int, tau: float | tuple[float, ...]) -> None:
    if not isinstance(tau, float) and len(tau) != experts:
        raise RideError(
            f'tau has {len(tau)} numbers, but the logits come from {experts} experts; '
            f'pass one number per expert, such as tau={balpoe_tau(experts)}.'
        )
