"""The pictures of a report as PNG bytes: those of a model card, calibration, training curves and thumbnails."""

import csv
import io
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ride_timm.cards.figures import (
    BLUE,
    GREY,
    GROUP_COLOURS,
    INK,
    OTHER_COLOURS,
    VERMILLION,
    new_figure,
    routing_figure,
    tail_figure,
)
from ride_timm.escaping import printable
from ride_timm.evaluation.one_pass import Answers, Measured
from ride_timm.reports.measure import reliability

__all__ = ['draw_calibration', 'draw_curves', 'draw_routing', 'draw_tail', 'read_curves', 'thumbnail']

THUMBNAIL = 128
"""Pixels of a thumbnail's longer side."""
HEADROOM = 1.3
"""Height of a panel, in that of its highest bar: a legend stands above the bars."""
_MARKED = 30  # epochs; up to here each has a point

Curves = Mapping[str, Sequence[float]]
"""Figures of every epoch by their name in `summary.csv`, NaN where there is none."""


def draw_tail(measured: Measured, name: str, data_name: str, source: str) -> bytes:
    """Accuracy of every class along the tail, under its training images.

    Args:
        measured: With groups.
        name: What the network is called.
        data_name: What the data are called.
        source: Which images were measured.
    """
    return _as_bytes(lambda path: tail_figure(_results(measured, name, data_name, source), path))


def draw_routing(measured: Measured, name: str, data_name: str, source: str) -> bytes:
    """Accuracy over cost at every threshold of the router.

    Args:
        measured: Of a network with a router.
        name: What the network is called.
        data_name: What the data are called.
        source: Which images were measured.
    """
    return _as_bytes(lambda path: routing_figure(_results(measured, name, data_name, source), path))


def draw_calibration(answers: Answers, ece: float) -> bytes:
    """Reliability diagram: accuracy over confidence, and how many images have which.

    Args:
        answers: What was said of the images.
        ece: Expected calibration error in percent.
    """
    images, accuracy, confidence = reliability(answers)
    edges = np.linspace(0, 100, len(images) + 1)
    with new_figure(3.6) as (figure, save):
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        left.set_title(f'Reliability (ECE {ece:.1f} %)')
        left.bar(edges[:-1], 100 * np.nan_to_num(accuracy), np.diff(edges), align='edge', color=BLUE, edgecolor='white')
        left.plot([0, 100], [0, 100], color=GREY, linewidth=1.0, linestyle=(0, (4, 3)))
        left.scatter(100 * confidence, 100 * accuracy, 12, color=VERMILLION, zorder=3, clip_on=False)
        left.set(xlim=(0, 100), ylim=(0, 103), xlabel='confidence (%)', ylabel='accuracy (%)')
        right.set_title('Images by confidence')
        right.bar(edges[:-1], images, np.diff(edges), align='edge', color=GREY, edgecolor='white')
        for value, text, colour in (
            (100 * float(answers.confidence.mean()), 'mean confidence', VERMILLION),
            (100 * float((answers.answers == answers.targets).mean()), 'right answers', BLUE),
        ):
            line = {'color': colour, 'linewidth': 1.6, 'clip_on': False}  # whole at 100 % too
            right.axvline(value, 0, 1 / HEADROOM, label=f'{text} {value:.1f} %', **line)
        right.legend(frameon=False, loc='upper left', fontsize=8.5)
        right.yaxis.get_major_locator().set_params(integer=True)
        right.yaxis.set_major_formatter('{x:,.0f}')
        right.set(xlim=(0, 100), ylim=(0, HEADROOM * images.max()), xlabel='confidence (%)', ylabel='images')
        return _as_bytes(save)


