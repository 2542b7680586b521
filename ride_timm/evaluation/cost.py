"""What a network costs: multiply-accumulate operations of an image, by the number of experts it passes."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ride_timm.models import MultiExpertNet, count_experts

__all__ = ['gmacs', 'gmacs_by_experts', 'mean_gmacs']


def gmacs(model: nn.Module, input_size: Sequence[int]) -> float:
    """GMACs of one image through the whole network, counted by PyTorch's own counter on the meta device.

    Args:
        model: Any network; it is copied, not touched.
        input_size: (channels, height, width).
    """
    net: Any = copy.deepcopy(model).to('meta').float().eval()
    if count_experts(net):
        net.set_routing(None)
    return _count(net, torch.empty(1, *input_size, device='meta'))


def gmacs_by_experts(model: MultiExpertNet, input_size: Sequence[int]) -> list[float]:
    """GMACs of one image that passes 1, 2, ..., K experts and the routers between them.

    Args:
        model: A multi-expert network; it is copied, not touched.
        input_size: (channels, height, width).

    Returns:
        K figures. The last leaves the routers out if there are none.
    """
    net = copy.deepcopy(model).to('meta').float().eval()
    x = torch.empty(1, *input_size, device='meta')
    total = _count(net.forward_trunk, x)
    z = net.forward_trunk(x)
    pooled = net.experts[0].forward_pool(net.experts[0].forward_features(z))  # of every expert the same shape
    costs = []
    for index, expert in enumerate(net.experts):
        if index and net.router is not None:
            total += _count(net.router, index - 1, pooled, expert.fc(pooled))
        total += _count(expert, z)
        costs.append(total)
    return costs


def mean_gmacs(costs: Sequence[float], shares: Sequence[float]) -> float:
    """Mean GMACs of an image.

    Args:
        costs: Of `gmacs_by_experts`.
        shares: Share of the images that pass 1, 2, ..., K experts.
    """
    return sum(cost * share for cost, share in zip(costs, shares, strict=True))


def _count(function: object, *inputs: object) -> float:
    with FlopCounterMode(display=False) as counter:
        function(*inputs)  # type: ignore[operator]
    return counter.get_total_flops() / 2e9  # two operations a multiply-accumulate
