"""Rules that need no training and decide like a router when an image has seen enough experts: what one has to beat."""

import math

import torch
from torch import Tensor

from ride_timm.models.routing import prefix_means

__all__ = ['RULES', 'rule_logits']

RULES = {
    'softmax': 'largest softmax probability of the mean logits so far',
    'margin': 'gap between the two largest',
    'entropy': 'entropy of the softmax, as a share of the largest possible',
    'agreement': 'the experts so far name one class; the first is never alone',
    'oracle': 'stops at the first answer that is that of all experts: no router saves more without changing answers',
}


def rule_logits(expert_logits: Tensor) -> dict[str, Tensor]:
    """What each rule says after all experts but the last, in place of a router.

    Args:
        expert_logits: (B, K, C).

    Returns:
        By name of `RULES`, the logit of "go on", (B, K - 1) float32: of one minus the first two, of the entropy, and
        infinite for the rules that are yes or no.
    """
    means = prefix_means(expert_logits.float())
    shares = means[:, :-1].softmax(-1)
    top = shares.topk(min(2, shares.shape[-1]), dim=-1).values
    answers, own = means.argmax(-1), expert_logits.argmax(-1)
    apart = torch.stack([(own[:, : k + 1] != own[:, :1]).any(1) for k in range(own.shape[1] - 1)], dim=1)
    apart[:, 0] = True
    unsure = {
        'softmax': 1 - top[..., 0],
        'margin': 1 - (top[..., 0] - top[..., -1]),
        'entropy': torch.special.entr(shares).sum(-1) / math.log(max(shares.shape[-1], 2)),
        'agreement': apart.float(),
        'oracle': (answers[:, :-1] != answers[:, -1:]).float(),
    }
    return {name: share.clamp(0, 1).logit() for name, share in unsure.items()}
