"""Long-tail metrics of an evaluation, all from one confusion matrix and a 15-bin reliability table."""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray

from ride_timm._compat import Evaluator
from ride_timm.data.groups import choose_groups
from ride_timm.errors import RideError
from ride_timm.records.headline import leading_accuracy

__all__ = [
    'ClassResult',
    'LongTailEvaluator',
    'accuracy_interval',
    'class_accuracy',
    'class_precision',
    'expected_calibration_error',
    'group_accuracy',
    'harmonic_accuracy',
    'macro_f1',
    'mean_accuracy',
    'wilson_interval',
]

NUM_BINS = 15
_ADDED = ('gmacs', 'threshold', 'mean_experts', 'changed')  # what a pass over the images adds to these results
_NORMAL_95 = 1.959963984540054  # standard normal quantile of 97.5 %
_CONFIDENCE_UNIT = 2**30  # confidences are summed in whole units of 1 / 2^30, so that no order of adding matters


class ClassResult(NamedTuple):
    """One row of the per-class table.

    `group` is '' if it has none; `accuracy` (the recall) is in percent, NaN without test images; `correct` of the
    `test_images` are recognised; `predicted` images of any class are taken for this one; `precision` is the percentage
    of those that are of it, NaN where there are none.
    """

    label: int
    name: str
    group: str
    train_images: int
    test_images: int
    accuracy: float
    correct: int = 0
    predicted: int = 0
    precision: float = math.nan

    def plain(self) -> dict[str, Any]:
        """The row as a record for JSON and CSV, with the ends of its 95 % interval; None instead of NaN."""
        low, high = accuracy_interval(self.accuracy, self.test_images) or (math.nan, math.nan)
        row = {**self._asdict(), 'accuracy_low': low, 'accuracy_high': high}
        return {key: None if value != value else value for key, value in row.items()}


def class_accuracy(confusion: ArrayLike) -> NDArray[np.float64]:
    """Accuracy of each class.

    Args:
        confusion: (C, C) counts of (true class, predicted class); more columns count as wrong.

    Returns:
        (C,) percent, NaN for a class without test images.
    """
    matrix = np.asarray(confusion)
    return percent_of(matrix.diagonal(), matrix.sum(1))


def class_precision(confusion: ArrayLike) -> NDArray[np.float64]:
    """Of the images that are taken for a class, the share that is of it.

    Returns:
        (C,) percent, NaN for a class that no image is taken for.
    """
    matrix = np.asarray(confusion)
    return percent_of(matrix.diagonal(), matrix.sum(0)[: len(matrix)])


def percent_of(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Shares (C,) in percent of whole numbers (C,); NaN of 0."""
    shares = np.full(len(whole), np.nan)
    return np.divide(100.0 * part, whole, out=shares, where=whole > 0)


def mean_accuracy(accuracy: ArrayLike) -> float:
    """Mean of the class accuracies over the classes that have test images, also called balanced accuracy.

    Args:
        accuracy: (C,) percent, NaN where a class has no test images.

    Returns:
        Percent; NaN if no class has test images.
    """
    values = np.asarray(accuracy, dtype=np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float('nan')


def macro_f1(confusion: ArrayLike) -> float:
    """Mean over the tested classes of F1, the harmonic mean of accuracy and precision of a class.

    Returns:
        Percent; NaN if no class has test images.
    """
    matrix = np.asarray(confusion)
    images, predicted = matrix.sum(1), matrix.sum(0)[: len(matrix)]
    tested = images > 0
    scores = 200.0 * matrix.diagonal()[tested] / (images + predicted)[tested]
    return float(scores.mean()) if scores.size else float('nan')


def wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of an accuracy (doi:10.1080/01621459.1927.10502953).

    Args:
        correct: Images that are recognised.
        images: All images, at least one.

    Returns:
        Lower and upper end in percent.
    """
    share, z2 = correct / images, _NORMAL_95**2
    centre = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = _NORMAL_95 * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2)) / (1 + z2 / images)
    return 100 * max(centre - half, 0.0), 100 * min(centre + half, 1.0)


def accuracy_interval(accuracy: float | None, images: int) -> tuple[float, float] | None:
    """Wilson's 95 % interval of the accuracy of a class.

    Args:
        accuracy: Percent.
        images: Its test images.

    Returns:
        Lower and upper end in percent; None without test images, or where the accuracy is not known.
    """
    if accuracy is None or math.isnan(accuracy) or not images:
        return None
    return wilson_interval(round(accuracy * images / 100), images)


def group_accuracy(accuracy: ArrayLike, groups: Mapping[str, ArrayLike]) -> dict[str, float]:
    """Mean of the class accuracies in each group, over the classes that have test images.

    Args:
        accuracy: (C,) percent, NaN where a class has no test images.
        groups: Class indices per group.

    Returns:
        Percent per group; a group without tested classes is absent.
    """
    values = np.asarray(accuracy, dtype=np.float64)
    picked = {name: values[np.asarray(index, dtype=np.int64)] for name, index in groups.items()}
    return {name: float(np.nanmean(part)) for name, part in picked.items() if not np.isnan(part).all()}


