"""Losses for several experts, each a function of (logits, target) without global state.

The logits are (B, K, C), or what a network returns in training: a tuple of K logits (B, C), or (B, C) of one expert.

| name | what it trains |
|---|---|
| `CrossEntropyExperts` | each expert by cross-entropy, focal loss or LDAM, with deferred re-weighting |
| `RideLoss` | the same, and experts that disagree where the classes are rare |
| `LogitAdjustedLoss` | each expert for its own class prior: balanced softmax, BalPoE |
| `SadeLoss` | three experts for the training, the uniform and the inverted class prior |
| `MutualLoss` | experts that learn from each other (added to one of the above) |
| `GatedMutualLoss` | the same, from those that are right, most where the classes are not learnt (added) |
| `SoftSuppressionLoss` | experts that stop agreeing on wrong classes (added) |
| `DistillationLoss` | the mean of the experts to follow a teacher (added to one of the above) |
| `RouterLoss` | the router, after the experts |

`create_loss` makes the classification losses by name; `prior_correction` serves other class priors after training.
"""

from ._common import ExpertLogits, ExpertLoss, stack_experts
from ._counts import ClassCounts, class_prior, effective_number_weights, ldam_margins
from .base import BASES, CrossEntropyExperts
from .distillation import DistillationLoss
from .factory import create_loss, fitting_options, list_losses
from .gated_mutual import GatedMutualLoss
from .logit_adjusted import (
    LogitAdjustedLoss,
    SadeLoss,
    balanced_softmax_loss,
    balpoe_loss,
    balpoe_tau,
    prior_correction,
    rank_reversed_prior,
)
from .mutual import MutualLoss
from .ride import MODES, RideLoss, diversity_temperature
from .router import ROUTER_TARGETS, RouterLoss, constant_router_loss, router_targets
from .soft_suppression import SoftSuppressionLoss

__all__ = [
    'BASES',
    'MODES',
    'ROUTER_TARGETS',
    'ClassCounts',
    'CrossEntropyExperts',
    'DistillationLoss',
    'ExpertLogits',
    'ExpertLoss',
    'GatedMutualLoss',
    'LogitAdjustedLoss',
    'MutualLoss',
    'RideLoss',
    'RouterLoss',
    'SadeLoss',
    'SoftSuppressionLoss',
    'balanced_softmax_loss',
    'balpoe_loss',
    'balpoe_tau',
    'class_prior',
    'constant_router_loss',
    'create_loss',
    'diversity_temperature',
    'effective_number_weights',
    'fitting_options',
    'ldam_margins',
    'list_losses',
    'prior_correction',
    'rank_reversed_prior',
    'router_targets',
    'stack_experts',
]
