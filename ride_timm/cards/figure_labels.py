"""Texts beside points of a figure, so placed that they hide neither each other nor what is drawn."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ['PointLabel', 'list_labels', 'place_labels', 'spread']

FloatArray = NDArray[np.float64]

DIRECTIONS = (
    (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1),
    (0.5, 1), (-0.5, 1), (0.5, -1), (-0.5, -1), (0.8, 1), (-0.8, 1), (0.8, -1), (-0.8, -1),
)  # fmt: skip
"""Where a text may lie, seen from its point, in halves of its own width and height."""
DISTANCES = (7.0, 11.0, 16.0, 23.0, 32.0, 44.0, 58.0, 74.0, 92.0, 112.0, 134.0)
LEADER_FROM = 16.0
WIDEST_COLUMN = 0.4
"""Of the figure, for the texts on the right."""
PADDING = 1.0
"""Free space around a text, in points as the distances: 1/72 inch."""


class PointLabel(NamedTuple):
    """A text and the point, in data coordinates, that it belongs to."""

    text: str
    x: float
    y: float
    colour: str
    bold: bool = False


def place_labels(axes: Any, labels: Sequence[PointLabel], obstacles: FloatArray, size: float) -> list[Any]:
    """Write each text where it hides least, nearest first; one that ends up far from its point gets a thin line to it.

    The figure's layout must be final.

    Args:
        axes: Matplotlib's, on an Agg canvas.
        labels: The more important first.
        obstacles: (N, 2) data coordinates that no text should cover, points and samples of curves.
        size: Font size in points.

    Returns:
        The annotations.
    """
    figure = axes.get_figure()
    scale = figure.dpi / 72
    bounds = np.array(axes.get_window_extent().extents)
    hidden = axes.transData.transform(obstacles)
    taken: list[FloatArray] = []
    annotations = []
    for label in labels:
        note = axes.annotate(
            label.text, (label.x, label.y), xytext=(0, 0), textcoords='offset points', ha='center', va='center',
            fontsize=size, fontweight='bold' if label.bold else 'normal', color=label.colour, in_layout=False,
        )  # fmt: skip
        extent = note.get_window_extent(figure.canvas.get_renderer())
        half = np.array([extent.width, extent.height]) / 2
        point = axes.transData.transform((label.x, label.y))
        distance, offset = _best(point, half, scale, bounds, hidden, taken)
        note.set_position(tuple(offset / scale))
        if distance >= LEADER_FROM:
            _draw_leader(axes, label, point, offset, half)
        taken.append(_box(point + offset, half, PADDING * scale))
        annotations.append(note)
    return annotations


def list_labels(axes: Any, labels: Sequence[PointLabel], size: float) -> Callable[[], None]:
    """Write texts in a column on the right of the axes, as high as their points, each with a thin line to its point.

    Points one above the other have no room for their texts between them.

    Args:
        axes: Matplotlib's, on an Agg canvas and with a constrained layout, which leaves room for the column.
        labels: In any order.
        size: Font size in points, made smaller where the texts would take too much of the figure.

    Returns:
        To be called once the layout is final: puts the texts in their places.
    """
    figure = axes.get_figure()
    renderer = figure.canvas.get_renderer()
    ordered = sorted(labels, key=lambda label: label.y)
    line = {'arrowstyle': '-', 'linewidth': 0.6, 'alpha': 0.6, 'relpos': (0, 0.5), 'shrinkA': 1, 'shrinkB': 3}
    notes = [
        axes.annotate(
            label.text, (label.x, label.y), xytext=(0, 0), textcoords='figure pixels', va='center', fontsize=size,
            color=label.colour, arrowprops={**line, 'color': label.colour}, in_layout=False,
        )
        for label in ordered
    ]  # fmt: skip
    gap = size * figure.dpi / 72
    width = max((_text_size(note, renderer)[0] for note in notes), default=-gap)
    smaller = min(1.0, (WIDEST_COLUMN * figure.bbox.width - gap) / width) if notes else 1.0
    for note in notes:
        note.set_fontsize(size * smaller)
    figure.get_layout_engine().set(rect=(0, 0, 1 - (width * smaller + gap) / figure.bbox.width, 1))

    def put() -> None:
        _, low, right, high = axes.get_window_extent().extents
        heights = [_text_size(note, renderer)[1] * 1.25 for note in notes]
        wanted = [float(axes.transData.transform((label.x, label.y))[1]) for label in ordered]
        for note, height in zip(notes, spread(wanted, heights, low, high), strict=True):
            note.set_position((right + gap, height))

    return put


def spread(centres: Sequence[float], widths: Sequence[float], low: float, high: float) -> list[float]:
    """Move intervals on a line as far as they must be to leave each other alone.

    Args:
        centres: Wanted centres, ascending.
        widths: Their widths.
        low: Where the line begins.
        high: Where it ends; intervals that do not fit on it begin at `low` and end beyond.

    Returns:
        The centres, in the same order.
    """
    ends: list[float] = []  # of each interval, pushed to the right of the one before
    for centre, width in zip(centres, widths, strict=True):
        start = max(centre - width / 2, ends[-1] if ends else low)
        ends.append(start + width)
    limit = high  # and pushed back to the left, the last first
    for index in range(len(ends) - 1, -1, -1):
        ends[index] = min(ends[index], limit)
        limit = ends[index] - widths[index]
    excess = max(low - limit, 0.0) if ends else 0.0
    return [end - width / 2 + excess for end, width in zip(ends, widths, strict=True)]


def _best(
    point: FloatArray, half: FloatArray, scale: float, bounds: FloatArray, hidden: FloatArray, taken: list[FloatArray]
) -> tuple[float, FloatArray]:
    """Distance (points) and offset of the centre (pixels) of the place that costs least."""
    area = float(np.prod(2 * half))
    places: list[tuple[float, int, float, FloatArray]] = []
    for distance, direction in itertools.product(DISTANCES, DIRECTIONS):
        towards = np.array(direction, dtype=np.float64)
        towards /= np.hypot(*towards)
        offset = towards * distance * scale + direction * half
        box = _box(point + offset, half, PADDING * scale)
        outside = np.maximum(bounds[:2] - box[:2], 0).sum() + np.maximum(box[2:] - bounds[2:], 0).sum()
        overlaps = sum(_overlap(box, other) for other in taken)
        covered = ((hidden >= box[:2]) & (hidden <= box[2:])).all(1).sum()
        cost = 1e6 * (outside > 0) + 1e3 * (overlaps > 0) + overlaps / area + 2.0 * float(covered) + distance / 10
        places.append((cost, len(places), distance, offset))
    _, _, distance, offset = min(places, key=lambda place: place[:2])
    return distance, offset


def _text_size(note: Any, renderer: Any) -> tuple[float, float]:
    """Width and height in pixels, without the line to the point."""
    from matplotlib.text import Text

    extent = Text.get_window_extent(note, renderer)
    return float(extent.width), float(extent.height)


def _box(centre: FloatArray, half: FloatArray, padding: float) -> FloatArray:
    """Left, bottom, right, top."""
    return np.concatenate([centre - half - padding, centre + half + padding])


def _overlap(one: FloatArray, other: FloatArray) -> float:
    """Common area of two boxes."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    return float(np.prod(np.maximum(sides, 0.0)))


def _draw_leader(axes: Any, label: PointLabel, point: FloatArray, offset: FloatArray, half: FloatArray) -> None:
    """A thin line from the point to the nearest place of the text's edge."""
    end = axes.transData.inverted().transform(point + offset - np.clip(offset, -half, half))
    axes.plot(
        [label.x, end[0]], [label.y, end[1]], color=label.colour, linewidth=0.6, alpha=0.7, zorder=1,
        scalex=False, scaley=False,
    )  # fmt: skip
