"""One pass over the evaluation images that yields everything: overall, groups, experts, routing and calibration."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from timm.task import evaluation_sample_limit
from torch import Tensor, nn
from tqdm import tqdm

from ride_timm.data import DataSplit, GroupChoice, choose_groups, create_eval_loader
from ride_timm.data.batches import read_batch
from ride_timm.errors import RideError
from ride_timm.evaluation.cost import gmacs, gmacs_by_experts
from ride_timm.evaluation.memory import FittingForward, place_of
from ride_timm.evaluation.metrics import ClassResult, LongTailEvaluator
from ride_timm.evaluation.rules import RULES, rule_logits
from ride_timm.evaluation.sweep import Sweep, SweepRow, passed_experts
from ride_timm.inference.temperature import tempered
from ride_timm.logs import interactive
from ride_timm.models import count_experts, expert_logits
from ride_timm.models.routing import check_threshold, prefix_means

__all__ = ['Answers', 'Measured', 'in_eval_mode', 'measure', 'measure_split']

_PREPARATION = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')


class Answers(NamedTuple):
    """What was said of N images by a network of K experts (0: a plain one); class C stands for no finite answer."""

    targets: NDArray[np.int64]
    """True class, (N,)."""
    answers: NDArray[np.int64]
    """Class that all experts together name, (N,)."""
    confidence: NDArray[np.float64]
    """Its softmax probability, (N,), 0..1."""
    experts: NDArray[np.int64]
    """Class that each expert names alone, (N, K)."""
    expert_confidence: NDArray[np.float64]
    """Its softmax probability, (N, K)."""
    routed: NDArray[np.int64] | None = None
    """Class that is named by routed inference, (N,); None where that was not measured."""


@dataclass(frozen=True)
class Measured:
    """What one pass over the images found; accuracies in percent.

    Attributes:
        metrics: Of `LongTailEvaluator`, all experts together, and `gmacs` unless `cost=False` was given.
        per_class: One row a class.
        confusion: (C, C + 1) images by true and by named class; the last column is no finite answer.
        groups: How the classes are grouped; None where their training images are not known.
        num_experts: K, 0 for a plain network.
        input_size: (channels, height, width) of the images.
        answers: What was said of each image; of this process's alone.
        routed: Of `LongTailEvaluator`, with the threshold, `threshold`, `mean_experts`, `gmacs` (mean of an image) and
            `share_<k>`, the share of the images that passed k experts; None where no routing was measured.
        routed_per_class: One row a class, routed; None likewise.
        sweep: Accuracy and cost at every threshold that was asked for; None likewise.
        routed_confusion: `confusion`, routed; None likewise.
        rules: The sweep of each rule of `ride_timm.evaluation.rules` in place of the router; None where not asked for.
        mirrored: `metrics` of the mean logits of each image and its mirror image; None where not asked for.
    """

    metrics: OrderedDict[str, float]
    per_class: list[ClassResult]
    confusion: NDArray[np.int64]
    groups: GroupChoice | None
    num_experts: int
    input_size: tuple[int, ...]
    answers: Answers
    routed: OrderedDict[str, float] | None = None
    routed_per_class: list[ClassResult] | None = None
    sweep: list[SweepRow] | None = None
    mirrored: OrderedDict[str, float] | None = None
    routed_confusion: NDArray[np.int64] | None = None
    rules: Mapping[str, list[SweepRow]] | None = None


class _Said(NamedTuple):
    """Logits of a batch: of the experts (B, K, C), of the routers (B, K - 1), and of the mirror images (B, C)."""

    experts: Tensor
    routers: Tensor
    mirrored: Tensor


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a network into eval mode for a while; each of its layers is in the mode that it was in afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.inference_mode()
def measure(
    model: Any,
    loader: Iterable[Any],
    class_counts: ArrayLike | None,
    *,
    groups: GroupChoice | None = None,
    class_names: Sequence[str] | None = None,
    routed: bool = False,
    threshold: float | None = None,
    thresholds: Sequence[float] = (),
    rules: bool = False,
    mirror: bool = False,
    temperatures: Sequence[float] | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    channels_last: bool = False,
    distributed: bool = False,
    cost: bool = True,
    progress: bool = False,
) -> Measured:
    """Run a network once over a loader, in eval mode; all experts are computed for every image.

    Args:
        model: Any timm classifier, where it is to compute; it is left in eval mode.
        loader: Batches of images (B, channels, H, W) and class indices (B,); what a distributed sampler pads is left
            out.
        class_counts: (C,) training images of each class; None where they are not known, which gives no groups.
        groups: How the classes are grouped; `choose_groups` by default.
        class_names: C names for the per-class table.
        routed: Measure routed inference as well; the network has a router.
        threshold: The one to route with; None means the network's own.
        thresholds: Those of the sweep, in [0, 1].
        rules: Sweep rules without training too; the network has a router.
        mirror: Measure the mean of each image and its mirror image as well.
        temperatures: What the mean logits of the first n experts are divided by, n = 1..K, see
            `ride_timm.inference.temperature`; None leaves them.
        autocast: Context of the forward pass.
        channels_last: Memory format of the images.
        distributed: Add up over processes.
        cost: Count the GMACs.
        progress: Show a bar in a terminal.

    Returns:
        What was found.

    Raises:
        RideError: There are no images, or a class index is none of the network's.
    """
    model.eval()
    device, dtype = place_of(model)
    experts = count_experts(model)
    if class_counts is not None and groups is None:
        groups = choose_groups(class_counts)
    counts = class_counts if class_counts is not None else np.zeros(model.num_classes, dtype=np.int64)
    members: Mapping[str, ArrayLike] = groups.groups if groups else {}
    create = partial(LongTailEvaluator, counts, groups=members, class_names=class_names, device=device)
    together = create(num_experts=experts)
    own_way = create() if routed else None
    both_ways = create() if mirror else None
    limit = check_threshold(model.router_threshold if threshold is None else threshold) if routed else 0.0
    sweep = Sweep((limit, *thresholds), together.num_classes, experts, device) if routed else None
    others = {name: Sweep(thresholds, together.num_classes, experts, device) for name in (RULES if rules else ())}
    said_of: list[tuple[Tensor, ...]] = []
    routed_said: list[Tensor] = []
    input_size: tuple[int, ...] = ()
    left = evaluation_sample_limit(loader)
    alone = None if temperatures is None else temperatures[:1]
    forward = FittingForward(partial(_forward, model, routed, mirror))
    shown = tqdm(loader, desc='Measuring', leave=False, disable=not (progress and interactive()))
    for batch in shown:
        images, labels = read_batch(batch)
        if labels is None:
            raise RideError('The loader yields images without class indices; measure on labelled images.')
        input_size = tuple(images.shape[1:])
        _check_labels(labels, together.num_classes)
        images = images.to(device, dtype)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast():
            found: _Said = forward(images)
        kept = len(labels) if left is None else min(left, len(labels))
        left = None if left is None else left - kept
        said, target = _Said(*(part[:kept] for part in found)), labels[:kept].to(device)
        logits = tempered(said.experts.mean(dim=1), temperatures)
        together.update(logits, target, said.experts if experts else None)
        if sweep is not None and own_way is not None:
            selected = _selected(said, limit, temperatures)
            own_way.update(selected, target)
            routed_said.append(_named(selected)[0])
            sweep.update(said.routers, said.experts, target)
            decisions = rule_logits(said.experts) if others else {}
            for name, other in others.items():
                other.update(decisions[name], said.experts, target)
        if both_ways is not None:
            both_ways.update((logits + tempered(said.mirrored, temperatures)) / 2, target)
        said_of.append((target, *_named(logits), *_named(tempered(said.experts[:, :experts], alone))))
    metrics = together.compute(distributed=distributed)
    if not metrics['num_images'] or not input_size:
        raise RideError('There are no images to measure on; the loader is empty.')
    if cost:
        metrics['gmacs'] = gmacs(model, input_size)
    rows = own = table = compared = None
    if sweep is not None and own_way is not None:
        for each in (sweep, *others.values()) if distributed else ():
            each.add_up()
        costs = gmacs_by_experts(model, input_size)
        row, *rows = sweep.rows(members, costs)
        compared = {name: other.rows(members, costs) for name, other in others.items()} or None
        own = own_way.compute(distributed=distributed)
        own.update({name: value for name, value in row.items() if name not in own})
        table = own_way.per_class(distributed=distributed)
    answers = Answers(*(torch.cat(part).cpu().numpy() for part in zip(*said_of, strict=True)))
    if routed_said:
        answers = answers._replace(routed=torch.cat(routed_said).cpu().numpy())
    both = both_ways.compute(distributed=distributed) if both_ways is not None else None
    confusion = together.confusion.cpu().numpy()
    per_class = together.per_class(distributed=distributed)
    return Measured(
        metrics, per_class, confusion, groups, experts, input_size, answers, own, table, rows, both,
        routed_confusion=None if own_way is None else own_way.confusion.cpu().numpy(), rules=compared,
    )  # fmt: skip


def measure_split(
    model: Any,
    split: DataSplit,
    class_counts: ArrayLike | None,
    config: Mapping[str, Any],
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | None = None,
    **options: Any,
) -> Measured:
    """Run a network once over a split, prepared as the network's data configuration says.

    Args:
        model: Any timm classifier; it is moved to the device.
        split: The images, labelled as the network's classes.
        class_counts: As for `measure`.
        config: timm's `resolve_data_config`.
        batch_size: Images a batch.
        workers: Loading processes.
        device: Where to compute; None means the CPU.
        **options: Others of `measure`.

    Returns:
        What was found.

    Raises:
        RideError: There are no images.
    """
    device = device or torch.device('cpu')
    prepared = {key: config[key] for key in _PREPARATION}
    loader = create_eval_loader(split, **prepared, batch_size=batch_size, workers=workers, device=device)
    return measure(model.to(device), loader, class_counts, class_names=split.class_names, **options)


def _check_labels(labels: Tensor, num_classes: int) -> None:
    # on the CPU alone: reading them on an accelerator would make every batch wait for it
    if labels.device.type == 'cpu' and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise RideError(
            f'The images have the class indices {int(labels.min())} to {int(labels.max())} and the network the classes '
            f'0 to {num_classes - 1}; measure it on the classes that it was trained on.'
        )


def _forward(model: nn.Module, routed: bool, mirror: bool, images: Tensor) -> _Said:
    net: Any = model
    if routed:
        routers, experts = net.forward_router(images)
    else:
        experts = expert_logits(model, images)
        routers = experts[:, :0, 0]
    mirrored = expert_logits(model, images.flip(-1)).mean(dim=1) if mirror else experts[:, 0, :0]
    return _Said(experts, routers, mirrored)


def _selected(said: _Said, threshold: float, temperatures: Sequence[float] | None) -> Tensor:
    """Mean logits (B, C) of the experts that each image passes, divided by their temperature."""
    passed = passed_experts(said.routers, threshold)
    means = prefix_means(said.experts)
    logits = means.gather(1, (passed - 1)[:, None, None].expand(-1, 1, means.shape[2]))[:, 0]
    return tempered(logits, temperatures, passed)


def _named(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Likeliest class and its probability along the last axis; class C where the largest logit is not finite."""
    largest, named = logits.float().max(-1)
    confidence = logits.float().softmax(-1).amax(-1).nan_to_num(0.0).double()
    return named.masked_fill(~largest.isfinite(), logits.shape[-1]), confidence
