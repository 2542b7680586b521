"""The figures of cards and reports: accuracy along the tail and over cost, calibration, training curves, thumbnails.

Needs matplotlib (`pip install "ride-timm[quickstart]"`), which is imported when a figure is drawn.
"""

import csv
import io
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ride_timm.data.descriptions import readable_label
from ride_timm.escaping import printable
from ride_timm.evaluation.metrics import accuracy_interval
from ride_timm.evaluation.one_pass import Answers
from ride_timm.files import write_whole
from ride_timm.installation import require
from ride_timm.pages.answers import reliability
from ride_timm.records.results import ClassRow, Results, comparable

__all__ = [
    'FEW_IMAGES', 'GREY', 'GROUP_COLOURS', 'as_bytes', 'counts_figure', 'draw_calibration', 'draw_curves',
    'font_families', 'new_figure', 'read_curves', 'routing_figure', 'tail_figure', 'thumbnail',
]  # fmt: skip

# Okabe and Ito's palette, whose hues people with any colour vision tell apart
BLUE, GREEN, VERMILLION, PURPLE = '#0072B2', '#009E73', '#D55E00', '#CC79A7'
GROUP_COLOURS = {'many': BLUE, 'medium': GREEN, 'few': VERMILLION}
OTHER_COLOURS = (PURPLE, GREEN, BLUE, VERMILLION)
INK, GREY = '#222222', '#6B6B6B'
WIDTH, DPI = 8.0, 200
SIZE = 9.5
TITLE_WIDTH = 0.87
"""Of the figure's; a title begins where the axes do."""
STYLE = {
    'font.size': SIZE, 'axes.titlesize': 11.5, 'axes.titleweight': 'bold', 'axes.titlelocation': 'left',
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.edgecolor': GREY, 'axes.labelcolor': INK,
    'axes.grid': True, 'axes.grid.axis': 'y', 'axes.axisbelow': True, 'grid.color': '#E4E4E4', 'grid.linewidth': 0.7,
    'xtick.color': GREY, 'ytick.color': GREY, 'xtick.labelcolor': INK, 'ytick.labelcolor': INK, 'text.color': INK,
}  # fmt: skip
FEW_IMAGES = 30
"""Test images of a class; with fewer its accuracy stands with an interval."""
MOST_NAMES = 20
"""Classes whose names fit under their points."""
LONGEST_NAME = 24
MARKERS = ('^', 'v', 'P', 'X', '<', '>', 'p', '*')
COLOURS = 96
"""Of the file's palette: a picture of points and text needs no more, and a third of the bytes."""
THUMBNAIL = 128
"""Pixels of a thumbnail's longer side."""
HEADROOM = 1.3
"""Height of a panel, in that of its highest bar: a legend stands above the bars."""
_MARKED = 30  # epochs; up to here each has a point
_CANDIDATES = (
    'Noto Sans CJK JP', 'Noto Sans CJK SC', 'Noto Sans JP', 'Noto Sans SC', 'Noto Sans KR', 'Source Han Sans',
    'WenQuanYi Zen Hei', 'WenQuanYi Micro Hei', 'IPAGothic', 'Droid Sans Fallback', 'Hiragino Sans', 'PingFang SC',
    'Microsoft YaHei', 'Yu Gothic', 'Malgun Gothic', 'Apple SD Gothic Neo', 'Noto Sans Thai', 'Noto Sans Devanagari',
    'Arial Unicode MS', 'Nirmala UI', 'Leelawadee UI', 'Segoe UI Emoji',
)  # fmt: skip
"""Fonts for names in scripts of which matplotlib's own has no letters."""

Curves = Mapping[str, Sequence[float]]
"""Values of every epoch by their name in `summary.csv`, NaN where there is none."""


