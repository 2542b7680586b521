"""How far to route, certified on images or for a budget: `ride_timm.choose_threshold`."""

import bisect
import datetime
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from timm.utils import unwrap_model
from torch import nn

from ride_timm._compat import update_model_args
from ride_timm.data import choose_groups
from ride_timm.errors import RideError
from ride_timm.evaluation.bounds import images_needed, least_loss, most_losses, share_interval
from ride_timm.evaluation.cost import plain_gmacs
from ride_timm.evaluation.routes import Routes, find_routes
from ride_timm.records.certificate import LOSSES, Certificate

from .one_pass import in_eval_mode
from .scores import check_counts, require_router

__all__ = ['CANDIDATES', 'Gap', 'ThresholdChoice', 'choose_from', 'choose_threshold', 'in_gmacs', 'set_threshold']


def _candidates() -> tuple[float, ...]:
    fine, coarse = (step / 10 for step in range(-100, 101)), (step / 2 for step in range(-180, 73))
    middle = (1 / (1 + math.exp(-score)) for score in {*fine, *coarse})
    return (0.0, *sorted({float(f'{share:.6g}') if share < 0.5 else share for share in middle} - {1.0}), 1.0)


CANDIDATES = _candidates()
"""The thresholds that are tried, from all experts to the first alone: known before any image is seen, as the test asks
for. They are even in the router's logit, whose spread is some tens in networks that were trained with a large
`pos_weight`."""


@dataclass(frozen=True)
class Gap:
    """Accuracy of routed and of all experts over some images, in percent.

    Attributes:
        images: How many.
        full: Of all experts.
        routed: With routing.
        low: Lower end of the interval of routed minus full, in points.
        high: Upper end.
    """

    images: int
    full: float
    routed: float
    low: float
    high: float


@dataclass(frozen=True)
class ThresholdChoice:
    """The threshold that a network routes with, what was certified of it, and what it costs.

    Attributes:
        threshold: The router's probability above which an image goes on to the next expert.
        certificate: What holds for images like those used; None for a budget, and where nothing could be certified.
        reason: Why nothing could be certified, a clause; empty otherwise.
        changed: On how many of the images routed and full answers differ.
        num_images: How many images, copies counted once.
        mean_experts: Mean number of experts that an image passes.
        gmacs: Mean multiply-accumulate operations of an image, in 1e9.
        gmacs_interval: Of the mean over all images like these, with probability `confidence`.
        full_gmacs: Of all experts.
        confidence: Of the certificate and of all intervals.
        gaps: Of `all` images, and of the classes with `many`, `medium` and `few` training images; without labels empty.
        digest: SHA-256 of the images' pixels, in any order.
    """

    threshold: float
    certificate: Certificate | None
    reason: str
    changed: int
    num_images: int
    mean_experts: float
    gmacs: float
    gmacs_interval: tuple[float, float]
    full_gmacs: float
    confidence: float
    gaps: Mapping[str, Gap] = field(default_factory=dict)
    digest: str = ''

    def __str__(self) -> str:
        low, high = self.gmacs_interval
        lines = [f'threshold {self.threshold:g}' + (', all experts' if self.threshold == 0 else '')]
        if self.certificate is not None:
            lines.append(f'certified     {self.certificate}')
        elif self.reason:
            lines.append(f'not certified {self.reason}')
        lines += [
            f'images        {self.num_images:,}; {self.changed:,} answers differ from those of all experts',
            f'experts       {self.mean_experts:.2f}',
            f'GMACs         {self.gmacs:.4g} ({low:.4g} to {high:.4g}) instead of {self.full_gmacs:.4g}',
        ]
        for name, gap in self.gaps.items():
            lines.append(
                f'{name:<13} {gap.routed:.2f} % instead of {gap.full:.2f} % on {gap.images:,} images; the change is '
                f'{gap.low:+.2f} to {gap.high:+.2f} points'
            )
        return '\n'.join(lines)


