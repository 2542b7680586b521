"""Weights and scales that a training must not go on with."""

from typing import Any

import torch

from ride_timm.errors import RideError
from ride_timm.tasks import ExpertTask

__all__ = ['check_scale', 'check_weights']

_LEAST_SCALE = 1e-9


def check_weights(task: ExpertTask, epoch: int) -> None:
    """Refuse weights that must not replace a good checkpoint.

    Args:
        task: Its network is looked at.
        epoch: Index of the epoch that ended.

    Raises:
        RideError: A parameter or a statistic of BatchNorm is not finite.
    """
    state = task.get_checkpoint_state()['state_dict']
    tensors = {name: t for name, t in state.items() if t.is_floating_point() and t.numel()}
    # one number per tensor, and a single wait for the device
    finite = torch.stack([t.isfinite().all() for t in tensors.values()]).tolist()
    bad = [name for name, good in zip(tensors, finite, strict=True) if not good]
    if bad:
        raise RideError(
            f'After epoch {epoch} {bad[0]}{f" and {len(bad) - 1} more tensors" if bad[1:] else ""} of the network are '
            'not finite; the last checkpoint is kept: lower --lr, or add --clip-grad 1.'
        )


def check_scale(scaler: Any, epoch: int) -> None:
    """Refuse to go on where float16 training does not get anywhere.

    Single steps whose gradients overflow are left out and the scale halved, which is normal; 46 halvings of 65536 more
    than there were doublings are not.

    Args:
        scaler: timm's `NativeScaler`, or None.
        epoch: Index of the epoch that ended.

    Raises:
        RideError: The scale of the loss has sunk below 1e-9.
    """
    scale = 1.0 if scaler is None else scaler.state_dict().get('scale', 1.0)
    if scale < _LEAST_SCALE:
        raise RideError(
            f'In epoch {epoch} the gradients overflowed float16 in every step (loss scale {scale:.1g}); the last '
            'checkpoint is kept: lower --lr, or use --amp-dtype bfloat16.'
        )