def tail_figure(results: Results, path: str | Path) -> None:
    """Draw the accuracy of every class, from the most frequent to the rarest, under its training images.

    A class with fewer than `FEW_IMAGES` test images has its 95 % interval.

    Args:
        results: Of a network.
        path: The PNG file to write, 1600 pixels wide.

    Raises:
        RideError: matplotlib is not installed.
    """
    spans = _spans(results)
    rows = [row for span in spans for row in span.rows]
    with new_figure(4.0) as (figure, save):
        counts_axes, axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2.4))
        experts = results.net.num_experts
        together = f', all {experts} experts' if experts > 1 else ''
        title = counts_axes.set_title(_literal(f'{results.name} on {results.data.name}{together}'))
        _draw_counts(counts_axes, [row.train_images for row in rows])
        axes.set_xlim(0, len(rows))
        axes.set(ylim=(0, 103), yticks=range(0, 101, 20))
        _name_classes(axes, [printable(readable_label(row.name)) for row in rows])
        axes.set_ylabel(f'accuracy on\n{results.images_name} (%)')
        for span in spans:
            for panel in (counts_axes, axes):
                panel.axvspan(span.start, span.stop, color=span.colour, alpha=0.07, linewidth=0)
            _draw_group(axes, span, len(rows))
        legend: dict[str, Any] = {'ncols': len(spans), 'handletextpad': 0.1, 'columnspacing': 1.5, 'markerscale': 1.5}
        figure.legend(frameon=False, loc='outside lower center', fontsize=SIZE - 0.5, **legend)
        figure.align_ylabels()
        _fit(title)
        save(Path(path))


def counts_figure(counts: Mapping[str, int], groups: Mapping[str, Sequence[int]], path: Path, title: str) -> None:
    """Draw the training images of every class, the largest class first, coloured by group.

    Args:
        counts: Training images of each class by name, in label order.
        groups: Labels of the classes of each group.
        path: The PNG file to write, 1600 pixels wide.
        title: What the data are called.

    Raises:
        RideError: matplotlib is not installed.
    """
    sizes = np.array(list(counts.values()))
    place = np.argsort(np.argsort(-sizes, kind='stable'))
    with new_figure(3.6) as (figure, save):
        axes = figure.subplots()
        shown = axes.set_title(_literal(printable(title)))
        for group, members in groups.items():
            own = list(members)
            number = '1 class' if len(own) == 1 else f'{len(own):,} classes'
            label = f'{group}: {number}, {sizes[own].sum():,} images'
            colour = GROUP_COLOURS.get(group, GREY)
            axes.bar(place[own] + 0.5, sizes[own], 0.9 if len(sizes) < 80 else 1.0, color=colour, label=label)
        axes.set_yscale('log')
        axes.set(xlim=(0, len(sizes)), ylim=(0.7, sizes.max() * 2))  # a class with one image has a bar too
        axes.yaxis.set_major_formatter('{x:,.0f}')
        axes.set_ylabel('training images (log)')
        _name_classes(axes, [printable(name) for name in np.array(list(counts), dtype=object)[np.argsort(place)]])
        _fit(shown)
        figure.legend(frameon=False, loc='outside lower center', ncols=len(groups), fontsize=SIZE - 0.5)
        save(path)


def routing_figure(
    results: Results,
    path: str | Path,
    others: Sequence[Results] = (),
    rules: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
) -> None:
    """Draw accuracy over cost: this network's routing curve, its experts together, and other networks as points.

    Args:
        results: Of a network.
        path: The PNG file to write, 1600 pixels wide.
        others: Of other networks; those on the same images are shown.
        rules: Sweeps of rules in place of the router, by name.

    Raises:
        RideError: matplotlib is not installed.
    """
    with new_figure(4.2) as (figure, save):
        axes = figure.subplots()
        title = axes.set_title(_literal(f'{results.name} on {results.data.name}: accuracy over cost'))
        axes.set_xlabel('GMACs per image, mean')
        name, key = next(iter(results.accuracies.items()))
        mean = '' if name == 'overall' else f', {name},\n'
        axes.set_ylabel(f'accuracy{mean or " "}on {results.data.test_images:,} {results.images_name} (%)')
        axes.grid(True, axis='both')
        colours = (PURPLE, GREEN, GREY, VERMILLION, INK)  # the router's own is blue
        for index, (rule, rows) in enumerate((rules or {}).items()):
            points = sorted({(row['gmacs'], row[key]) for row in rows if 0 < row['threshold'] < 1})
            style = (
                {'marker': MARKERS[index % len(MARKERS)], 'linestyle': 'none'} if len(points) == 1 else {}
            )  # a rule without a threshold
            axes.plot(
                *zip(*points, strict=True), color=colours[index % len(colours)], linewidth=0.9, alpha=0.7,
                label=_literal(rule), **style,
            )  # fmt: skip
        _draw_own(axes, results, key)
        shown = [net for net in comparable(results, others) if net.test.all_experts.get(key) is not None]
        rest = [net for net in shown if not net.is_plain]
        for net in shown:
            plain = net.is_plain
            colour, marker = (VERMILLION, 's') if plain else (GREY, MARKERS[rest.index(net) % len(MARKERS)])
            _draw_point(
                axes, net, key, 'plain network: {:.1f} %' if plain else f'{net.name}: {{:.1f}} %', colour, marker
            )
        for x in sorted({net.net.gmacs for net in (results, *shown) if net.is_plain}):  # what a plain network costs
            axes.axvline(x, color=VERMILLION, linewidth=1.0, linestyle=(0, (4, 3)), alpha=0.8, zorder=1)
        axes.margins(x=0.08, y=0.1)
        _fit(title)
        figure.legend(frameon=False, loc='outside lower center', ncols=2, fontsize=SIZE - 0.5)
        save(Path(path))


