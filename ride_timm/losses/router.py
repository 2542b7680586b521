"""The loss that teaches the router when one more expert helps."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ride_timm._compat import Float32Buffers
from ride_timm.errors import RideError

from ._common import is_soft, prepare_batch, prepare_logits
from ._options import check_choice, check_number

__all__ = ['ROUTER_TARGETS', 'RouterLoss', 'constant_router_loss', 'router_targets']

ROUTER_TARGETS = ('accuracy', 'disagreement')
"""Where a router is to go on: where a wrong answer would become right, or where the answer is not that of all."""


class RouterLoss(Float32Buffers):
    """Trains router I to go on exactly where the experts so far are wrong and more of them would be right.

    The mean over I of BCE(router I, 1[wrong after experts 0..I and right after some longer prefix]), averaged over the
    batch; see `router_targets`. The expert logits get no gradient.

    Source: Wang et al., arXiv:2010.01809 (expert assignment), in the form of the authors' code.

    Args:
        pos_weight: Weight of the images that need more experts: they are few, and stopping too early costs accuracy.
        wanted: Where to go on, one of `ROUTER_TARGETS`.

    Raises:
        RideError: If `pos_weight` is not a positive number, or `wanted` is none of them.
    """

    pos_weight: Tensor

    def __init__(self, pos_weight: float = 100.0, wanted: str = 'accuracy') -> None:
        super().__init__()
        check_choice('wanted', wanted, ROUTER_TARGETS)
        self.wanted = wanted
        check_number('pos_weight', pos_weight, low=0.0, exclusive=True)
        weight = torch.tensor(pos_weight, dtype=torch.float32, device='cpu')
        self.register_buffer('pos_weight', weight, persistent=False)

    def parts(self, router_logits: Tensor, expert_logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Computes the loss.

        Args:
            router_logits: Logit of going on from expert I to expert I + 1, shape (B, K - 1).
            expert_logits: Expert logits, shape (B, K, C).
            target: Class indices, shape (B,).

        Returns:
            `loss`, and detached `needed`, the share of (image, router) pairs whose target is to go on.

        Raises:
            RideError: If the target is soft.
            ValueError: If the shapes do not fit, or there is a single expert.
        """
        router_logits = prepare_logits(router_logits, 'router logits', 'BI')
        wanted = router_targets(expert_logits, target, self.wanted).to(router_logits.dtype)
        if router_logits.shape != wanted.shape:
            raise ValueError(
                f'The router logits have shape {tuple(router_logits.shape)}, but the expert logits of shape '
                f'{tuple(expert_logits.shape)} ask for {tuple(wanted.shape)}, one for each expert but the last.'
            )
        pos_weight = self.pos_weight.to(router_logits.dtype)
        loss = F.binary_cross_entropy_with_logits(router_logits, wanted, pos_weight=pos_weight)
        return {'loss': loss, 'needed': wanted.mean()}

    def forward(self, router_logits: Tensor, expert_logits: Tensor, target: Tensor) -> Tensor:
        """Computes the loss.

        Args:
            router_logits: Logit of going on from expert I to expert I + 1, shape (B, K - 1).
            expert_logits: Expert logits, shape (B, K, C).
            target: Class indices, shape (B,).

        Returns:
            The loss, a scalar in float32 (float64 for float64 router logits).
        """
        return self.parts(router_logits, expert_logits, target)['loss']


def constant_router_loss(needed: float, pos_weight: float = 100.0) -> float:
    """Computes the least `RouterLoss` of a router that gives every image the same answer.

    With p the share of targets that ask to go on and w their weight, the best such answer is the probability
    q = w p / (w p + 1 - p), and the loss is -w p log q - (1 - p) log(1 - q). A trained router above it tells less about
    an image than nothing.

    Args:
        needed: p, the share of (image, router) pairs whose target is to go on, between 0 and 1.
        pos_weight: w, as of `RouterLoss`.

    Returns:
        The loss; 0 where all targets are alike.
    """
    on, stop = pos_weight * needed, 1.0 - needed
    if on <= 0.0 or stop <= 0.0:
        return 0.0
    return on * math.log1p(stop / on) + stop * math.log1p(on / stop)


def router_targets(expert_logits: Tensor, target: Tensor, wanted: str = 'accuracy') -> Tensor:
    """Tells where going on would help: wrong after experts 0..I, and right after some longer prefix of the experts.

    With `disagreement`, where the answer after experts 0..I is another than that of all experts; the target does not
    count then, and what the router learns is what `ride_timm.choose_threshold` certifies. A prefix predicts the class
    of the largest mean logit over its experts, as routed inference does.

    Args:
        expert_logits: Expert logits, shape (B, K, C), K at least 2.
        target: Class indices, shape (B,).
        wanted: One of `ROUTER_TARGETS`.

    Returns:
        1 for going on from expert I and 0 for stopping, float32, shape (B, K - 1).

    Raises:
        RideError: If the target is soft.
        ValueError: If the shapes do not fit, or there is a single expert.
    """
    expert_logits, target = prepare_batch(expert_logits.detach(), target)
    if is_soft(target):
        raise RideError(
            'A router learns from right and wrong predictions and takes no soft targets; '
            'switch mixup, cutmix and label smoothing off for the router stage.'
        )
    experts = expert_logits.shape[1]
    if experts < 2:
        raise ValueError('The expert logits come from one expert, but a router needs at least two to choose between.')
    # not cumsum, which has no deterministic implementation for floating point numbers on CUDA
    prefix_means = torch.stack([expert_logits[:, :size].mean(1) for size in range(1, experts + 1)], dim=1)
    answers = prefix_means.argmax(-1)
    if wanted == 'disagreement':
        return (answers[:, :-1] != answers[:, -1:]).float()
    right = answers == target.unsqueeze(1)
    right_from = right.flip(1).cumsum(1).flip(1) > 0  # whether prefix I or any longer one is right
    return (~right[:, :-1] & right_from[:, 1:]).float()
