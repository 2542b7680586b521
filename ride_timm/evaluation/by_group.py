"""Results over groups of images, with intervals that say how the network would do in other groups of the same kind."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ride_timm.evaluation.metrics import wilson_interval
from ride_timm.evaluation.one_pass import Answers
from ride_timm.records.results import ImageGroupRow, ImageGroups
from ride_timm.tables import lay_out, shortened_to

__all__ = ['by_image_group', 'group_lines', 'said_by_group']

_WORST = 20  # groups that are kept
_SHOWN = 5  # groups that are printed
_ENDS = (2.5, 97.5)


def said_by_group(said: Answers, groups: Sequence[str] | None) -> ImageGroups | None:
    """As `by_image_group` of what a network said, routed where that was measured; None where groups are not known.

    Args:
        said: Of all images.
        groups: (N,) group of each image.
    """
    if groups is None:
        return None
    return by_image_group(said.targets, said.answers if said.routed is None else said.routed, groups)


def by_image_group(
    targets: ArrayLike, answers: ArrayLike, groups: Sequence[str], resamples: int = 2000, seed: int = 0
) -> ImageGroups:
    """Measure a network over groups of images, such as places or patients.

    Images of a group are answered alike, so an interval over images would be too narrow. These are percentile intervals
    of the bootstrap that draws whole groups with replacement (Davison and Hinkley, Bootstrap Methods and their
    Application, 1997, section 3.8); a class that a draw has no image of is left out of its mean.

    Args:
        targets: (N,) true class of each image.
        answers: (N,) class that is named.
        groups: (N,) group of each image.
        resamples: Draws.
        seed: Of the draws.

    Returns:
        Accuracy over images and mean over classes in percent with their intervals, which are None of a single group,
        and the groups with the least accuracy, by the upper end of their interval.
    """
    own, named = np.asarray(targets), np.asarray(answers)
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    # images and right answers of each class in each group, of which there are few pairs
    pairs, pair = np.unique(np.stack([group, own]), axis=1, return_inverse=True)
    images: NDArray[np.float64] = np.bincount(pair.ravel()).astype(np.float64)
    right: NDArray[np.float64] = np.bincount(pair.ravel(), weights=(own == named).astype(np.float64)).astype(np.float64)
    stream = np.random.default_rng(seed)
    drawn = [_accuracies(pairs, images, right, np.ones(len(names)))]
    for _ in range(resamples if len(names) > 1 else 0):
        times = np.bincount(stream.integers(len(names), size=len(names)), minlength=len(names))
        drawn.append(_accuracies(pairs, images, right, times.astype(np.float64)))
    values = np.array(drawn)
    (top1, balanced), ends = values[0].tolist(), np.percentile(values[1:], _ENDS, axis=0).T if len(names) > 1 else None
    totals, rights = (np.bincount(pairs[0], weights=number).astype(int) for number in (images, right))
    rows = [
        ImageGroupRow(name=str(name), images=total, accuracy=100 * good / total, interval=wilson_interval(good, total))
        for name, total, good in zip(names, totals.tolist(), rights.tolist(), strict=True)
    ]
    rows.sort(key=lambda row: (row.interval[1], row.name))
    return ImageGroups(
        groups=len(names),
        resamples=resamples,
        seed=seed,
        top1=top1,
        top1_interval=None if ends is None else tuple(ends[0].tolist()),
        balanced=balanced,
        balanced_interval=None if ends is None else tuple(ends[1].tolist()),
        worst=tuple(rows[:_WORST]),
    )


def group_lines(found: ImageGroups, width: int = 100) -> list[str]:
    """What a terminal shows of the results over groups.

    Args:
        found: Of `by_image_group`.
        width: Columns of the terminal.
    """
    if found.balanced_interval is None or found.top1_interval is None:
        return ['All images are in one group, which says nothing about others.']
    whole = [
        [f'{found.groups:,} groups of images', 'balanced', 'top1'],
        ['percent', f'{found.balanced:.2f}', f'{found.top1:.2f}'],
        ['95 % over groups', _span(found.balanced_interval), _span(found.top1_interval)],
    ]
    rows = found.worst[:_SHOWN]
    worst = [
        ['worst groups', *(shortened_to(width // 2, row.name) for row in rows)],
        ['images', *(f'{row.images:,}' for row in rows)],
        ['percent', *(f'{row.accuracy:.2f}' for row in rows)],
        ['95 % over images', *(_span(row.interval) for row in rows)],
    ]
    return [*lay_out(whole, right=(1,)), '', *lay_out(worst, right=(1, 2))]


def _span(interval: Sequence[float]) -> str:
    return f'{interval[0]:.2f} to {interval[1]:.2f}'


def _accuracies(
    pairs: NDArray[np.int64], images: NDArray[np.float64], right: NDArray[np.float64], times: NDArray[np.float64]
) -> tuple[float, float]:
    """Accuracy over images and mean over classes, in percent, if each group is there so many times."""
    weights = times[pairs[0]]
    total, good = (np.bincount(pairs[1], weights=weights * number) for number in (images, right))
    seen = total > 0
    return float(100 * good.sum() / total.sum()), float(100 * (good[seen] / total[seen]).mean())