def as_bytes(save: Callable[[Path], None]) -> bytes:
    """What a function that writes a file writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'figure.png')
        save(path)
        return path.read_bytes()


@cache
def font_families() -> tuple[str, ...]:
    """Matplotlib's own font, and of those for further scripts the ones that are installed.

    A letter is taken from the first font that has it, so that all others look as ever. Needs matplotlib.
    """
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    return ('DejaVu Sans', *(name for name in _CANDIDATES if name in installed))


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
        return as_bytes(save)


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
        return as_bytes(save)


def read_curves(text: str) -> dict[str, list[float]]:
    """Read a `summary.csv`.

    Returns:
        Values of every epoch by name, NaN where a field is empty or no number; empty without epochs.
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


class _Span(NamedTuple):
    """A group's stretch of the class axis."""

    name: str
    rows: list[ClassRow]
    start: int
    colour: str
    mean: float | None

    @property
    def stop(self) -> int:
        return self.start + len(self.rows)


def _spans(results: Results) -> list[_Span]:
    """The groups, the one with the most frequent classes first, and in each the classes by falling count."""
    test = results.test
    by_label = {row.label: row for row in test.per_class}
    groups = {name: [by_label[label] for label in members] for name, members in test.groups.items()}
    grouped = {label for members in test.groups.values() for label in members}
    groups['no group'] = [row for label, row in by_label.items() if label not in grouped]
    ordered = sorted((name for name in groups if groups[name]), key=lambda n: -max(r.train_images for r in groups[n]))
    spans: list[_Span] = []
    for index, name in enumerate(ordered):
        rows = sorted(groups[name], key=lambda row: (-row.train_images, row.label))
        start = spans[-1].stop if spans else 0
        colour = GROUP_COLOURS.get(name, OTHER_COLOURS[index % len(OTHER_COLOURS)])
        spans.append(_Span(name, rows, start, colour, test.all_experts.get(name)))
    return spans


def _draw_counts(axes: Any, counts: list[int]) -> None:
    """The training images of the classes as a falling line, with the first and the last number at it."""
    shown = np.maximum(counts, 0.8)  # a class without training images sits just below 1
    axes.set_yscale('log')
    axes.stairs(shown, baseline=None, color=INK, linewidth=1.3)
    axes.set_ylim(shown.min() / 2, shown.max() * 4)
    for place, index, align in ((0, 0, 'left'), (len(counts), -1, 'right')):
        shift = 3 if align == 'left' else -3
        axes.annotate(
            f'{counts[index]:,}', (place, shown[index]), xytext=(shift, 3), textcoords='offset points', ha=align,
            va='bottom', fontsize=SIZE - 1,
        )  # fmt: skip
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:,.0f}' if value >= 1 else '')
    axes.yaxis.set_minor_formatter('')  # where no decade is in reach, the numbers at the line are enough
    axes.set_ylabel('training\nimages (log)')
    axes.tick_params(axis='x', length=0)


