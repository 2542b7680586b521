"""Evaluate a network on a set of images, in one call: `ride_timm.evaluate`."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from timm.utils import unwrap_model
from torch import nn

from ride_timm.data import ClassGroups, GroupChoice
from ride_timm.errors import RideError
from ride_timm.evaluation.metrics import ClassResult
from ride_timm.losses import class_prior

from .one_pass import Measured, in_eval_mode, measure

__all__ = ['Scores', 'check_counts', 'evaluate', 'require_router']


@dataclass(frozen=True)
class Scores:
    """Results of a network on a set of images; accuracies are in percent.

    Attributes:
        overall: Accuracy over the images.
        balanced: Mean of the class accuracies.
        groups: Mean of the class accuracies in each group: `many`, `medium` and `few`, those that have tested classes.
        worst_class: Least class accuracy.
        macro_f1: Mean of the classes' F1.
        ece: Expected calibration error over 15 bins.
        experts: Accuracy over the images of each expert alone, K of them; empty for a plain network.
        disagreement: Share of the images whose experts do not all name one class, in percent; None without experts.
        gmacs: Mean multiply-accumulate operations of an image, in 1e9.
        input_size: (channels, height, width) of the images.
        num_images: How many images.
        threshold: What it routed with; None without routing.
        mean_experts: Mean number of experts that an image passed; None without routing.
        per_class: One row a class.
    """

    overall: float
    balanced: float
    groups: Mapping[str, float]
    worst_class: float
    macro_f1: float
    ece: float
    experts: tuple[float, ...]
    gmacs: float
    input_size: tuple[int, ...]
    num_images: int
    threshold: float | None = None
    mean_experts: float | None = None
    disagreement: float | None = None
    per_class: tuple[ClassResult, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        shown = {'overall': self.overall, 'balanced': self.balanced, **self.groups}
        shown |= {'worst class': self.worst_class, 'macro-F1': self.macro_f1, 'ECE': self.ece}
        shown |= {f'expert {k}': accuracy for k, accuracy in enumerate(self.experts)}
        lines = [f'{name:<12} {value:6.2f} %' for name, value in shown.items()]
        if self.disagreement is not None:
            lines.append(f'{"disagreement":<12} {self.disagreement:6.2f} %')
        if self.mean_experts is not None:
            lines.append(
                f'{"mean experts":<12} {self.mean_experts:6.2f} of {len(self.experts)}, threshold {self.threshold:g}'
            )
        lines.append(f'{"GMACs":<12} {self.gmacs:6.4g}, an image of {"x".join(map(str, self.input_size))}')
        lines.append(f'{"images":<12} {self.num_images:6}')
        return '\n'.join(lines)


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    counts: ArrayLike,
    *,
    routed: bool = False,
    groups: Mapping[str, ArrayLike] | None = None,
    amp: bool = False,
) -> Scores:
    """Evaluate a network in one pass over the images, on its device and in eval mode; its mode is restored afterwards.

    Args:
        model: Any timm classifier of C classes; of a multi-expert network each expert is measured too. What DDP or
            torch.compile wraps is measured as it is without them.
        loader: Batches of images (B, channels, H, W) and class indices (B,), such as a `DataLoader`.
        counts: (C,) training images of each class, as of `class_counts`.
        routed: Send each image through as many experts as the router asks for, with the network's `router_threshold`.
        groups: Class indices by name of a group, or a mask (C,). By default `many` has more than 100 training images,
            `few` fewer than 20 and `medium` the rest; thirds of the classes where that leaves one of them empty.
        amp: Mixed precision, bfloat16.

    Returns:
        The results, which print well.

    Raises:
        RideError: Lengths do not fit, there are no images, or routing is asked for and there is no router.

    Example:
        >>> import timm, torch, ride_timm as rt
        >>> data = torch.utils.data.TensorDataset(torch.randn(12, 3, 32, 32), torch.arange(12) % 3)
        >>> model = timm.create_model('test_ride_resnet_cifar_3e', num_classes=3)
        >>> scores = rt.evaluate(model, torch.utils.data.DataLoader(data, batch_size=4), [200, 50, 5])
        >>> sorted(scores.groups), len(scores.experts), scores.num_images
        (['few', 'many', 'medium'], 3, 12)
        >>> print(scores)  # doctest: +ELLIPSIS
        overall ...
    """
    model = unwrap_model(model)
    check_counts(model, counts)
    if routed:
        require_router(model)
    choice = None if groups is None else GroupChoice(_groups(groups, model), 'given', ', '.join(groups))
    device = next(model.parameters()).device
    autocast = partial(torch.autocast, device.type, torch.bfloat16) if amp else nullcontext
    with in_eval_mode(model):
        found = measure(model, loader, counts, groups=choice, routed=routed, autocast=autocast)
    return _scores(found)


def _groups(groups: Mapping[str, ArrayLike], model: Any) -> ClassGroups:
    members = {name: np.asarray(given) for name, given in groups.items()}
    members = {name: np.flatnonzero(given) if given.dtype == bool else given for name, given in members.items()}
    for name, given in members.items():
        if given.ndim != 1 or given.dtype.kind not in 'iu' or not np.isin(given, np.arange(model.num_classes)).all():
            raise RideError(
                f'The group {name} is {groups[name]!r}; give class indices from 0 to {model.num_classes - 1}.'
            )
    return members


def _scores(found: Measured) -> Scores:
    metrics = found.routed or found.metrics
    names = found.groups.groups if found.groups else ()
    each = found.answers.experts
    return Scores(
        overall=metrics['top1'],
        balanced=metrics['balanced'],
        groups={name: metrics[name] for name in names if name in metrics},
        worst_class=metrics['worst_class'],
        macro_f1=metrics['macro_f1'],
        ece=metrics['ece'],
        experts=tuple(found.metrics[f'expert{k}_top1'] for k in range(found.num_experts)),
        gmacs=metrics['gmacs'],
        input_size=found.input_size,
        num_images=int(metrics['num_images']),
        threshold=metrics.get('threshold'),
        mean_experts=metrics.get('mean_experts'),
        disagreement=100 * float((each != each[:, :1]).any(axis=1).mean()) if found.num_experts else None,
        per_class=tuple(found.routed_per_class or found.per_class),
    )


def check_counts(model: Any, counts: ArrayLike) -> None:
    """Check that there is one count a class of a network.

    Args:
        model: The network.
        counts: (C,) training images of each class.

    Raises:
        RideError: There is not, or they are no counts.
    """
    given = len(class_prior(counts))  # type: ignore[arg-type]
    if given != model.num_classes:
        raise RideError(
            f'The network has {model.num_classes} classes and counts has {given} numbers; give one for each class, as '
            'class_counts(targets, num_classes) does.'
        )


def require_router(model: Any) -> None:
    """Check that a network can route.

    Raises:
        RideError: It has no router.
    """
    if getattr(model, 'router', None) is None:
        raise RideError('Routing was asked for, but the network has no router; call ride_timm.train_router first.')
