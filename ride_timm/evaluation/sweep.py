"""Accuracy and cost of routed inference over a range of thresholds, and the choice of one."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ride_timm.evaluation.cost import mean_gmacs
from ride_timm.evaluation.metrics import group_accuracy, mean_accuracy, percent_of
from ride_timm.files import write_whole
from ride_timm.models.routing import logit, prefix_means

__all__ = [
    'THRESHOLDS',
    'TOLERANCE',
    'Sweep',
    'SweepRow',
    'choose_threshold',
    'format_sweep',
    'passed_experts',
    'write_sweep',
]

_ENDS = (0.001, 0.003, 0.01, 0.02)
THRESHOLDS = (0.0, *_ENDS, *(step / 20 for step in range(1, 20)), *(round(1 - end, 3) for end in reversed(_ENDS)), 1.0)
"""From 0, all experts for every image, to 1, the first alone: steps of 0.05, and finer ones towards both ends, where a
router that was trained with a large weight on the images that need more experts has many of its answers."""

TOLERANCE = 0.3
"""Points of accuracy that routing may cost by default."""

MEASURES = ('top1', 'balanced')
"""What accuracy is by default: over the images, and over the classes."""

SweepRow: TypeAlias = dict[str, float]
"""At a threshold: `top1`, `balanced` (mean of the classes' accuracies), the groups', `mean_experts`, `gmacs`,
`share_1` .. `share_K`, the shares of the images that pass so many experts, and `changed`, the percentage of images
whose answer is another than that of all experts."""


class Sweep:
    """What routing at each of T thresholds comes to, added up over batches that all K experts have seen.

    Attributes:
        correct: (T, C) right answers by true class, int64.
        passed: (T, K + 1) images by the number of experts they pass; nothing stands at 0.
        changed: (T,) images whose answer is another than that of all experts.
        images: (C,) images.
    """

    def __init__(
        self, thresholds: Sequence[float], num_classes: int, num_experts: int, device: torch.device | None = None
    ) -> None:
        """Begin with no images.

        Args:
            thresholds: In [0, 1].
            num_classes: C.
            num_experts: K.
            device: Where the batches are.
        """
        self.thresholds = tuple(thresholds)
        self.correct = torch.zeros(len(self.thresholds), num_classes, dtype=torch.int64, device=device)
        self.passed = torch.zeros(len(self.thresholds), num_experts + 1, dtype=torch.int64, device=device)
        self.changed = torch.zeros(len(self.thresholds), dtype=torch.int64, device=device)
        self.images = torch.zeros(num_classes, dtype=torch.int64, device=device)

    def update(self, router_logits: Tensor, expert_logits: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            router_logits: (B, K - 1).
            expert_logits: (B, K, C).
            target: (B,) class indices.
        """
        answers = prefix_means(expert_logits).argmax(-1)
        right, changed = answers == target.unsqueeze(1), answers != answers[:, -1:]
        self.images += target.bincount(minlength=len(self.images))
        for row, threshold in enumerate(self.thresholds):
            number = passed_experts(router_logits, threshold)
            place = number.unsqueeze(1) - 1
            hit = right.gather(1, place).squeeze(1)
            self.changed[row] += changed.gather(1, place).sum()
            self.correct[row] += target[hit].bincount(minlength=len(self.images))
            self.passed[row] += number.bincount(minlength=self.passed.shape[1])

    def add_up(self) -> None:
        """Add up over the processes of the default group; all of them must call."""
        for total in (self.correct, self.passed, self.changed, self.images):
            torch.distributed.all_reduce(total)

    def rows(self, groups: Mapping[str, ArrayLike], costs: Sequence[float]) -> list[SweepRow]:
        """One row a threshold.

        Args:
            groups: Class indices by group name.
            costs: (K,) GMACs of an image by the number of experts it passes.

        Returns:
            Accuracies in percent, `gmacs` and `mean_experts` as means over the images.
        """
        images = self.images.cpu().numpy()
        correct, passed, changed = self.correct.cpu().numpy(), self.passed[:, 1:].tolist(), self.changed.tolist()
        return [
            _row(threshold, correct[i], images, passed[i], groups, costs)
            | {'changed': 100.0 * changed[i] / sum(passed[i])}
            for i, threshold in enumerate(self.thresholds)
        ]


def passed_experts(router_logits: Tensor, threshold: float) -> Tensor:
    """How many experts each image passes: it goes on as long as every router on its way says so.

    Args:
        router_logits: (B, K - 1), of the routers after all experts but the last.
        threshold: In [0, 1].

    Returns:
        (B,) from 1 to K, int64.
    """
    return 1 + (router_logits > logit(threshold)).long().cumprod(1).sum(1)


def choose_threshold(
    rows: Sequence[SweepRow], tolerance: float = TOLERANCE, measures: Sequence[str] = MEASURES
) -> float:
    """Choose the cheapest threshold that costs next to no accuracy.

    Of the thresholds whose accuracy is at most `tolerance` points below that of all experts, the one with the fewest
    GMACs; of several, the most accurate, and then the smallest. Accuracy is both that over the images and the mean over
    the classes: held-out training images are long-tailed, and a first expert that favours frequent classes, as BalPoE's
    and SADE's does, beats all experts on them while it loses the rare classes. Where few images of rare classes are
    held out, one of them can count more over the classes than the tolerance, which then keeps more experts than needed.

    Args:
        rows: Of `Sweep.rows`, with threshold 0 among them, which uses all experts.
        tolerance: Percentage points.
        measures: The columns that the tolerance holds for.

    Returns:
        The threshold.

    Raises:
        ValueError: Threshold 0 is not among the rows.
    """
    full = next((row for row in rows if row['threshold'] == 0.0), None)
    if full is None:
        raise ValueError('a sweep needs the threshold 0, all experts, to compare with')
    allowed = {name: full[name] - tolerance - 1e-9 for name in measures}  # 1e-9: percent are rounded sums
    good = [row for row in rows if all(row[name] >= least for name, least in allowed.items())]
    return min(good, key=lambda row: (row['gmacs'], -row['balanced'], row['threshold']))['threshold']


def format_sweep(rows: Sequence[SweepRow], chosen: float | None = None) -> str:
    """A table for people, with a mark at the chosen threshold."""
    names = [name for name in rows[0] if not name.startswith('share_')]
    head = {'mean_experts': 'experts', 'gmacs': 'GMACs'}
    places = {'threshold': 3, 'gmacs': 4}
    lines = [''.join(f'{head.get(name, name):>10}' for name in names)]
    for row in rows:
        cells = ''.join(f'{row[name]:>10.{places.get(name, 2)}f}' for name in names)
        lines.append(cells + ('  <' if row['threshold'] == chosen else ''))
    return '\n'.join(lines)


def write_sweep(path: Path, rows: Sequence[SweepRow]) -> None:
    """Write the rows as CSV."""
    text = io.StringIO(newline='')
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows({name: round(value, 6) for name, value in row.items()} for row in rows)
    write_whole(path, text.getvalue())


def _row(
    threshold: float,
    correct: np.ndarray,
    images: np.ndarray,
    passed: list[int],
    groups: Mapping[str, ArrayLike],
    costs: Sequence[float],
) -> SweepRow:
    accuracy = percent_of(correct, images)
    total = int(images.sum())
    shares = [number / total for number in passed]
    row = {'threshold': threshold, 'top1': 100.0 * int(correct.sum()) / total, 'balanced': mean_accuracy(accuracy)}
    row.update(group_accuracy(accuracy, groups))
    row['mean_experts'] = sum(k * share for k, share in enumerate(shares, start=1))
    row['gmacs'] = mean_gmacs(costs, shares)
    return row | {f'share_{k}': share for k, share in enumerate(shares, start=1)}