def choose_threshold(
    model: nn.Module,
    loader: Iterable[Any],
    counts: ArrayLike | None = None,
    *,
    max_loss: float = 0.005,
    confidence: float = 0.95,
    budget: float | str | None = None,
    loss: str = 'disagreement',
) -> ThresholdChoice:
    """Choose how far a network routes, and set its `router_threshold`.

    Without a budget, this is the cheapest threshold for which a fixed-sequence test shows that routing loses on at most
    `max_loss` of all images like those given; the test is wrong with probability 1 - `confidence`. Thresholds are
    tried from all experts towards cheaper ones, and the last before the first failure is taken. If nothing can be
    shown, that is 0: all experts, which loses nothing. With a budget, it is the threshold that uses the most experts
    within that mean cost on the images; nothing is certified then.

    Source: Angelopoulos et al., Learn then Test (arXiv:2110.01052), fixed-sequence testing with the binomial tail;
    the loss without labels is that of Jazbec et al. (arXiv:2405.20915).

    Args:
        model: A multi-expert network of C classes with a trained router; `model.set_routing(model.router_threshold)`
            makes it route from then on.
        loader: Batches of images (B, channels, H, W), with or without class indices (B,), prepared as for an
            evaluation. Neither experts nor router were trained on them, and they are drawn like the images to come.
        counts: (C,) training images of each class, for the gaps of many, medium and few where there are class indices.
        max_loss: Share of the images, from 0 to 1: 0.005 is half a percent.
        confidence: From 0 to below 1.
        budget: Mean GMACs of an image, or `'0.9x'` for as many times those of the plain network.
        loss: What an image can lose: `disagreement`, the routed answer differs from that of all experts, or `accuracy`,
            the routed one is wrong and that of all experts right, which needs class indices.

    Returns:
        The choice, which prints well.

    Raises:
        RideError: There is no router, there are no images, a number is out of range, or no expert is within the budget.

    Example:
        >>> import timm, torch, ride_timm as rt
        >>> images = torch.randn(40, 3, 32, 32)
        >>> model = timm.create_model('test_ride_resnet_cifar_3e', num_classes=3, router=True)
        >>> choice = rt.choose_threshold(model, torch.utils.data.DataLoader(images, batch_size=8), max_loss=0.01)
        >>> choice.threshold, choice.reason
        (0.0, '40 images are too few: it takes at least 299')
        >>> rt.choose_threshold(model, torch.utils.data.DataLoader(images, batch_size=8), max_loss=1.0).mean_experts
        1.0
    """
    model = unwrap_model(model)
    if counts is not None:
        check_counts(model, counts)
    require_router(model)
    _check(max_loss, confidence, loss)
    with in_eval_mode(model):
        routes = find_routes(model, loader)
    if routes.labels is not None and not routes.labels.max() < model.num_classes:  # type: ignore[operator]
        raise RideError(
            f'The images have class indices up to {int(routes.labels.max())} and the network the classes 0 to '
            f'{model.num_classes - 1}; give images of the classes that it was trained on.'  # type: ignore[operator]
        )
    choice = choose_from(
        routes, counts, max_loss=max_loss, confidence=confidence, budget=in_gmacs(budget, model, routes), loss=loss
    )
    set_threshold(model, choice.threshold)
    return choice


def choose_from(
    routes: Routes,
    counts: ArrayLike | None = None,
    *,
    max_loss: float = 0.005,
    confidence: float = 0.95,
    budget: float | None = None,
    threshold: float | None = None,
    loss: str = 'disagreement',
) -> ThresholdChoice:
    """Choose as `choose_threshold` does, from what the router and the experts said.

    Args:
        routes: Of `find_routes`.
        counts: As of `choose_threshold`.
        max_loss: Likewise.
        confidence: Likewise.
        budget: Mean GMACs of an image.
        threshold: Take this one, and certify the least share of losses that the images show; `max_loss` is not used.
            It was chosen without these images.
        loss: As of `choose_threshold`.

    Raises:
        RideError: A number is out of range, the loss needs labels, or no expert is within the budget.
    """
    _check(max_loss, confidence, loss)
    if loss == 'accuracy' and routes.labels is None:
        raise RideError(
            'The loss of accuracy was asked for, but the images have no labels; give labels, or certify disagreement.'
        )
    certificate, reason = None, ''
    if budget is not None:
        threshold = _within_budget(routes, budget)
    else:
        if threshold is None:
            threshold, losses, reason = _certified(routes, max_loss, 1.0 - confidence, loss)
        else:
            losses = int(routes.lost(threshold, loss).sum())
            max_loss = least_loss(losses, len(routes), 1.0 - confidence)
        if not reason:
            certificate = Certificate(
                threshold=threshold, max_loss=max_loss, confidence=confidence, loss=loss, losses=losses,
                images=len(routes), digest=routes.digest, date=datetime.date.today().isoformat(),
            )  # fmt: skip
    costs = routes.gmacs(threshold)
    mean, spread = float(costs.mean()), float(costs.std(correction=0))
    half = statistics.NormalDist().inv_cdf((1 + confidence) / 2) * spread / math.sqrt(len(routes))
    return ThresholdChoice(
        threshold=threshold,
        certificate=certificate,
        reason=reason,
        changed=int(routes.lost(threshold, 'disagreement').sum()),
        num_images=len(routes),
        mean_experts=float(routes.passed(threshold).double().mean()),
        gmacs=mean,
        gmacs_interval=(max(mean - half, routes.costs[0]), min(mean + half, routes.costs[-1])),
        full_gmacs=routes.costs[-1],
        confidence=confidence,
        gaps=_gaps(routes, threshold, counts, confidence),
        digest=routes.digest,
    )