def harmonic_accuracy(accuracy: ArrayLike) -> float:
    """Harmonic mean of the class accuracies over the classes that have test images.

    Args:
        accuracy: (C,) percent, NaN where a class has no test images.

    Returns:
        Percent; 0 if a class has accuracy 0, NaN if no class has test images.
    """
    values = np.asarray(accuracy, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not values.size:
        return float('nan')
    return 0.0 if (values == 0).any() else float(values.size / (1 / values).sum())


def expected_calibration_error(images: ArrayLike, correct: ArrayLike, confidence: ArrayLike) -> float:
    """Expected calibration error: sum over bins of |accuracy - mean confidence|, weighted by images (arXiv:1706.04599).

    Args:
        images: (M,) images per confidence bin.
        correct: (M,) correctly classified images per bin.
        confidence: (M,) sum of the confidences per bin, each in 0..1.

    Returns:
        Percent; NaN without images.
    """
    total = np.asarray(images).sum()
    gap = np.abs(np.asarray(correct, dtype=np.float64) - np.asarray(confidence, dtype=np.float64)).sum()
    return float(100 * gap / total) if total else float('nan')


class LongTailEvaluator(Evaluator):
    """timm's evaluator with the metrics of the long-tail field added; everything in percent.

    `balanced` is the mean of the class accuracies, the leading one where the images are not balanced (see
    `leading_accuracy`); `many`, `medium` and `few` are the means over the group's classes, `worst_class` the least
    class accuracy, `harmonic` the harmonic mean of all, `macro_f1` the mean of the classes' F1, `ece` the calibration
    error over 15 equal-width bins of the largest softmax probability. Classes without test images are left out and
    counted in `num_classes_without_images`.
    An image whose largest logit is not finite counts as wrong, with confidence 0. Equal logits rank by class index. All
    but the loss are whole-number sums, so batch size, order and number of processes do not change them.

    Args:
        class_counts: (C,) number of training images per class.
        groups: Class indices per group; those of `choose_groups` by default, as on the command line.
        class_names: C names for the per-class table; the class indices by default.
        num_experts: K, number of experts whose own logits `update` is given, reported as `expert<k>_top1`.
        device: Device of the running totals, that of the model's output.
        max_samples: Ignore predictions beyond this many images (the padding of distributed samplers).
        criterion: Loss to report, cross-entropy by default.
    """

    def __init__(
        self,
        class_counts: ArrayLike,
        *,
        groups: Mapping[str, ArrayLike] | None = None,
        class_names: Sequence[str] | None = None,
        num_experts: int = 0,
        device: torch.device | str | None = None,
        max_samples: int | None = None,
        criterion: Any = None,
    ) -> None:
        self.class_counts = np.asarray(class_counts, dtype=np.int64)
        self.num_classes = len(self.class_counts)
        self.groups = dict(groups) if groups is not None else choose_groups(self.class_counts).groups
        self.class_names = tuple(class_names) if class_names is not None else tuple(map(str, range(self.num_classes)))
        if len(self.class_names) != self.num_classes:
            raise ValueError(f'{len(self.class_names)} class names for {self.num_classes} classes')
        self.num_experts = num_experts
        self.metric_names = (
            *Evaluator.metric_names, *self.groups, 'worst_class', 'harmonic', 'balanced',
            'macro_f1', 'ece', 'num_images', 'num_classes_without_images',
            *(f'expert{k}_top1' for k in range(num_experts)),
        )  # fmt: skip
        taken = set(self.groups) & {*_ADDED, *(name for name in self.metric_names if self.metric_names.count(name) > 1)}
        if taken:
            raise RideError(f'A group is called {taken.pop()}, as a result is; give it another name.')
        super().__init__(device, max_samples=max_samples, criterion=criterion)

    def reset(self) -> None:
        """Set every running total to zero."""
        super().reset()
        classes = self.num_classes
        # the last column takes the images without a valid prediction
        self.confusion = torch.zeros(classes, classes + 1, dtype=torch.int64, device=self.device)
        # rows: images, correct ones, sum of confidences in units of 1 / 2^30
        self.bins = torch.zeros(3, NUM_BINS, dtype=torch.int64, device=self.device)
        self.expert_correct = torch.zeros(self.num_experts, dtype=torch.int64, device=self.device)

    @torch.no_grad()
    def update(self, output: torch.Tensor, target: torch.Tensor, expert_logits: torch.Tensor | None = None) -> None:
        """Add a batch.

        Args:
            output: (B, C) logits of the model.
            target: (B,) class indices.
            expert_logits: (B, K, C) logits of each expert, exactly when the evaluator was made with `num_experts`.

        Raises:
            ValueError: If a shape does not fit.
        """
        self._check_shapes(output, target, expert_logits)
        output, target = self.prepare(output, target)
        if not len(output):
            return
        self.add_loss(self.criterion(output, target), len(output))
        rank, prediction = _rank_and_prediction(output, target)
        self.counts[1:] += torch.stack([(rank < 1).sum(), (rank < 5).sum()])
        cells = target * (self.num_classes + 1) + prediction
        self.confusion.view(-1).scatter_add_(0, cells, torch.ones_like(cells))  # does not wait for the device
        self._update_bins(output, rank < 1)
        if expert_logits is not None:
            experts = expert_logits[: len(output)].detach().float()
            ranks, _ = _rank_and_prediction(experts.flatten(0, 1), target.repeat_interleave(self.num_experts))
            self.expert_correct += (ranks.view(-1, self.num_experts) < 1).sum(0)

    def compute(self, distributed: bool = False) -> OrderedDict[str, float]:
        """All metrics so far.

        Args:
            distributed: Add up over the processes of the default group; all of them must call.

        Returns:
            Metrics in percent, by the names in `metric_names`; a group without tested classes is absent.
        """
        metrics: OrderedDict[str, float] = super().compute(distributed=distributed)
        confusion = self._total(self.confusion, distributed)
        num_images = int(confusion.sum())
        accuracy = class_accuracy(confusion)
        metrics.update(group_accuracy(accuracy, self.groups))
        tested = accuracy[~np.isnan(accuracy)]
        metrics['worst_class'] = float(tested.min()) if tested.size else float('nan')
        metrics['harmonic'] = harmonic_accuracy(accuracy)
        metrics['balanced'] = mean_accuracy(accuracy)
        if leading_accuracy(confusion.sum(1)) == 'balanced':
            metrics.move_to_end('balanced', last=False)
        metrics['macro_f1'] = macro_f1(confusion)
        images, hits, confidence = self._total(self.bins, distributed)
        metrics['ece'] = expected_calibration_error(images, hits, confidence / _CONFIDENCE_UNIT)
        metrics['num_images'] = num_images
        metrics['num_classes_without_images'] = self.num_classes - tested.size
        if self.num_experts:
            for expert, correct in enumerate(self._total(self.expert_correct, distributed)):
                metrics[f'expert{expert}_top1'] = 100 * int(correct) / max(num_images, 1)
        return metrics

    def per_class(self, distributed: bool = False) -> list[ClassResult]:
        """The per-class table.

        Returns:
            One row per class, in label order.
        """
        confusion = self._total(self.confusion, distributed)
        group_of = {int(index): name for name, members in self.groups.items() for index in np.asarray(members)}
        columns = zip(
            self.class_names, self.class_counts.tolist(), confusion.sum(1).tolist(), class_accuracy(confusion).tolist(),
            confusion.diagonal().tolist(), confusion.sum(0)[:-1].tolist(), class_precision(confusion).tolist(),
            strict=True,
        )  # fmt: skip
        return [ClassResult(index, name, group_of.get(index, ''), *rest) for index, (name, *rest) in enumerate(columns)]

    def _check_shapes(self, output: torch.Tensor, target: torch.Tensor, experts: torch.Tensor | None) -> None:
        if output.ndim != 2 or output.shape[1] != self.num_classes or target.shape != output.shape[:1]:
            raise ValueError(
                f'expected logits (B, {self.num_classes}) and class indices (B,), '
                f'not {tuple(output.shape)} and {tuple(target.shape)}'
            )
        given = None if experts is None else tuple(experts.shape)
        wanted = (len(output), self.num_experts, self.num_classes) if self.num_experts else None
        if given != wanted:
            raise ValueError(f'expected expert logits of shape {wanted}, not {given}')

    def _update_bins(self, output: torch.Tensor, correct: torch.Tensor) -> None:
        confidence = output.softmax(1).amax(1).nan_to_num(0.0)
        # (lower, upper] bins; the edges 0 and 1 need no boundary
        edges = torch.arange(1, NUM_BINS, device=output.device, dtype=output.dtype) / NUM_BINS
        place = torch.bucketize(confidence, edges)
        # scaling by a power of two is exact, also in float32
        units = (confidence * _CONFIDENCE_UNIT).round().to(torch.int64)
        self.bins.scatter_add_(1, place.expand(3, -1), torch.stack([torch.ones_like(units), correct.long(), units]))

    @staticmethod
    def _total(counts: torch.Tensor, distributed: bool) -> NDArray[np.int64]:
        """The counts of all processes, on the CPU."""
        counts = counts.clone()
        if distributed:
            dist.all_reduce(counts)
        array: NDArray[np.int64] = counts.cpu().numpy()
        return array


def _rank_and_prediction(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rank (B,) of the true class, 0 = first, and predicted class (B,).

    Where the largest logit is not finite the rank is beyond every k and the prediction is C. Equal logits rank by class
    index: topk breaks such ties, and places NaN, in its own way, which would make the metrics depend on the batch.
    """
    index = torch.arange(logits.shape[1], device=logits.device)
    own = logits.gather(1, target[:, None])
    before = (logits > own) | ((logits == own) & (index < target[:, None]))
    largest, prediction = logits.max(1)
    invalid = ~largest.isfinite()  # a NaN anywhere in the row is its maximum
    rank = before.sum(1).masked_fill(invalid, torch.iinfo(torch.int64).max)
    return rank, prediction.masked_fill(invalid, logits.shape[1])
