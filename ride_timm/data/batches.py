"""Batches as any loader yields them."""

from typing import Any

import torch
from torch import Tensor

from ride_timm.errors import RideError

__all__ = ['read_batch']


def read_batch(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Images and class indices of a batch.

    Args:
        batch: Images (B, channels, H, W), or a tuple or list of them and B class indices; what follows is not used.

    Returns:
        The images, and the class indices (B,) in int64, where they were; None where there are none.

    Raises:
        RideError: It is neither, or there is not one class index for each image.
    """
    parts = list(batch[:2]) if isinstance(batch, (tuple, list)) else [batch]
    if not parts or not isinstance(parts[0], Tensor):
        raise RideError(
            f'The loader yields a {type(batch).__name__}; let it yield (images, class indices), tensors of shape '
            '(B, channels, H, W) and (B,).'
        )
    if len(parts) == 1:
        return parts[0], None
    try:
        labels = torch.as_tensor(parts[1]).long()
    except (TypeError, ValueError) as error:
        raise RideError(f'Class indices are whole numbers, and the loader yields {parts[1]!r}.') from error
    if labels.shape != (len(parts[0]),):
        raise RideError(
            f'A batch has {len(parts[0])} images and class indices of shape {tuple(labels.shape)}; give one for each.'
        )
    return parts[0], labels
