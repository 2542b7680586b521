"""The two figures of a model card: accuracy along the tail, and accuracy over cost.

Needs matplotlib (`pip install "ride-timm[quickstart]"`), which is imported when a figure is drawn.
"""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ride_timm.cards.figure_labels import PointLabel, list_labels, place_labels, spread
from ride_timm.cards.fonts import font_families
from ride_timm.cards.results import Results, accuracies, comparable, images_name, is_plain
from ride_timm.data.descriptions import readable_label
from ride_timm.engine.files import write_whole
from ride_timm.errors import RideError
from ride_timm.escaping import printable

__all__ = ['new_figure', 'routing_figure', 'tail_figure']

# Okabe and Ito's palette, whose hues people with any colour vision tell apart
BLUE, GREEN, VERMILLION, PURPLE = '#0072B2', '#009E73', '#D55E00', '#CC79A7'
GROUP_COLOURS = {'many': BLUE, 'medium': GREEN, 'few': VERMILLION}
OTHER_COLOURS = (PURPLE, GREEN, BLUE, VERMILLION)
INK, GREY = '#222222', '#6B6B6B'
WIDTH, DPI = 8.0, 200
SIZE = 9.5
GAP = 16
"""Pixels between texts side by side."""
TITLE_WIDTH = 0.87
"""Of the figure's; a title begins where the axes do."""
STYLE = {
    'font.size': SIZE, 'axes.titlesize': 11.5, 'axes.titleweight': 'bold', 'axes.titlelocation': 'left',
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.edgecolor': GREY, 'axes.labelcolor': INK,
    'axes.grid': True, 'axes.grid.axis': 'y', 'axes.axisbelow': True, 'grid.color': '#E4E4E4', 'grid.linewidth': 0.7,
    'xtick.color': GREY, 'ytick.color': GREY, 'xtick.labelcolor': INK, 'ytick.labelcolor': INK, 'text.color': INK,
}  # fmt: skip
MOST_NAMES = 20
"""Classes whose names fit under their points."""
LONGEST_NAME = 24
COLOURS = 96
"""Of the file's palette: a picture of points and text needs no more, and a third of the bytes."""


def tail_figure(results: Results, path: str | Path) -> None:
    """Draw the accuracy of every class, from the most frequent to the rarest, under its training images.

    Args:
        results: Content of a `results.json`.
        path: The PNG file to write, 1600 pixels wide.

    Raises:
        RideError: matplotlib is not installed.
    """
    spans = _spans(results)
    rows = [row for span in spans for row in span.rows]
    with new_figure(4.0) as (figure, save):
        counts_axes, axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2.4))
        experts = results['network']['num_experts']
        together = f', all {experts} experts' if experts > 1 else ''
        title = counts_axes.set_title(_literal(f'{results["name"]} on {results["data"]["name"]}{together}'))
        _draw_counts(counts_axes, [row['train_images'] for row in rows])
        axes.set_xlim(0, len(rows))
        axes.set_ylim(0, 120)  # the groups' names stand above 100
        axes.set_yticks(range(0, 101, 20))
        _name_classes(axes, rows)
        axes.set_ylabel(f'accuracy on\n{images_name(results)} (%)')
        for span in spans:
            for panel in (counts_axes, axes):
                panel.axvspan(span.start, span.stop, color=span.colour, alpha=0.07, linewidth=0)
            _draw_group(axes, span, len(rows))
        figure.align_ylabels()
        _fit(title)
        figure.draw_without_rendering()
        _name_groups(axes, spans)
        save(Path(path))


def routing_figure(results: Results, path: str | Path, others: Sequence[Results] = ()) -> None:
    """Draw accuracy over cost: this network's routing curve, its experts together, and other networks as points.

    Args:
        results: Content of a `results.json`.
        path: The PNG file to write, 1600 pixels wide.
        others: The same of other networks; those of the same data are shown.

    Raises:
        RideError: matplotlib is not installed.
    """
    with new_figure(4.2) as (figure, save):
        axes = figure.subplots()
        data = results['data']
        title = axes.set_title(_literal(f'{results["name"]} on {data["name"]}: accuracy over cost'))
        axes.set_xlabel('GMACs per image, mean')
        name, key = next(iter(accuracies(results).items()))
        mean = '' if name == 'overall' else f', {name},\n'
        axes.set_ylabel(f'accuracy{mean or " "}on {data["test_images"]:,} {images_name(results)} (%)')
        axes.grid(True, axis='both')
        curve = _curve(results)
        measured = (net for net in comparable(results, others) if net['test']['all_experts'].get(key) is not None)
        nets = (results, *measured)
        near: list[PointLabel] = []
        listed: list[PointLabel] = []
        for net in nets:
            labels = _draw_net(axes, net, key, own=net is results)
            (near if net is results or is_plain(net) else listed).extend(labels)
        if curve:
            near.append(PointLabel('first expert alone', curve[-1]['gmacs'], curve[-1][key], BLUE))
        obstacles = [*_draw_curve(axes, curve, key), *((label.x, label.y) for label in near + listed)]
        axes.margins(x=0.14, y=0.14)
        _fit(title)
        column = list_labels(axes, listed, SIZE - 0.5)
        figure.draw_without_rendering()
        column()
        obstacles += _draw_plain_line(axes, nets)
        place_labels(axes, near, np.array(obstacles), SIZE - 0.5)
        save(Path(path))


