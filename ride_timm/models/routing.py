"""Routed inference: each image passes as many experts as the router asks for."""

import functools
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.fx
from torch import nn

from .heads import at_least_float32

if TYPE_CHECKING:
    from .multi_expert import MultiExpertNet

__all__ = [
    'ExpertStep',
    'RoutedOutput',
    'RouterModule',
    'RouterOutput',
    'expert_steps',
    'forward_early_exit',
    'forward_selected',
    'prefix_means',
    'run_expert',
]


class RoutedOutput(NamedTuple):
    """What routed inference returns."""

    logits: torch.Tensor
    """Mean logits of the experts that each image passed, shape (B, C)."""
    num_experts: torch.Tensor
    """How many experts each image passed, shape (B,), int64."""


class RouterOutput(NamedTuple):
    """What the training of the router needs."""

    router_logits: torch.Tensor
    """Logit of "go on" after each expert but the last, shape (B, K - 1)."""
    expert_logits: torch.Tensor
    """Logits of every expert, shape (B, K, C)."""


class RouterModule(nn.Module):
    """What a router changes of an ordinary module: TorchScript and state dicts."""

    routing_threshold: float | None
    if TYPE_CHECKING:  # TorchScript cannot read this annotation
        router: nn.Module | None

    def __prepare_scriptable__(self) -> 'RouterModule':  # torch.jit.script calls it first
        """Refuse TorchScript while routing is on: the script would leave the router out and answer otherwise."""
        if self.routing_threshold is not None:
            raise RuntimeError(
                'TorchScript cannot route; call set_routing(None), or use torch.jit.trace or torch.export.'
            )
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of any module; a checkpoint's router is left out, with a warning, where the network has none.

        Args:
            state_dict: Parameters and buffers by name.
            strict: Raise if names are missing or not known.
            assign: Take the tensors themselves instead of copying them.

        Returns:
            The names that were missing, and those not known.

        Raises:
            RuntimeError: It does not fit, or the network has a router and the state dict none.
        """
        theirs = [key for key in state_dict if key.startswith('router.')]
        if theirs and self.router is None:
            warnings.warn(
                'The checkpoint has a router and the network has none, so the router is left out; create the network '
                'with router=True to keep it.',
                stacklevel=2,
            )
            state_dict = {key: value for key, value in state_dict.items() if not key.startswith('router.')}
        elif strict and state_dict and not theirs and self.router is not None:
            raise RuntimeError(
                'The network has a router and the checkpoint has none; create the network with router=False, or load '
                'with strict=False to keep the router as it was drawn.'
            )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def forward_selected(net: 'MultiExpertNet', x: torch.Tensor, limit: float) -> RoutedOutput:
    """Compute all experts and select: no control flow that depends on the data, for tracing, export and compile.

    Args:
        net: In eval mode, with a router.
        x: Images, shape (B, in_chans, H, W).
        limit: Router logit above which an image goes on.
    """
    router_logits, expert_logits = net.forward_router(x)
    prefix = prefix_means(expert_logits)
    go_on = router_logits[:, 0] > limit
    logits = prefix[:, 0]
    num_experts = torch.ones_like(go_on, dtype=torch.int64)
    for i in range(1, net.num_experts):
        if i > 1:
            go_on = go_on & (router_logits[:, i - 1] > limit)
        logits = torch.where(go_on.unsqueeze(1), prefix[:, i], logits)
        num_experts = num_experts + go_on.to(torch.int64)
    return RoutedOutput(logits, num_experts)


class ExpertStep(NamedTuple):
    """What one expert says of the images that reach it; n of a batch of B."""

    images: torch.Tensor
    """Their places in the batch, ascending, shape (n,), int64."""
    logits: torch.Tensor
    """The expert's own logits, shape (n, C)."""
    mean_logits: torch.Tensor
    """Mean logits of the experts so far, shape (n, C)."""
    router_logits: torch.Tensor | None
    """Logit of "go on", shape (n,); None after the last expert."""


