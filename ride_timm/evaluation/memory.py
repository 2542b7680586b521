"""Batches that do not fit into memory: evaluation cuts them by itself, training says what to do."""

import gc
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ride_timm.errors import RideError

__all__ = ['FittingForward', 'is_out_of_memory', 'out_of_memory_error', 'place_of']

_logger = logging.getLogger(__name__)

_SHORTAGE = (
    "DefaultCPUAllocator: can't allocate memory", 'DefaultCPUAllocator: not enough memory',
    'could not create a memory object',
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, that of a device or of the machine."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)  # of torch's allocator on Linux and macOS, of that on Windows, and of oneDNN
    return any(words in text for words in _SHORTAGE)


def place_of(model: torch.nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and precision in which a network takes its images."""
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    return (tensors[0].device, tensors[0].dtype) if tensors else (torch.device('cpu'), torch.float32)


class FittingForward:
    """A forward pass in eval mode that computes batches in parts where they do not fit into memory.

    The images of a batch do not see each other there, so the results stay the same. What did not fit once is not tried
    again, and a warning says it once for each size.

    Args:
        forward: From images (B, ...) to a tensor or a tuple of tensors, (B, ...) each.
    """

    def __init__(self, forward: Callable[[torch.Tensor], Any]) -> None:
        self.forward = forward
        self.most: int | None = None

    def __call__(self, images: torch.Tensor) -> Any:
        """What `forward` returns for the whole batch (B, ...); raises a RideError where a single image does not fit."""
        parts: list[Any] = []
        done = 0
        while done < len(images) or not parts:
            part = images[done : done + (self.most or len(images))]
            found = self._attempt(part)
            if found is not None:
                parts.append(found)
                done += len(part)
                continue
            release_memory()  # outside of the handler, which keeps the tensors of the failed attempt alive
            self.most = (len(part) + 1) // 2
            _logger.warning(
                f'A batch of {len(part)} images does not fit into the memory of {images.device}: it is computed in '
                f'parts of {self.most}'
            )
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _attempt(self, images: torch.Tensor) -> Any:
        """The outputs, or None where they do not fit."""
        try:
            return self.forward(images)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(images) == 1:
                size = 'x'.join(map(str, images.shape[2:]))
                raise RideError(
                    f'One image of {size} pixels does not fit into the memory of {images.device}; use a smaller '
                    '--img-size, or another --device.'
                ) from error
        return None


def _joined(parts: Sequence[Any]) -> Any:
    """The outputs of the parts of a batch as those of the batch."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(list(parts))
    joined = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    kind = type(parts[0])
    return kind(*joined) if hasattr(kind, '_fields') else kind(joined)


def release_memory() -> None:
    """Give back what the failed attempt holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory_error(images: torch.Tensor) -> RideError:
    """The sentence for a training batch that does not fit; it is never made smaller silently, for that changes the run.

    Args:
        images: The batch, shape (B, channels, H, W), or (B,) where what the trunk makes of them is kept.
    """
    size = f' of {"x".join(map(str, images.shape[2:]))} pixels' if images.ndim > 1 else ''
    found = f'A training batch of {len(images)} images{size} does not fit into the memory of {images.device}'
    half = len(images) // 2
    if half < 2:  # batch normalisation learns nothing from one image
        return RideError(f'{found}; use a smaller --img-size or --model.')
    return RideError(
        f'{found}; use -b {half}, with twice the --grad-accum-steps for as many images a step, or --grad-checkpointing.'
    )
