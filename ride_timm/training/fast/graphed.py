"""Forward and backward pass of a step as one CUDA graph, for networks that a GPU computes faster than Python asks."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ride_timm.errors import RideError
from ride_timm.evaluation.memory import is_out_of_memory
from ride_timm.tasks import ExpertTask
from ride_timm.training.config import ResolvedConfig
from ride_timm.training.fast.expert_streams import expert_streams

__all__ = ['GraphedStep', 'check_cuda_graph']

_WARM_UP = 3  # passes before the capture, in which libraries pick their algorithms and allocate


@dataclass
class _Captured:
    """A graph, and the memory that it reads and writes."""

    graph: Any
    images: Tensor
    target: Tensor
    parts: dict[str, Tensor]
    gradients: list[tuple[nn.Parameter, Tensor]]


class GraphedStep:
    """Computes loss and gradients of a batch by replaying a graph that was captured from the first such batch.

    A graph repeats the kernels that it was captured from, whatever Python would decide today. It is captured anew for
    batches of another shape or type, and, at the start of an epoch, where a setting of some module has changed, such as
    the re-weighting of a loss.

    Args:
        task: What is trained.
        autocast: Context of the forward pass.
        side_by_side: Let the experts compute at the same time; not for compiled networks, which have no experts any
            more.
    """

    def __init__(
        self, task: ExpertTask, autocast: Callable[[], AbstractContextManager[Any]], side_by_side: bool = True
    ) -> None:
        self.task, self.autocast, self.side_by_side = task, autocast, side_by_side
        self._settings: Any = None
        self._captured: dict[Any, _Captured] = {}

    def start_epoch(self) -> None:
        """Forget the graphs if the task is not as it was when they were captured."""
        found = _settings(self.task)
        if found != self._settings:
            self._settings = found
            self._captured.clear()

    def __call__(self, images: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Leave the gradients of a batch in the parameters, as `backward` would after `zero_grad`.

        Args:
            images: (B, channels, H, W), on the GPU.
            target: Class indices (B,) or class probabilities (B, C).

        Returns:
            The loss and its parts; the next call overwrites them.

        Raises:
            RideError: The step does something that no graph can hold.
        """
        key = (images.shape, images.stride(), images.dtype, target.shape, target.dtype)
        captured = self._captured.get(key)
        if captured is None:
            captured = self._captured[key] = self._capture(images, target)
        captured.images.copy_(images)
        captured.target.copy_(target)
        captured.graph.replay()
        for parameter, gradient in captured.gradients:
            parameter.grad = gradient
        return captured.parts

    def _compute(self, images: Tensor, target: Tensor) -> dict[str, Tensor]:
        with self.autocast():
            result = self.task(images, target)
        result['loss'].backward()
        return {name: value.detach() for name, value in result.items() if name != 'output'}

    def _capture(self, images: Tensor, target: Tensor) -> _Captured:
        with expert_streams(self.task, images.device) if self.side_by_side else nullcontext():
            return self._capture_kernels(images, target)

    def _capture_kernels(self, images: Tensor, target: Tensor) -> _Captured:
        images, target = images.clone(), target.clone()
        device = images.device
        buffers = [(buffer, buffer.clone()) for buffer in self.task.buffers()]
        state = torch.cuda.get_rng_state(device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self.task.zero_grad()
                self._compute(images, target)
        torch.cuda.current_stream(device).wait_stream(stream)
        with torch.no_grad():  # the passes before must leave no trace, BatchNorm's statistics included
            for buffer, before in buffers:
                buffer.copy_(before)
        torch.cuda.set_rng_state(state, device)
        self.task.zero_grad()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                parts = self._compute(images, target)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().partition('\n')[0].rstrip('.')
            raise RideError(
                f'This step cannot be captured as a CUDA graph ({reason}); leave out --cuda-graph.'
            ) from error
        gradients = [(p, p.grad) for p in self.task.parameters() if p.grad is not None]
        return _Captured(graph, images, target, parts, gradients)


def check_cuda_graph(config: ResolvedConfig, device: torch.device) -> None:
    """Refuse what does not go into a graph.

    Raises:
        RideError: The run cannot be captured.
    """
    others = {
        f'--device {device.type}': device.type != 'cuda',
        '--amp-dtype float16': config.amp and config.amp_dtype == 'float16',
        '--grad-accum-steps': config.grad_accum_steps > 1,
        '--grad-checkpointing': config.grad_checkpointing,
        'several processes': config.distributed,
    }
    for what, given in others.items():
        if given:
            raise RideError(f'--cuda-graph does not go with {what}; leave one of them out.')


def _settings(task: nn.Module) -> list[tuple[str, str, Any]]:
    """Plain attributes of all modules: what Python decides by."""
    return [
        (name, key, value)
        for name, module in task.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, (bool, int, float, str, type(None)))
    ]