class _Span(NamedTuple):
    """A group's stretch of the class axis."""

    name: str
    rows: list[dict[str, Any]]
    start: int
    colour: str
    mean: float | None

    @property
    def stop(self) -> int:
        return self.start + len(self.rows)

    @property
    def centre(self) -> float:
        return (self.start + self.stop) / 2


def _spans(results: Results) -> list[_Span]:
    """The groups, the one with the most frequent classes first, and in each the classes by falling count."""
    by_label = {row['label']: row for row in results['test']['per_class']}
    groups = {name: [by_label[label] for label in members] for name, members in results['test']['groups'].items()}
    grouped = {label for members in results['test']['groups'].values() for label in members}
    groups['no group'] = [row for label, row in by_label.items() if label not in grouped]
    ordered = sorted((name for name in groups if groups[name]), key=lambda n: -max(_counts(groups[n])))
    spans: list[_Span] = []
    for index, name in enumerate(ordered):
        rows = sorted(groups[name], key=lambda row: (-row['train_images'], row['label']))
        start = spans[-1].stop if spans else 0
        colour = GROUP_COLOURS.get(name, OTHER_COLOURS[index % len(OTHER_COLOURS)])
        spans.append(_Span(name, rows, start, colour, results['test']['all_experts'].get(name)))
    return spans


def _counts(rows: list[dict[str, Any]]) -> list[int]:
    return [row['train_images'] for row in rows]


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
    places = [span.start + i + 0.5 for i, row in enumerate(span.rows) if row['accuracy'] is not None]
    accuracy = [row['accuracy'] for row in span.rows if row['accuracy'] is not None]
    size = float(np.clip(1800 / classes, 3.0, 22.0))
    alpha = 0.9 if classes <= 300 else 0.45
    axes.scatter(places, accuracy, s=size, color=span.colour, linewidths=0, alpha=alpha, clip_on=False)
    if span.mean is not None:
        ends = [span.start, span.stop]
        axes.plot(ends, [span.mean, span.mean], color=span.colour, linewidth=1.8, solid_capstyle='butt')


