"""One pass over the evaluation images: every figure of a report, and what was said of each image."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ride_timm.data import DataSplit, GroupChoice, choose_groups, create_eval_loader
from ride_timm.engine.cost import gmacs, gmacs_by_experts
from ride_timm.engine.logs import interactive
from ride_timm.engine.memory import FittingForward
from ride_timm.engine.setup import DATA_CONFIG_KEYS
from ride_timm.engine.sweep import THRESHOLDS, Sweep, SweepRow, passed_experts
from ride_timm.metrics import NUM_BINS, ClassResult, LongTailEvaluator
from ride_timm.models import MultiExpertNet
from ride_timm.models.routing import prefix_means

__all__ = ['Answers', 'Measured', 'agreement', 'reliability', 'take_stock', 'worst_pairs']

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Answers(NamedTuple):
    """What was said of N images by a network of K experts (0: a plain one); class C stands for no finite answer."""

    targets: Ints
    """True class, (N,)."""
    answers: Ints
    """Class that all experts together name, (N,)."""
    confidence: Floats
    """Its softmax probability, (N,), 0..1."""
    experts: Ints
    """Class that each expert names alone, (N, K)."""
    expert_confidence: Floats
    """Its softmax probability, (N, K)."""


@dataclass
class Measured:
    """Everything that a report says of a network's answers; accuracies in percent.

    Attributes:
        figures: Of `LongTailEvaluator`, all experts together, and `gmacs`.
        routed: The same with the network's own threshold, `threshold`, `mean_experts` and `share_<k>`; None without a
            router.
        sweep: Accuracy and cost at every threshold; None without a router.
        per_class: One row a class.
        confusion: (C, C + 1) images by true and by named class; the last column is no finite answer.
        answers: What was said of each image.
        groups: How the classes are grouped; None where their training images are not known.
        num_experts: K, 0 for a plain network.
    """

    figures: dict[str, float]
    routed: dict[str, float] | None
    sweep: list[SweepRow] | None
    per_class: list[ClassResult]
    confusion: Ints
    answers: Answers
    groups: GroupChoice | None
    num_experts: int


class _Said(NamedTuple):
    """Logits of a batch: (B, C), (B, K, C), and the routers' (B, K - 1)."""

    logits: Tensor
    experts: Tensor
    routers: Tensor


@torch.inference_mode()
def take_stock(
    model: Any,
    split: DataSplit,
    class_counts: Sequence[int] | None,
    config: dict[str, Any],
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | None = None,
) -> Measured:
    """Measure a network in float32, in one pass that also gives every threshold of a router.

    Args:
        model: Any network of timm's.
        split: The images, labelled as the network's classes.
        class_counts: (C,) training images of each class; None where they are not known.
        config: Data configuration of the network, timm's `resolve_data_config`.
        batch_size: Images a batch.
        workers: Loading processes.
        device: Where to compute.

    Returns:
        The figures, those of `ride-timm validate` on the same images, and the answers.
    """
    device = device or torch.device('cpu')
    model = model.to(device).eval()
    experts = model.num_experts if isinstance(model, MultiExpertNet) else 0
    routed = experts > 0 and model.router is not None
    groups = choose_groups(class_counts) if class_counts is not None else None
    counts = class_counts if class_counts is not None else split.class_counts
    new = partial(
        LongTailEvaluator, counts, groups=groups.groups if groups else {}, class_names=split.class_names, device=device
    )
    together, own_way = new(num_experts=experts), new()
    loader = create_eval_loader(
        split, **{key: config[key] for key in DATA_CONFIG_KEYS},
        batch_size=batch_size, workers=workers, device=device,
    )  # fmt: skip
    answers: list[tuple[Tensor, ...]] = []
    sweep = Sweep((model.router_threshold, *THRESHOLDS), len(counts), experts, device) if routed else None
    forward = FittingForward(partial(_forward, model))
    for images, labels in tqdm(loader, desc='Measuring', leave=False, disable=not interactive()):
        said: _Said = forward(images.to(device))
        target = labels.to(device)
        together.update(said.logits, target, said.experts if experts else None)
        answers.append((target, *_named(said.logits), *_named(said.experts)))
        if sweep is not None:
            own_way.update(_selected(said, model.router_threshold), target)
            sweep.update(said.routers, said.experts, target)
    figures = dict(together.compute()) | {'gmacs': gmacs(model, config['input_size'])}
    joined = Answers(*(torch.cat(part).cpu().numpy() for part in zip(*answers, strict=True)))
    rows = own = None
    if sweep is not None:
        row, *rows = sweep.rows(groups.groups if groups else {}, gmacs_by_experts(model, config['input_size']))
        own = row | dict(own_way.compute())
    return Measured(figures, own, rows, together.per_class(), together.confusion.cpu().numpy(), joined, groups, experts)


