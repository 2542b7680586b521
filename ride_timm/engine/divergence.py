"""Saying where a training run went wrong."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn

from ride_timm.errors import RideError
from ride_timm.tasks import ExpertTask

__all__ = ['check_scale', 'check_weights', 'describe_divergence']

_SHOWN = 10  # classes whose counts a message lists
_LEAST_SCALE = 1e-9
_ADVICE = 'no step was taken and the last checkpoint is kept: lower --lr, or add --clip-grad 1.'


@torch.no_grad()
def describe_divergence(
    module: nn.Module,
    autocast: Any,
    images: torch.Tensor,
    target: torch.Tensor,
    values: Mapping[str, float],
    gradient_norm: float,
    where: str,
) -> str:
    """One sentence about a batch whose loss or gradients are not finite.

    The batch goes through the network once more, to tell whose logits are not finite.

    Args:
        module: The trained module, with the weights that the batch met and its gradients.
        autocast: Context of the forward pass.
        images: The batch, shape (B, channels, H, W).
        target: Class indices, shape (B,), or class probabilities, shape (B, C).
        values: The loss and its parts.
        gradient_norm: Norm of all gradients; not finite, or the loss is not.
        where: Epoch, batch, step and learning rate.
    """
    what = f'The loss became {values["loss"]:g}'
    if torch.tensor(values['loss']).isfinite():
        what = f'The norm of the gradients became {gradient_norm:g} (loss {values["loss"]:g})'
    with autocast():
        experts = _bad_experts(unwrap_model(module)(images))
    if experts:
        source = f'logits of {_join(experts)} are not finite'
    else:
        found = sorted({_owner(name) for name, p in module.named_parameters() if _bad(p.grad)})
        source = 'all logits are finite' + (f', gradients of {_join(found)} are not' if found else '')
    parts = [f'{name} {value:.4g}' for name, value in values.items() if name != 'loss']
    counted = f'class counts of the batch {_counts(target)}'
    return '; '.join([f'{what} at {where}: {source}', *([', '.join(parts)] if parts else []), counted, _ADVICE])


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
            'checkpoint is kept: lower --lr, or take --amp-dtype bfloat16.'
        )


def _bad(values: torch.Tensor | None) -> bool:
    return values is not None and not bool(values.isfinite().all())


def _bad_experts(output: Any) -> list[str]:
    """Experts with logits that are not finite, of what a network returns in training."""
    logits = getattr(output, 'expert_logits', None)  # a router's training
    outputs: Iterable[torch.Tensor] = output if isinstance(output, tuple) else (output,)
    if logits is not None:
        outputs = logits.unbind(1)
    outputs = tuple(outputs)
    if len(outputs) == 1:
        return ['the network'] if _bad(outputs[0]) else []
    return [f'expert {k}' for k, one in enumerate(outputs) if _bad(one)]


def _owner(parameter: str) -> str:
    expert = re.search(r'\bexperts\.(\d+)\.', parameter)
    if expert:
        return f'expert {expert[1]}'
    return 'the router' if re.search(r'\brouter\.', parameter) else 'the trunk'


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f'{", ".join(names[:-1])} and {names[-1]}'


def _counts(target: torch.Tensor) -> str:
    """Images by class index, the most frequent first."""
    counts = target.sum(0) if target.ndim == 2 else target.bincount()
    order = counts.argsort(descending=True, stable=True)
    present = [c for c in order.tolist() if counts[c] > 0]
    shown = ', '.join(f'{c}: {counts[c]:g}' for c in present[:_SHOWN])
    return f'{{{shown}}}' if len(present) <= _SHOWN else f'{{{shown}, and {len(present) - _SHOWN} more classes}}'
