"""Experts side by side on a GPU: they depend on the trunk and not on each other."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ride_timm.models import count_experts

__all__ = ['expert_streams']


@contextmanager
def expert_streams(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Let the experts of all networks in a module compute on streams of their own, forward and backward.

    For the capture of a CUDA graph, in which memory has one fixed use: elsewhere the allocator would hand memory that
    one stream still reads to another.
    """
    with ExitStack() as stack:
        nets: list[Any] = [net for net in module.modules() if count_experts(net) > 1]
        for net in nets:
            net.run_experts = partial(_side_by_side, [torch.cuda.Stream(device) for _ in net.experts])
            stack.callback(setattr, net, 'run_experts', None)
        yield


def _side_by_side(streams: list[Any], experts: Any, z: list[torch.Tensor]) -> list[torch.Tensor]:
    """Final features of the experts, from what the trunk puts out; the current stream waits for all of them."""
    main = torch.cuda.current_stream(z[0].device)
    trunk = main.record_event()
    maps = []
    for stream, expert in zip(streams, experts, strict=True):
        stream.wait_event(trunk)
        with torch.cuda.stream(stream):
            maps.append(expert.forward_features(z))
    for stream in streams:
        main.wait_stream(stream)
    return maps