def worst_pairs(confusion: Ints, most: int = 15) -> list[tuple[int, int, int, int]]:
    """The pairs of classes that are taken for each other most often.

    Args:
        confusion: (C, C + 1) as in `Measured`.
        most: How many pairs at most.

    Returns:
        True class, named class, images, and images of the true class; the most frequent first, at equal numbers the
        larger share of the true class.
    """
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    images = confusion.sum(1)
    rows, columns = np.nonzero(wrong)
    found = [(int(i), int(j), int(wrong[i, j]), int(images[i])) for i, j in zip(rows, columns, strict=True)]
    return sorted(found, key=lambda pair: (-pair[2], pair[3], pair[0], pair[1]))[:most]


def reliability(answers: Answers) -> tuple[Ints, Floats, Floats]:
    """Accuracy over confidence, in the bins of the calibration error (arXiv:1706.04599).

    Args:
        answers: What was said.

    Returns:
        For each of the M bins the images, the share of right answers and the mean confidence, (M,) each; NaN for an
        empty bin.
    """
    edges = (np.arange(1, NUM_BINS) / NUM_BINS).astype(np.float32)
    place = np.searchsorted(edges, answers.confidence.astype(np.float32), side='left')
    images = np.bincount(place, minlength=NUM_BINS)
    right = np.bincount(place, answers.answers == answers.targets, minlength=NUM_BINS)
    confidence = np.bincount(place, answers.confidence, minlength=NUM_BINS)
    divisor = np.where(images > 0, images, np.nan)
    return images, right / divisor, confidence / divisor


def agreement(answers: Answers) -> Floats:
    """How often two experts name the same class.

    Args:
        answers: What was said by K experts.

    Returns:
        (K, K) percent of the images.
    """
    votes = answers.experts
    same: Floats = 100.0 * (votes[:, :, None] == votes[:, None, :]).mean(0)
    return same


def _forward(model: Any, images: Tensor) -> _Said:
    if not isinstance(model, MultiExpertNet):
        logits = model(images)
        return _Said(logits, logits[:, None][:, :0], logits[:, :0])
    if model.router is None:
        experts = model.forward_experts(images)
        return _Said(experts.mean(dim=1), experts, experts[:, :0, 0])
    found = model.forward_router(images)
    return _Said(found.expert_logits.mean(dim=1), found.expert_logits, found.router_logits)


def _selected(said: _Said, threshold: float) -> Tensor:
    """Mean logits (B, C) of the experts that each image passes."""
    passed = passed_experts(said.routers, threshold)
    means = prefix_means(said.experts)
    return means.gather(1, (passed - 1)[:, None, None].expand(-1, 1, means.shape[2]))[:, 0]


def _named(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Likeliest class and its probability along the last axis; class C where the largest logit is not finite."""
    largest, named = logits.float().max(-1)
    confidence = logits.float().softmax(-1).amax(-1).nan_to_num(0.0).double()
    return named.masked_fill(~largest.isfinite(), logits.shape[-1]), confidence
