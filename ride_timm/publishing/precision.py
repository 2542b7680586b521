"""The precision that tensors are published in."""

from collections.abc import Mapping

import torch
from torch import nn

from ride_timm.errors import RideError

__all__ = ['DTYPES', 'cast_state', 'round_network']

DTYPES = {'float32': torch.float32, 'float16': torch.float16}
"""By the name that `ride-timm package --dtype` takes."""


def cast_state(state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Convert the large tensors of a state dict.

    Tensors of one dimension (normalisation, biases) and the router stay as they are: they are a thousandth of the
    bytes, running variances may leave float16's range, and the router's small differences decide.

    Args:
        state: Of a network, on any device.
        dtype: A floating-point type.

    Returns:
        The same keys, in the same order.

    Raises:
        RideError: A value is beyond the type's range.
    """
    cast = {}
    for key, tensor in state.items():
        keep = tensor.ndim < 2 or not tensor.is_floating_point() or key.startswith('router.')
        cast[key] = tensor if keep else tensor.to(dtype)
        if not keep and bool(tensor.isfinite().all()) and not bool(cast[key].isfinite().all()):
            limit, name = torch.finfo(dtype).max, str(dtype).removeprefix('torch.')
            raise RideError(
                f'{key} has a value of {float(tensor.abs().max()):.3g}, beyond the {limit:g} of {name}; keep --dtype '
                'float32.'
            )
    return cast


def round_network(model: nn.Module, dtype: torch.dtype) -> None:
    """Give a network the values that it has after its tensors were stored as `dtype`, in the types that it has.

    What is measured afterwards is what is published.

    Args:
        model: Any network; changed in place.
        dtype: As of `cast_state`.

    Raises:
        RideError: As `cast_state`.
    """
    model.load_state_dict(cast_state(model.state_dict(), dtype))