def _draw_group(axes: Any, span: _Span, classes: int) -> None:
    """Points of the classes, in their places' middles, and the group's mean as a line."""
    places = [span.start + i + 0.5 for i, row in enumerate(span.rows) if row.accuracy is not None]
    accuracy = [row.accuracy for row in span.rows if row.accuracy is not None]
    size = float(np.clip(1800 / classes, 3.0, 22.0))
    alpha = 0.9 if classes <= 300 else 0.45
    mean = '' if span.mean is None else f'mean {span.mean:.1f} %, '
    number = '1 class' if len(span.rows) == 1 else f'{len(span.rows):,} classes'
    label = _literal(f'{span.name}: {mean}{number}')
    for place, row in enumerate(span.rows, span.start):
        interval = accuracy_interval(row.accuracy, row.test_images) if row.test_images < FEW_IMAGES else None
        if interval is not None:
            axes.vlines(place + 0.5, *interval, color=span.colour, linewidth=0.8, alpha=0.5)
    axes.scatter(places, accuracy, s=size, color=span.colour, linewidths=0, alpha=alpha, clip_on=False, label=label)
    if span.mean is not None:
        axes.plot(
            [span.start, span.stop], [span.mean, span.mean], color=span.colour, linewidth=1.8, solid_capstyle='butt'
        )


def _name_classes(axes: Any, names: list[str]) -> None:
    """Name the classes under their points where they are few, and else number them."""
    if len(names) > MOST_NAMES:
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.xaxis.set_major_formatter('{x:,.0f}')
        axes.set_xlabel('class, sorted by training images')
        return
    names = [name if len(name) <= LONGEST_NAME else f'{name[: LONGEST_NAME - 1]}…' for name in names]
    turned = len(names) * max(map(len, names)) > 80
    axes.set_xticks(np.arange(len(names)) + 0.5, [_literal(name) for name in names], fontsize=SIZE - 0.5)
    axes.tick_params(axis='x', length=0)
    if turned:
        for label in axes.get_xticklabels():
            label.set(rotation=35, rotation_mode='anchor', ha='right')


def _fit(title: Any) -> None:
    """Make the letters of a title small enough for the figure, before its layout, which has to hold the title."""
    figure = title.get_figure()
    width = title.get_window_extent(figure.canvas.get_renderer()).width
    title.set_fontsize(title.get_fontsize() * min(1.0, TITLE_WIDTH * figure.bbox.width / width))


def _draw_own(axes: Any, results: Results, key: str) -> None:
    """The routing curve of a network, its experts together, and the threshold that it routes with."""
    curve = sorted(results.test.sweep or (), key=lambda row: row['threshold'])
    if curve:
        x, y = [row['gmacs'] for row in curve], [row[key] for row in curve]
        label = f'routed, threshold 0 to 1 (first expert alone: {y[-1]:.1f} %)'
        axes.plot(x, y, color=BLUE, linewidth=1.6, marker='o', markersize=2.8, zorder=2, label=label)
    experts = results.net.num_experts
    together = f'all {experts} experts: {{:.1f}} %' if experts > 1 else f'{results.name}: {{:.1f}} %'
    own = ('plain network: {:.1f} %', VERMILLION, 's') if results.is_plain else (together, BLUE, 'o')
    _draw_point(axes, results, key, *own, size=8)
    routed = results.test.routed
    if routed is not None:
        label = f'routed, threshold {routed["threshold"]:g}: {routed[key]:.1f} %'
        axes.plot(
            [routed['gmacs']], [routed[key]], marker='D', markersize=7.5, color=BLUE, markeredgecolor='white',
            linestyle='none', zorder=5, label=label,
        )  # fmt: skip


def _draw_point(axes: Any, net: Results, key: str, label: str, colour: str, marker: str, size: float = 6.5) -> None:
    x, y = net.net.gmacs, net.test.all_experts[key]
    text = _literal(label.format(y))
    axes.plot([x], [y], marker=marker, markersize=size, color=colour, linestyle='none', zorder=4, label=text)


@contextmanager
def new_figure(height: float) -> Iterator[tuple[Any, Any]]:
    """A figure in our style, whatever the user's is, and the function that saves it.

    Args:
        height: Inches; the width is that of a page.

    Yields:
        The figure, and a function from a path or stream that writes the PNG.

    Raises:
        RideError: matplotlib is not installed.
    """
    require('A figure', 'ride-timm[quickstart]', 'matplotlib')
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # without pyplot, which would look for a display

    with style.context(['default', {**STYLE, 'font.family': list(font_families())}]), warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Glyph .* missing')  # a script that the font has not: boxes
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout='constrained')
        canvas = FigureCanvasAgg(figure)
        yield figure, lambda path: _save(canvas, path)


def _save(canvas: Any, path: Path) -> None:
    """Write a PNG with a palette and without metadata, in one step: the same figure is always the same bytes."""
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    content = io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(content, 'PNG', optimize=True)
    write_whole(path, content.getvalue())


def _literal(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace('$', r'\$')


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