def _name_classes(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Name the classes under their points where they are few, and else number them."""
    if len(rows) > MOST_NAMES:
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.xaxis.set_major_formatter('{x:,.0f}')
        axes.set_xlabel('class, sorted by training images')
        return
    names = [printable(readable_label(row['name'])) for row in rows]
    names = [name if len(name) <= LONGEST_NAME else f'{name[: LONGEST_NAME - 1]}…' for name in names]
    turned = len(rows) * max(map(len, names)) > 80
    axes.set_xticks(np.arange(len(rows)) + 0.5, [_literal(name) for name in names], fontsize=SIZE - 0.5)
    axes.tick_params(axis='x', length=0)
    if turned:
        for label in axes.get_xticklabels():
            label.set(rotation=35, rotation_mode='anchor', ha='right')


def _name_groups(axes: Any, spans: list[_Span]) -> None:
    """The groups' names and means at the top of the panel, moved apart where the groups are narrow."""
    renderer = axes.get_figure().canvas.get_renderer()
    low, _, high, _ = axes.get_window_extent().extents
    style: dict[str, Any] = {'ha': 'center', 'va': 'baseline', 'fontweight': 'bold', 'fontsize': SIZE - 0.5}
    texts = []
    for span in spans:
        name = span.name if span.mean is None else f'{span.name}: mean {span.mean:.1f} %'
        number = '1 class' if len(span.rows) == 1 else f'{len(span.rows):,} classes'
        lines = [(114, _literal(name)), (105, number)]  # each its own text, so that all groups' lines are level
        texts.append([axes.text(0, y, line, color=span.colour, in_layout=False, **style) for y, line in lines])
    widths = [max(line.get_window_extent(renderer).width for line in pair) + GAP for pair in texts]
    wanted = [float(axes.transData.transform((span.centre, 0))[0]) for span in spans]
    for pair, centre in zip(texts, spread(wanted, widths, low, high), strict=True):
        for line in pair:
            line.set_x(axes.transData.inverted().transform((centre, 0))[0])


def _fit(title: Any) -> None:
    """Make the letters of a title small enough for the figure, before its layout, which has to hold the title."""
    figure = title.get_figure()
    width = title.get_window_extent(figure.canvas.get_renderer()).width
    title.set_fontsize(title.get_fontsize() * min(1.0, TITLE_WIDTH * figure.bbox.width / width))


def _curve(results: Results) -> list[Mapping[str, float]]:
    """Routing at every threshold, the one with all experts first."""
    return sorted(results['test']['sweep'] or (), key=lambda row: row['threshold'])


def _draw_curve(axes: Any, curve: list[Mapping[str, float]], key: str) -> Iterator[tuple[float, float]]:
    """Draw the routing curve; yields places on it."""
    if not curve:
        return
    x, y = [row['gmacs'] for row in curve], [row[key] for row in curve]
    axes.plot(x, y, color=BLUE, linewidth=1.6, marker='o', markersize=2.8, zorder=2)
    for share in np.linspace(0, 1, 9):
        for i in range(len(x) - 1):
            yield x[i] + share * (x[i + 1] - x[i]), y[i] + share * (y[i + 1] - y[i])


def _draw_net(axes: Any, net: Results, key: str, own: bool) -> list[PointLabel]:
    """The points of a network; returns their labels, the more important first."""
    everything, routed = net['test']['all_experts'], net['test']['routed']
    x, y, experts = net['network']['gmacs'], everything[key], net['network']['num_experts']
    if is_plain(net):
        axes.plot([x], [y], marker='s', markersize=7, color=VERMILLION, linestyle='none', zorder=4)
        return [PointLabel(_literal(f'plain network, {y:.1f} %'), x, y, VERMILLION, bold=True)]
    if not own:
        axes.plot([x], [y], marker='o', markersize=5.5, color=GREY, linestyle='none', zorder=3)
        return [PointLabel(_literal(f'{net["name"]}, {y:.1f} %'), x, y, GREY)]
    axes.plot([x], [y], marker='o', markersize=8, color=BLUE, linestyle='none', zorder=4)
    together = f'all {experts} experts: {y:.1f} %' if experts > 1 else f'{y:.1f} %'
    labels = [PointLabel(together, x, y, BLUE, bold=True)]
    if routed is not None:
        x, y = routed['gmacs'], routed[key]
        axes.plot(
            [x], [y], marker='D', markersize=7.5, color=BLUE, markeredgecolor='white', linestyle='none', zorder=5
        )  # fmt: skip
        labels.append(PointLabel(f'routed, threshold {routed["threshold"]:g}: {y:.1f} %', x, y, BLUE, bold=True))
    return labels


def _draw_plain_line(axes: Any, nets: Sequence[Results]) -> list[tuple[float, float]]:
    """A line at what the plain network costs; returns places on it."""
    low, high = axes.get_ylim()
    places = []
    for x in sorted({net['network']['gmacs'] for net in nets if is_plain(net)}):
        axes.axvline(x, color=VERMILLION, linewidth=1.0, linestyle=(0, (4, 3)), alpha=0.8, zorder=1)
        places += [(x, float(y)) for y in np.linspace(low, high, 60)]
    return places


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
    try:
        from matplotlib import style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure  # without pyplot, which would look for a display
    except ImportError as error:
        raise RideError(
            'matplotlib, which draws the figures, is not installed; run: pip install "ride-timm[quickstart]"'
        ) from error

    with style.context(['default', {**STYLE, 'font.family': list(font_families())}]), warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Glyph .* missing')  # a script that the font has not: boxes
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout='constrained')
        canvas = FigureCanvasAgg(figure)
        yield figure, lambda path: _save(canvas, path)


def _save(canvas: Any, path: Path) -> None:
    """Write a PNG with a palette and without metadata, in one step: the same figure is always the same bytes."""
    from PIL import Image

    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    content = io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(content, 'PNG', optimize=True)
    write_whole(path, content.getvalue())


def _literal(text: str) -> str:
    """Text that matplotlib takes for no formula."""
    return text.replace('$', r'\$')
