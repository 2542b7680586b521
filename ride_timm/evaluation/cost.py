"""What a network costs: multiply-accumulate operations of an image, by the number of experts it passes."""

import copy
import re
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ride_timm.errors import RideError
from ride_timm.models import MultiExpertNet, count_experts

__all__ = ['describe_network', 'gmacs', 'gmacs_by_experts', 'mean_gmacs', 'plain_gmacs']


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
        K values. The last leaves the routers out if there are none.
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


def plain_gmacs(model: Any, input_size: Sequence[int]) -> float:
    """GMACs of one image through the network of one expert that a multi-expert network is compared with.

    Args:
        model: Of timm's registry: `ride_resnet50_4e` is compared with `resnet50`, `ride_resnet32_3e` with
            `ride_resnet32_1e`, and a network on any other backbone with that.
        input_size: (channels, height, width).

    Raises:
        RideError: It is not known what the network is to be compared with.
    """
    architecture = str((getattr(model, 'pretrained_cfg', None) or {}).get('architecture', ''))
    name = re.sub(r'^ride_|_\d+e$', '', architecture)
    options = {'num_classes': model.num_classes, 'in_chans': input_size[0]}
    make_host = getattr(model, 'make_host', None)
    with torch.device('meta'):
        if make_host is not None:
            host = make_host()
            host.reset_classifier(model.num_classes)
            return gmacs(host, input_size)
        for plain in (name, f'ride_{name}_1e'):
            if plain != architecture and timm.is_model(plain):
                return gmacs(timm.create_model(plain, **options), input_size)
    raise RideError(
        f'It is not known which plain network {architecture or "this network"} is to be compared with; give the budget '
        'in GMACs.'
    )


def describe_network(model: Any, input_size: Sequence[int]) -> dict[str, Any]:
    """Size and cost of a network.

    Args:
        model: Any network of timm's.
        input_size: (channels, height, width).

    Returns:
        `parameters`, `gmacs` of all experts, `gmacs_by_experts` (None for a plain network), `num_experts`,
        `multi_expert`, `router`, `input_size`.
    """
    experts = count_experts(model)
    return {
        'parameters': sum(parameter.numel() for parameter in model.parameters()),
        'gmacs': gmacs(model, input_size),
        'gmacs_by_experts': gmacs_by_experts(model, input_size) if experts else None,
        'num_experts': experts or 1,
        'multi_expert': experts > 0,
        'router': getattr(model, 'router', None) is not None,
        'input_size': list(input_size),
    }


def _count(function: object, *inputs: object) -> float:
    with FlopCounterMode(display=False) as counter:
        function(*inputs)  # type: ignore[operator]
    return counter.get_total_flops() / 2e9  # two operations a multiply-accumulate