def draw_curves(curves: Curves) -> bytes:
    """Loss, accuracy and learning rate over the epochs.

    Args:
        curves: Of `read_curves`, with at least one epoch.
    """
    epochs = 1 + np.asarray(curves['epoch'])
    with new_figure(3.0) as (figure, save):
        panels = figure.subplots(1, 3)
        for axes, title in zip(panels, ('Loss', 'Accuracy (%)', 'Learning rate'), strict=True):
            axes.set_title(title)
            axes.set_xlabel('epoch')
            axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
        loss, accuracy, rate = panels
        _line(loss, epochs, curves.get('train_loss'), INK, 'training')
        _line(loss, epochs, curves.get('eval_loss'), VERMILLION, 'evaluation')
        over_images, mean = curves.get('eval_top1'), curves.get('eval_balanced')
        if mean is None or over_images is None or np.allclose(mean, over_images, equal_nan=True):  # balanced images
            _line(accuracy, epochs, over_images, INK, 'overall', 2.0)
        else:
            _line(accuracy, epochs, mean, INK, 'mean over classes', 2.0)
            _line(accuracy, epochs, over_images, GREY, 'over images')
        for name, colour in GROUP_COLOURS.items():
            _line(accuracy, epochs, curves.get(f'eval_{name}'), colour, name)
        _line(rate, epochs, curves.get('lr'), OTHER_COLOURS[0], '')
        accuracy.set_ylim(0, 104)
        rate.set_ylim(bottom=0)
        rate.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
        for axes in (loss, accuracy):
            if axes.lines:
                axes.legend(frameon=False, fontsize=8, labelspacing=0.25)
        return _as_bytes(save)


def read_curves(text: str) -> dict[str, list[float]]:
    """Read a `summary.csv`.

    Args:
        text: Its content.

    Returns:
        Figures of every epoch by name, NaN where a field is empty or no number; empty without epochs.
    """
    rows = [row for row in csv.DictReader(io.StringIO(text)) if (row.get('epoch') or '').isdigit()]
    names = [name for name in (rows[0] if rows else ()) if name]
    return {name: [_number(row.get(name)) for row in rows] for name in names}


def thumbnail(image: Image.Image | Tensor) -> bytes:
    """A small copy of an image as PNG; one that is small already stays as it is.

    Args:
        image: Of any size, RGB or L; of a tensor (channels, H, W), uint8, the first channel is shown.
    """
    small = image.copy() if isinstance(image, Image.Image) else Image.fromarray(image[0].numpy())
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    small.save(content, 'PNG', optimize=True)
    return content.getvalue()


def _line(
    axes: Any, epochs: NDArray[Any], values: Sequence[float] | None, colour: str, label: str, width: float = 1.4
) -> None:
    """One curve through the epochs that have a value, with points where they are few."""
    if values is None:
        return
    there = np.isfinite(values)
    if there.any():
        marker = 'o' if there.sum() <= _MARKED else ''
        axes.plot(
            epochs[there], np.asarray(values)[there], color=colour, label=label, linewidth=width, marker=marker,
            markersize=3, clip_on=False,
        )  # fmt: skip


def _number(text: str | None) -> float:
    try:
        return float(text or 'nan')
    except ValueError:
        return math.nan


def _as_bytes(save: Callable[[Path], None]) -> bytes:
    """What a function that writes a file writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'figure.png')
        save(path)
        return path.read_bytes()


def _results(measured: Measured, name: str, data_name: str, source: str) -> dict[str, Any]:
    """The part of a published `results.json` that the figures of a model card show."""
    groups = measured.groups.groups if measured.groups else {}
    return {
        'name': printable(name),
        'method': None,
        'data': {'name': printable(data_name), 'test_images': len(measured.answers.targets), 'source': source},
        'network': {'num_experts': measured.num_experts or 1, 'gmacs': measured.metrics['gmacs']},
        'test': {
            'all_experts': measured.metrics,
            'routed': measured.routed,
            'sweep': measured.sweep,
            'groups': {group: [int(index) for index in members] for group, members in groups.items()},
            'per_class': [row.plain() for row in measured.per_class],
        },
    }
