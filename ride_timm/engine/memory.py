"""Batches that do not fit into memory: evaluation cuts them by itself, training says which batch would fit."""

import gc
import logging
from collections.abc import Callable
from typing import Any

import torch

from ride_timm.errors import RideError

__all__ = ['forward_in_parts', 'is_out_of_memory', 'largest_batch', 'out_of_memory_error']

_logger = logging.getLogger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, that of a device or of the machine."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and 'not enough memory' in str(error) and 'DefaultCPUAllocator' in str(error)


def forward_in_parts(forward: Callable[[torch.Tensor], Any], images: torch.Tensor) -> Any:
    """Compute a batch, in halves where it does not fit into memory.

    In eval mode the images of a batch do not see each other, so the figures stay the same. A warning says it once for
    each size.

    Args:
        forward: From images (B, ...) to a tensor or a tuple of tensors, (B, ...) each.
        images: (B, ...).

    Returns:
        What `forward` returns for the whole batch.

    Raises:
        RideError: A single image does not fit.
    """
    try:
        return forward(images)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(images) == 1:
            size = 'x'.join(map(str, images.shape[2:]))
            raise RideError(
                f'One image of {size} pixels does not fit into the memory of {images.device}; use a smaller '
                '--img-size, or another --device.'
            ) from error
    release_memory()  # outside of the handler, which keeps the tensors of the failed attempt alive
    half = (len(images) + 1) // 2
    _logger.warning(f'A batch of {len(images)} images does not fit into the memory of {images.device}: cut in two')
    parts = [forward_in_parts(forward, part) for part in images.split(half)]
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)
    joined = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    kind = type(parts[0])
    return kind(*joined) if hasattr(kind, '_fields') else kind(joined)


def release_memory() -> None:
    """Give back what the failed attempt holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def largest_batch(attempt: Callable[[int], None], failed: int) -> int | None:
    """The largest half, quarter, ... of a batch that an attempt gets through.

    Args:
        attempt: Computes a step with so many images; raises where they do not fit.
        failed: The batch that did not fit.

    Returns:
        The number of images, or None if not even one fits.
    """
    batch = failed // 2
    while batch:
        release_memory()
        if _fits(attempt, batch):
            return batch
        batch //= 2
    return None


def _fits(attempt: Callable[[int], None], batch: int) -> bool:
    try:
        attempt(batch)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def out_of_memory_error(
    batch: int, fitting: int | None, images: torch.Tensor, accumulated: int = 1, tried: bool = True
) -> RideError:
    """The sentence for a training batch that does not fit.

    Args:
        batch: Images of the batch.
        fitting: Images that do fit; None if not even one does.
        images: The batch, for its size and device.
        accumulated: Batches a step, `--grad-accum-steps`.
        tried: Whether `fitting` was tried.

    Returns:
        The error to raise.
    """
    size = 'x'.join(map(str, images.shape[2:]))
    found = f'A training batch of {batch} images of {size} pixels does not fit into the memory of {images.device}'
    if fitting is None:
        return RideError(f'{found}, and not even one image does; use a smaller --img-size or --model.')
    steps = accumulated * -(-batch // fitting)
    does = 'does' if tried else 'may'
    return RideError(
        f'{found}, and one of {fitting} {does}; use -b {fitting}, with --grad-accum-steps {steps} for as many images a '
        'step, or add --grad-checkpointing or --amp.'
    )
