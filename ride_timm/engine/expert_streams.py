"""Experts side by side on a GPU: they depend on the trunk and not on each other."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ride_timm.models import MultiExpertNet

__all__ = ['expert_streams']


@contextmanager
def expert_streams(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Let the experts of all networks in a module compute on streams of their own, forward and backward.

    For the capture of a CUDA graph, in which memory has one fixed use: elsewhere the allocator would hand memory that
    one stream still reads to another.

    Args:
        module: Holds the networks.
        device: The GPU.
    """
    with ExitStack() as stack:
        for net in module.modules():
            if isinstance(net, MultiExpertNet) and len(net.experts) > 1:
                _fork(net, device, stack)
        yield


def _fork(net: MultiExpertNet, device: torch.device, stack: ExitStack) -> None:
    streams: list[Any] = [torch.cuda.Stream(device) for _ in net.experts]
    first, last = net.expert_stages[0], net.expert_stages[-1]
    state: dict[str, Any] = {}

    def enter(index: int, *_: Any) -> None:
        if index == 0:
            state['main'] = torch.cuda.current_stream(device)
            state['trunk'] = state['main'].record_event()
        streams[index].wait_event(state['trunk'])
        torch.cuda.set_stream(streams[index])

    def leave(index: int, *_: Any) -> None:
        torch.cuda.set_stream(state['main'])
        if index == len(streams) - 1:
            for stream in streams:
                state['main'].wait_stream(stream)

    for index, expert in enumerate(net.experts):
        stack.callback(getattr(expert, first).register_forward_pre_hook(partial(enter, index)).remove)
        stack.callback(getattr(expert, last).register_forward_hook(partial(leave, index)).remove)
