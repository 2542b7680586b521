"""Calibration on held-out images: `ride_timm.calibrate` and `ride-timm calibrate`.

A quarter of the images, drawn at random, fits the temperatures and the limits of confidence at which answers are
counted; the others measure what that gives, so that their counts are those of fresh images.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ride_timm.data.batches import read_batch
from ride_timm.errors import RideError
from ride_timm.evaluation.memory import FittingForward, place_of
from ride_timm.evaluation.metrics import NUM_BINS, expected_calibration_error
from ride_timm.evaluation.one_pass import in_eval_mode
from ride_timm.evaluation.sweep import passed_experts
from ride_timm.inference.load import TrainedNet
from ride_timm.inference.temperature import fit_temperature, tempered
from ride_timm.logs import interactive
from ride_timm.models import expert_logits
from ride_timm.models.routing import prefix_means
from ride_timm.records.calibration import AnswerCounts, Calibration, ConfidenceCurve

__all__ = ['FEWEST', 'Said', 'calibrate', 'confidence_curve']

FEWEST = 20
"""Images needed at least."""
_FITTED = 0.25
_SHARES = np.linspace(0.025, 0.975, 39)  # of the answers, of which the limits let through

Floats = NDArray[np.float64]


class Said(NamedTuple):
    """N answers: their confidences (N,), 0..1, and whether each is right, (N,)."""

    confidence: Floats
    right: NDArray[np.bool_]


class _Found(NamedTuple):
    """Of N images: mean logits of the first n experts (N, K, C), experts passed (N,), labels (N,)."""

    means: Tensor
    passed: Tensor
    labels: Tensor


def calibrate(net: TrainedNet, loader: Iterable[Any], *, progress: bool = False) -> Calibration:
    """Fit temperatures, and count right and wrong answers by confidence; the network's record keeps both.

    From then on `predict` gives confidences with these temperatures, and takes `abstain=`. The answers stay the same.
    A network with a router is measured both with all experts and as it routes.

    Args:
        net: Of `load`.
        loader: Batches of images (B, channels, H, W) and class indices (B,), at least `FEWEST` images that nothing of
            the network was trained or chosen on, and that are drawn as those to come.
        progress: Show a bar in a terminal.

    Returns:
        What was found, also in `net.record.calibration`.

    Raises:
        RideError: There are too few images, or none that the network gives finite logits.

    Example:
        >>> import torch, ride_timm as rt
        >>> net = rt.load('ride_resnet32_3e.ride_cifar100lt')
        >>> data = torch.utils.data.TensorDataset(torch.randn(40, 3, 32, 32), torch.arange(40))
        >>> found = rt.calibrate(net, torch.utils.data.DataLoader(data, batch_size=20))
        >>> len(found.temperatures), found.full.measured.images
        (3, 30)
    """
    model: Any = net.model
    threshold = None if getattr(model, 'router', None) is None else float(model.router_threshold)
    with in_eval_mode(model):
        found = _answers(model, loader, threshold, progress)
    number = len(found.labels)
    if number < FEWEST:
        raise RideError(f'Calibration needs at least {FEWEST} images and there are {number}; give more.')
    order = torch.from_numpy(np.random.default_rng(0).permutation(number))
    fitting, measuring = (_Found(*(part[rows] for part in found)) for rows in order.split(_sizes(number)))
    finite = fitting.means.isfinite().all(dim=2).all(dim=1)
    if not finite.any():
        raise RideError('The network gives no image finite logits and cannot be calibrated; look at its training.')
    temperatures = tuple(
        fit_temperature(fitting.means[finite, index], fitting.labels[finite]) for index in range(found.means.shape[1])
    )
    calibration = Calibration(
        temperatures=temperatures,
        full=_curve(_all_experts(fitting), _all_experts(measuring), temperatures, None),
        routed=None if threshold is None else _curve(fitting, measuring, temperatures, threshold),
    )
    net.record = replace(net.record, calibration=calibration)
    return calibration


def confidence_curve(
    fitting: Said, measuring: Said, ece_before: float, threshold: float | None = None
) -> ConfidenceCurve:
    """Draw limits of confidence from some answers, and count how many of others reach them.

    Args:
        fitting: Answers on the images that fitted the temperatures.
        measuring: Those on the others.
        ece_before: Calibration error of the latter without temperatures, in percent.
        threshold: What the answers were routed with; None: all experts.

    Returns:
        The curve; its last limit is 0.
    """
    limits = np.unique(np.quantile(fitting.confidence, _SHARES, method='lower'))[::-1]
    limits = np.append(limits[limits > 0], 0.0)
    return ConfidenceCurve(
        threshold=threshold,
        limits=tuple(limits.tolist()),
        fitted=_counts(fitting, limits),
        measured=_counts(measuring, limits),
        ece_before=ece_before,
        ece_after=_ece(measuring),
    )


def _sizes(number: int) -> list[int]:
    fitted = round(_FITTED * number)
    return [fitted, number - fitted]


@torch.inference_mode()
def _answers(model: Any, loader: Iterable[Any], threshold: float | None, progress: bool) -> _Found:
    device, dtype = place_of(model)
    forward = FittingForward(partial(_forward, model, threshold))
    parts = []
    for batch in tqdm(loader, desc='Measuring', leave=False, disable=not (progress and interactive())):
        images, labels = read_batch(batch)
        if labels is None:
            raise RideError('The loader yields images without class indices; calibrate on labelled images.')
        means, passed = forward(images.to(device, dtype))
        parts.append((means.float().cpu(), passed.cpu(), labels.cpu()))
    if not parts:
        raise RideError('There are no images to calibrate on; the loader is empty.')
    return _Found(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _forward(model: Any, threshold: float | None, images: Tensor) -> tuple[Tensor, Tensor]:
    if threshold is not None:
        routers, experts = model.forward_router(images)
        return prefix_means(experts), passed_experts(routers, threshold)
    experts = expert_logits(model, images)
    return prefix_means(experts), torch.full((len(experts),), experts.shape[1], device=experts.device)


def _all_experts(found: _Found) -> _Found:
    return found._replace(passed=torch.full_like(found.passed, found.means.shape[1]))


def _curve(
    fitting: _Found, measuring: _Found, temperatures: tuple[float, ...], threshold: float | None
) -> ConfidenceCurve:
    """The curve of the answers of as many experts as each image passed."""
    before = _ece(_said(measuring, None))
    return confidence_curve(_said(fitting, temperatures), _said(measuring, temperatures), before, threshold)


def _said(found: _Found, temperatures: tuple[float, ...] | None) -> Said:
    """Confidence of each answer, 0 where no logit is finite, and whether it is right."""
    logits = found.means[torch.arange(len(found.labels)), found.passed - 1]
    largest, answers = logits.max(dim=1)
    confidence = tempered(logits, temperatures, found.passed).softmax(dim=1).amax(dim=1)
    right = (answers == found.labels) & largest.isfinite()
    return Said(confidence.nan_to_num(0.0).double().numpy(), right.numpy())


def _counts(said: Said, limits: Floats) -> AnswerCounts:
    reach = said.confidence >= limits[:, None]
    wrong = reach & ~said.right
    return AnswerCounts(
        images=len(said.right), said=tuple(reach.sum(axis=1).tolist()), wrong=tuple(wrong.sum(axis=1).tolist())
    )


def _ece(said: Said) -> float:
    place = np.searchsorted(np.arange(1, NUM_BINS) / NUM_BINS, said.confidence, side='left')
    images, hits, sums = (np.bincount(place, weights, NUM_BINS) for weights in (None, said.right, said.confidence))
    return expected_calibration_error(images, hits, sums)