def in_gmacs(budget: float | str | None, model: nn.Module, routes: Routes) -> float | None:
    """A budget in GMACs of an image.

    Args:
        budget: GMACs, or `'0.9x'` for as many times those of the plain network; None stays.
        model: The network.
        routes: Of the images that it is for.

    Raises:
        RideError: It is neither, or the plain network is not known.
    """
    if budget is None:
        return None
    text = str(budget).strip()
    try:
        value = float(text.removesuffix('x'))
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise RideError(
            f"The budget is {budget} and must be GMACs, such as 0.07, or times the plain network, such as '0.9x'."
        )
    return value * plain_gmacs(model, routes.input_size) if text.endswith('x') else value


def set_threshold(model: Any, threshold: float) -> None:
    """Give a network the threshold that it routes with, and that an export of it writes down.

    Args:
        model: With a router.
        threshold: In [0, 1].
    """
    model.router_threshold = threshold
    update_model_args(model, router_threshold=threshold)


def _check(max_loss: float, confidence: float, loss: str) -> None:
    if not 0.0 <= max_loss <= 1.0:
        raise RideError(f'max_loss is {max_loss:g} and must be a share of the images from 0 to 1, such as 0.005.')
    if not 0.0 <= confidence < 1.0:
        raise RideError(f'confidence is {confidence:g} and must be from 0 to below 1, such as 0.95.')
    if loss not in LOSSES:
        raise RideError(f'loss is {loss} and must be one of {", ".join(LOSSES)}.')


def _certified(routes: Routes, max_loss: float, delta: float, loss: str) -> tuple[float, int, str]:
    """The threshold, the losses with it, and why nothing is certified: '' where something is."""
    allowed = most_losses(len(routes), max_loss, delta)
    if allowed < 0:
        needed = images_needed(max_loss, delta)
        if needed is None:
            return 0.0, 0, 'no number of images shows that routing never loses'
        return 0.0, 0, f'{len(routes):,} images are too few: it takes at least {needed:,}'
    found, losses = 0.0, 0
    for threshold in CANDIDATES[1:]:
        number = int(routes.lost(threshold, loss).sum())
        if number > allowed:
            if found:
                break
            first = f'even the most careful threshold loses on {number:,} of {len(routes):,} images'
            return 0.0, 0, f'{first}, but at most {allowed:,} would be allowed'
        found, losses = threshold, number
    return found, losses, ''


def _within_budget(routes: Routes, budget: float) -> float:
    """The threshold with the most experts whose mean cost is at most the budget."""
    if budget < routes.costs[0]:
        raise RideError(
            f'The budget is {budget:.4g} GMACs, but the first expert alone costs {routes.costs[0]:.4g}; give more.'
        )
    if budget >= routes.costs[-1]:
        return 0.0
    scores = torch.unique(routes.router_logits.double())  # thresholds lie between them: equal scores are not parted
    between: Sequence[float] = torch.sigmoid((scores[1:] + scores[:-1]) / 2).tolist()
    thresholds = [*between, 1.0]
    affordable = bisect.bisect_left(thresholds, True, key=lambda t: float(routes.gmacs(t).mean()) <= budget)
    return thresholds[affordable]


def _gaps(routes: Routes, threshold: float, counts: ArrayLike | None, confidence: float) -> dict[str, Gap]:
    """What routing changes of the accuracy, over all images and over those of each group of classes."""
    if routes.labels is None:
        return {}
    labels = routes.labels.numpy()
    full, routed = (answers.numpy() == labels for answers in (routes.full, routes.routed(threshold)))
    members: dict[str, Any] = {'all': np.unique(labels)}
    members |= choose_groups(counts).groups if counts is not None else {}
    inside = {name: np.isin(labels, classes) for name, classes in members.items()}
    return {name: _gap(full[rows], routed[rows], confidence) for name, rows in inside.items() if rows.any()}


def _gap(full: Any, routed: Any, confidence: float) -> Gap:
    # each of two intervals holds with half of what may go wrong, and their difference with all of it
    each, images = (1 + confidence) / 2, len(full)
    lost, won = (share_interval(int(rows.sum()), images, each) for rows in (full & ~routed, routed & ~full))
    return Gap(
        images, 100 * float(full.mean()), 100 * float(routed.mean()), 100 * (won[0] - lost[1]), 100 * (won[1] - lost[0])
    )
