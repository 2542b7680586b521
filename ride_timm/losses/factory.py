"""Losses by name, as recipes and the command line spell them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from timm.utils import unwrap_model

from ride_timm.errors import RideError, did_you_mean

from ._common import ExpertLoss
from ._counts import ClassCounts
from .base import CrossEntropyExperts
from .logit_adjusted import LogitAdjustedLoss, SadeLoss, balanced_softmax_loss, balpoe_loss, balpoe_tau
from .ride import RideLoss

__all__ = ['create_loss', 'fitting_options', 'list_losses']


def _cross_entropy(
    class_counts: ClassCounts | None = None, beta: float = 0.9999, reweight_epoch: int | None = None
) -> CrossEntropyExperts:
    return CrossEntropyExperts(class_counts, 'ce', beta=beta, reweight_epoch=reweight_epoch)


def _focal(
    class_counts: ClassCounts | None = None,
    gamma: float = 2.0,
    beta: float = 0.9999,
    reweight_epoch: int | None = None,
) -> CrossEntropyExperts:
    return CrossEntropyExperts(class_counts, 'focal', gamma=gamma, beta=beta, reweight_epoch=reweight_epoch)


def _ldam(
    class_counts: ClassCounts, margin_scale: float = 30.0, beta: float = 0.9999, reweight_epoch: int | None = None
) -> CrossEntropyExperts:
    return CrossEntropyExperts(class_counts, 'ldam', margin_scale, beta=beta, reweight_epoch=reweight_epoch)


_LOSSES: dict[str, Callable[..., ExpertLoss]] = {
    'balanced_softmax': balanced_softmax_loss,
    'balpoe': balpoe_loss,
    'ce': _cross_entropy,
    'focal': _focal,
    'ldam': _ldam,
    'logit_adjusted': LogitAdjustedLoss,
    'ride': RideLoss,
    'sade': SadeLoss,
}


def list_losses() -> list[str]:
    """Lists the names that `create_loss` knows.

    Returns:
        The names, sorted.
    """
    return sorted(_LOSSES)


def create_loss(
    name: str, class_counts: ClassCounts | None = None, model: Any = None, epochs: int | None = None, **options: Any
) -> ExpertLoss:
    """Create a classification loss for several experts by name.

    Args:
        name: One of `list_losses()`.
        class_counts: Training images per class, shape (C,); `ce` and `focal` without re-weighting need none.
        model: The network to train; scale of the margins and tau follow from it.
        epochs: Epochs of the training; `ride` re-weights in the last fifth of them.
        **options: Options of the loss, as its class or function takes them; they win over what follows.

    Returns:
        The loss, to be called with what the network returns in training (or logits (B, K, C)) and a target.

    Raises:
        RideError: If the name or an option is unknown, an option is out of range, or class counts are missing.

    Example:
        >>> import timm, torch, ride_timm as rt
        >>> model = timm.create_model('test_ride_resnet_cifar_3e', num_classes=3)
        >>> criterion = rt.create_loss('ride', [100, 10, 1], model=model, epochs=30)
        >>> criterion.set_epoch(0)
        >>> model.set_expert_training(True)
        >>> loss = criterion(model.train()(torch.zeros(2, 3, 32, 32)), torch.tensor([0, 2]))
        >>> loss.shape
        torch.Size([])
    """
    builder = _LOSSES.get(name)
    if builder is None:
        raise RideError(f'There is no loss named {name!r}{did_you_mean(name, _LOSSES, ";")} {_known(_LOSSES)}.')
    parameters = inspect.signature(builder).parameters
    known = [option for option in parameters if option != 'class_counts']
    for option in options:
        if option not in known:
            raise RideError(
                f'The loss {name!r} has no option {option!r}{did_you_mean(option, known, ";")} {_known(known)}.'
            )
    if class_counts is None and parameters['class_counts'].default is inspect.Parameter.empty:
        raise RideError(f'The loss {name!r} needs class_counts, the number of training images per class; pass them.')
    return builder(class_counts, **(fitting_options(name, model, epochs) | options))


def fitting_options(name: str, model: Any = None, epochs: int | None = None) -> dict[str, Any]:
    """The options of a loss that follow from the network and the length of its training.

    Args:
        name: One of `list_losses()`.
        model: The network to train, also wrapped for distributed training.
        epochs: Epochs of the training.

    Returns:
        `margin_scale`, the scale of the network's head, for losses with margins; `tau` for `balpoe` on another number
        of experts than 3; `reweight_epoch`, 80 % of the epochs as in RIDE's recipes, for `ride`.
    """
    options: dict[str, Any] = {}
    if model is not None:
        net = unwrap_model(model)
        if name in ('ldam', 'ride'):
            options['margin_scale'] = _head_scale(net)
        experts = getattr(net, 'num_experts', 1)
        if name == 'balpoe' and experts != 3:
            options['tau'] = balpoe_tau(experts)
    if epochs is not None and name == 'ride':
        options['reweight_epoch'] = int(0.8 * epochs)
    return options


def _head_scale(net: Any) -> float:
    """Logits per unit of margin: the scale of a cosine head, 1 for a linear one."""
    heads: Any = net.get_classifier() if hasattr(net, 'get_classifier') else None
    scale = getattr(heads[0] if hasattr(heads, '__len__') else heads, 'scale', 1.0)
    return float(scale) if isinstance(scale, (int, float)) else 1.0


def _known(names: Iterable[str]) -> str:
    listed = ', '.join(sorted(names))
    return f'choose from {listed}' if listed else 'it has none'
