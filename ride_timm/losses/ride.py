"""RIDE's loss: experts trained each on its own, and pushed apart where the classes are rare."""

from __future__ import annotations

import warnings

from torch import Tensor

from ._common import ExpertLogits, ExpertLoss, in_training, kl_divergence, prepare_batch
from ._counts import ClassCounts, class_prior, clean_counts
from ._options import check_choice, check_number
from .base import CrossEntropyExperts

__all__ = ['MODES', 'RideLoss', 'diversity_temperature']

MODES = ('individual', 'collaborative')
"""What is classified: each expert's logits, or their mean."""


class RideLoss(ExpertLoss):
    """The loss of RIDE: classification by each expert, plus a distribution-aware diversity term.

    sum_k [ CE_w(z_k - margin_scale m_y onehot(y), y)
            + diversity mean(T)^2 KL(sg softmax(zbar / T) || softmax(z_k / T)) ]

    with zbar the mean of the experts' logits z_k, sg a stopped gradient, the KL averaged over the batch, and T one
    temperature per class (see `diversity_temperature`; the division is element-wise). Before `reweight_epoch` the
    weights w and T are 1. A negative `diversity` pushes the experts apart. CE_w and the bases: `CrossEntropyExperts`.
    The gradient through zbar would cancel in the sum over experts, so stopping it only saves work.

    Deviations from the authors' code:

    1. `reweight_epoch=None` (or -1) means never; there it ends in an AttributeError.
    2. `mode` is chosen by name; there the loss turns collaborative by itself when the diversity factor is 0.

    Under DistributedDataParallel each process normalises CE_w by the weights of its own share of the batch.

    Source: Wang et al., arXiv:2010.01809; the exact form is that of the authors' code
    (github.com/frank-xwang/RIDE-LongTailRecognition).

    Args:
        class_counts: Training images per class n, shape (C,); below 1 counts as 1.
        base: `ldam`, `ce` or `focal`; `ldam` takes no soft targets.
        margin_scale: Logits per unit of LDAM margin, the scale of the cosine head.
        diversity: Factor of the diversity term: -0.45 on CIFAR, -0.2 on ImageNet-LT and iNaturalist.
        rho: How far T follows the class prior: 0.05 on CIFAR, 0.02 on ImageNet-LT, 0.015 on iNaturalist 2018.
        beta: How far the class weights follow the inverse frequency.
        reweight_epoch: Epoch index, counted from 0, from which w and T are used: 160 of 200 epochs on CIFAR, 80 of 100
            on ImageNet-LT and iNaturalist; None or -1 for never.
        mode: `individual` classifies with each expert; `collaborative` replaces the sum by K CE_w(zbar, y).
        gamma: Focusing exponent of the `focal` base.

    Raises:
        RideError: If an option is out of range.

    Example:
        >>> import torch
        >>> loss = RideLoss([100, 10, 1])
        >>> sorted(loss.parts(torch.zeros(4, 3, 3), torch.tensor([0, 0, 1, 2])))
        ['classification', 'diversity', 'loss']
    """

    temperature: Tensor

    def __init__(
        self,
        class_counts: ClassCounts,
        base: str = 'ldam',
        margin_scale: float = 30.0,
        diversity: float = -0.45,
        rho: float = 0.05,
        beta: float = 0.9999,
        reweight_epoch: int | None = 160,
        mode: str = 'individual',
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        check_number('diversity', diversity)
        check_choice('mode', mode, MODES)
        self.diversity, self.mode = diversity, mode
        self._seen_one_expert = False
        counts = clean_counts(class_counts)
        self.classification = CrossEntropyExperts(counts, base, margin_scale, gamma, beta, reweight_epoch)
        self.register_buffer('temperature', diversity_temperature(counts, rho).float(), persistent=False)

    def set_epoch(self, epoch: int) -> None:
        """Switches class weights and temperatures on or off; depends on nothing but the epoch.

        Args:
            epoch: Index of the epoch that begins, counted from 0.
        """
        self.classification.set_epoch(epoch)

    def parts(self, logits: ExpertLogits, target: Tensor) -> dict[str, Tensor]:
        """Computes the loss and its two terms.

        Args:
            logits: Expert logits, cosine scale included, shape (B, K, C).
            target: Class indices, shape (B,), or class probabilities, shape (B, C) (not for the `ldam` base).

        Returns:
            `loss`, and detached `classification` and `diversity`: loss = classification + factor * diversity, so
            `diversity` tells how far the experts are from their mean, whatever the factor.

        Raises:
            RideError: If C differs from the number of class counts, or soft targets meet `ldam`.
            ValueError: If the shapes do not fit.
        """
        logits, target = prepare_batch(logits, target, len(self.temperature))
        mean = logits.mean(1, keepdim=True)
        if logits.shape[1] == 1 and not self._seen_one_expert and in_training(logits):
            self._seen_one_expert = True
            warnings.warn(
                "RIDE's loss was given the logits of one expert, so nothing diversifies; train several experts (after "
                "model.train() and model.set_expert_training(True) the network returns each one's logits), or take "
                "the loss 'ldam' or 'ce'.",
                stacklevel=2,
            )
        if self.mode == 'individual':
            classification = self.classification(logits, target)
        else:
            classification = logits.shape[1] * self.classification(mean, target)
        diversity = self._divergence_from_mean(logits, mean)
        loss = classification + self.diversity * diversity
        return {'loss': loss, 'classification': classification.detach(), 'diversity': diversity.detach()}

    def _divergence_from_mean(self, logits: Tensor, mean: Tensor) -> Tensor:
        """Sums mean(T)^2 KL(sg softmax(zbar / T) || softmax(z_k / T)) over experts, given (B, K, C) and (B, 1, C)."""
        if not self.classification.reweighting:
            return kl_divergence(mean.log_softmax(-1), logits.log_softmax(-1)).sum(1).mean()
        temperature = self.temperature.to(logits.dtype)
        divergence = kl_divergence((mean / temperature).log_softmax(-1), (logits / temperature).log_softmax(-1))
        return temperature.mean() ** 2 * divergence.sum(1).mean()

    def extra_repr(self) -> str:
        """Describes the loss in one line."""
        return f'diversity={self.diversity}, mode={self.mode!r}'


def diversity_temperature(class_counts: ClassCounts, rho: float) -> Tensor:
    """Computes the temperatures of the diversity term, T_c = u_c / max u with u_c = C pi_c rho + 1 - rho.

    Rare classes get the smaller temperature, so experts are pushed apart more where there is less to learn from.

    Source: Wang et al., arXiv:2010.01809, in the form of the authors' code.

    Args:
        class_counts: Training images per class, shape (C,); below 1 counts as 1.
        rho: Between 0 (all temperatures 1) and 1 (proportional to the class prior pi).

    Returns:
        The temperatures in float64 on the CPU, shape (C,), the largest is 1.

    Raises:
        RideError: If rho is out of range.
    """
    check_number('rho', rho, low=0.0, high=1.0)
    prior = class_prior(class_counts)
    raised = len(prior) * prior * rho + 1.0 - rho
    return raised / raised.max()