def run_expert(
    net: 'MultiExpertNet', index: int, z: list[torch.Tensor], total: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Run one expert, and its router, on the n images that reach it.

    Args:
        net: In eval mode, with a router.
        index: Which expert.
        z: Of `forward_trunk`, for these images.
        total: Sum of the logits of the experts before, shape (n, C); None for the first.

    Returns:
        The expert's own logits (n, C), without its offset; the sum with them (n, C); the mean logits so far (n, C),
        with the offsets; and the logit of "go on" (n,), None after the last expert.
    """
    expert, offset = net.experts[index], net.logit_offset
    pooled = expert.forward_pool(expert.forward_features(z))
    logits = expert.fc(pooled)
    total = logits if total is None else total + logits
    mean = total / (index + 1)
    decision = net.require_router()(index, pooled, mean) if index < net.num_experts - 1 else None
    if offset is not None:  # only now: the router reads the logits as it was trained on them
        mean = at_least_float32(mean)
        mean = mean + offset[: index + 1].mean(dim=0).to(mean.device, mean.dtype)
    return logits, total, mean, decision


def expert_steps(net: 'MultiExpertNet', x: torch.Tensor, limit: float) -> Iterator[ExpertStep]:
    """Run each expert only on the images that reach it, one after the other.

    Args:
        net: In eval mode, with a router.
        x: Images, shape (B, in_chans, H, W).
        limit: Router logit above which an image goes on.

    Yields:
        One step an expert, up to the last that an image reaches.
    """
    z = net.forward_trunk(x)
    active = torch.arange(x.shape[0], device=x.device)
    total: torch.Tensor | None = None
    for i in range(net.num_experts):
        logits, total, mean, decision = run_expert(net, i, z, total)
        yield ExpertStep(active, net.with_offset(i, logits), mean, decision)
        if decision is None:
            break
        stay = (decision > limit).nonzero().squeeze(1)
        if stay.numel() == 0:
            break
        if stay.numel() < active.numel():
            active, z, total = active[stay], net.take(z, stay), total[stay]


def forward_early_exit(net: 'MultiExpertNet', x: torch.Tensor, limit: float) -> RoutedOutput:
    """Run each expert only on the images that reach it, and give each image the mean over those that it passed.

    Args:
        net: In eval mode, with a router.
        x: Images, shape (B, in_chans, H, W).
        limit: Router logit above which an image goes on.
    """
    num_experts = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    result = torch.zeros((), device=x.device)
    for i, step in enumerate(expert_steps(net, x, limit)):
        result = step.mean_logits if i == 0 else result.index_copy(0, step.images, step.mean_logits)
        num_experts[step.images] = i + 1
    return RoutedOutput(result, num_experts)


def prefix_means(expert_logits: torch.Tensor) -> torch.Tensor:
    """Mean logits over experts 0..k for every k.

    Args:
        expert_logits: Shape (B, K, C).

    Returns:
        Shape (B, K, C).
    """
    count = torch.arange(1, expert_logits.shape[1] + 1, device=expert_logits.device, dtype=expert_logits.dtype)
    return expert_logits.cumsum(dim=1) / count.view(1, -1, 1)


def check_threshold(threshold: float) -> float:
    """`threshold` as a float.

    Raises:
        ValueError: It is outside [0, 1], or a truth value, of which True would mean the first expert alone.
    """
    if isinstance(threshold, bool) or not 0.0 <= threshold <= 1.0:
        raise ValueError(f'A routing threshold of {threshold} was given; it is a probability from 0 to 1.')
    return float(threshold)


def is_symbolic(x: object) -> bool:
    """Whether `x` stands for a tensor in symbolic tracing."""
    return isinstance(x, torch.fx.Proxy)


def logit(probability: float) -> float:
    """log(p / (1 - p)), minus and plus infinity at 0 and 1."""
    if probability in (0.0, 1.0):
        return math.inf if probability else -math.inf
    return math.log(probability) - math.log1p(-probability)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)


@torch.compiler.assume_constant_result
def warn_nothing_saved(made: str) -> bool:
    """Warn while a static program is made: the program itself cannot.

    Args:
        made: How, as an adjective.
    """
    _warn_once(f'A {made} routed network computes all experts: nothing is saved.')
    return True
