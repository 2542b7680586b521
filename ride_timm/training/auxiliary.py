"""The losses that the arguments add to the classification loss of the experts."""

from typing import Any

from ride_timm.errors import RideError
from ride_timm.losses import ExpertLoss, GatedMutualLoss, MutualLoss, SoftSuppressionLoss
from ride_timm.tasks import WeightedLoss
from ride_timm.training.config import ResolvedConfig

__all__ = ['AUXILIARY', 'build_auxiliary']

AUXILIARY = ('mutual', 'mutual_hard', 'mutual_gated', 'soft_suppression')
"""Arguments whose value is the weight of an added loss; also the names that these are logged under."""


def build_auxiliary(config: ResolvedConfig, criterion: ExpertLoss, class_counts: Any) -> dict[str, WeightedLoss]:
    """Create the added losses; experts for different class priors are compared after adjusting their logits.

    Args:
        config: The run's options.
        criterion: The classification loss, which knows the experts' tau.
        class_counts: Training images per class, shape (C,).

    Returns:
        The losses of a weight other than 0, by name.

    Raises:
        RideError: The classification loss trains for priors that no tau describes.
    """
    weights = {name: getattr(config, name) for name in AUXILIARY if getattr(config, name)}
    if weights and config.loss == 'sade':
        raise RideError(
            f'--{next(iter(weights)).replace("_", "-")} compares the experts and those of the loss sade serve '
            'different class priors, without a tau to correct for; choose another loss.'
        )
    return {
        name: WeightedLoss(weight, _loss(name, config, criterion, class_counts)) for name, weight in weights.items()
    }


def _loss(name: str, config: ResolvedConfig, criterion: ExpertLoss, class_counts: Any) -> ExpertLoss:
    if name == 'mutual_gated':
        return GatedMutualLoss(class_counts, criterion.tau)
    if name == 'soft_suppression':
        return SoftSuppressionLoss(class_counts, criterion.tau)
    prior = {} if criterion.tau is None else {'tau': criterion.tau, 'class_counts': class_counts}
    return MutualLoss(config.mutual_temperature, hard_classes=name == 'mutual_hard', **prior)
