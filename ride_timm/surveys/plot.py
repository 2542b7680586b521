"""The tail of a data set as a picture. Needs matplotlib, which is imported when it is drawn."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ride_timm.engine.files import write_whole
from ride_timm.escaping import printable
from ride_timm.pages.figures import font_families
from ride_timm.surveys.survey import Survey
from ride_timm.tables import counted

__all__ = ['draw_tail']

# Okabe and Ito's palette, whose hues people with any colour vision tell apart
_COLOURS = {'many': '#0072B2', 'medium': '#009E73', 'few': '#D55E00'}
_GREY, _INK = '#6B6B6B', '#222222'
_FORMATS = {'.pdf': 'pdf', '.svg': 'svg'}
_MOST_NAMES = 40  # classes whose names fit under their bars
_DIGITS = 80  # digits that fit side by side over the bars


def draw_tail(found: Survey, path: str | Path, title: str) -> None:
    """Draw the training images of every class, the largest class first, coloured by group.

    Args:
        found: Of `survey`, with training images and groups.
        path: The file to write: PNG, or what `.pdf` or `.svg` at its end says.
        title: What the data is called.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # without pyplot, which would look for a display

    assert found.train is not None
    assert found.groups is not None
    with rc_context({'font.family': list(font_families())}), warnings.catch_warnings():
        # a script that no font has is drawn as boxes
        warnings.filterwarnings('ignore', message='Glyph .* missing from font', category=UserWarning)
        figure = Figure(figsize=(9, 4.5), layout='constrained')
        _draw(figure, found, title)
        content = io.BytesIO()
        figure.savefig(content, dpi=120, format=_FORMATS.get(Path(path).suffix.lower(), 'png'))
    write_whole(Path(path), content.getvalue())


def _draw(figure: Any, found: Survey, title: str) -> None:
    assert found.train is not None
    assert found.groups is not None
    names, sizes = list(found.train.counts), np.array(list(found.train.counts.values()))
    order = np.argsort(-sizes, kind='stable')
    axes = figure.subplots()
    place = np.empty(len(order), dtype=int)
    place[order] = np.arange(len(order))
    for group, members in found.groups.groups.items():
        number = f'{group}: {counted(len(members), "class", "classes")}, {counted(int(sizes[members].sum()), "image")}'
        axes.bar(place[members], sizes[members], 0.9 if len(order) < 80 else 1.0, color=_COLOURS[group], label=number)
    axes.set_yscale('log')
    room = (sizes.max() / 0.7) ** 0.25 if _write_numbers(axes, sizes[order]) else 2
    axes.set_ylim(0.7, sizes.max() * max(room, 2))  # a class with one image has a bar too
    axes.yaxis.set_major_formatter('{x:,.0f}')
    if len(order) <= _MOST_NAMES:
        texts = [_short(names[index]) for index in order]
        turned = max(map(len, texts)) * len(texts) > 100
        axes.set_xticks(range(len(order)), texts, rotation=45 if turned else 0, ha='right' if turned else 'center')
    else:
        axes.set_xlabel('class, the largest first')
    axes.set_xlim(-0.7, len(order) - 0.3)
    axes.set_ylabel('training images (log scale)')
    factor = sizes.max() / max(sizes.min(), 1)
    text = f'{len(order):,} classes, {sizes.sum():,} training images, imbalance factor {factor:.4g}'
    axes.set_title(f'{_plain(title)}\n', loc='left', fontweight='bold', color=_INK)
    axes.text(0, 1.02, text, transform=axes.transAxes, color=_GREY)
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', color='#E4E4E4', linewidth=0.7)
    axes.set_axisbelow(True)
    figure.legend(frameon=False, loc='outside lower center', ncols=3)  # inside it would cover the bars of a flat tail


def _write_numbers(axes: Any, sizes: np.ndarray) -> bool:
    """Numbers over the bars, or over the first and the last of very many; returns whether they had to be turned."""
    texts = [f'{size:,}' for size in sizes]
    if len(sizes) <= _MOST_NAMES:
        turned = max(map(len, texts)) * len(texts) > _DIGITS
        places = dict.fromkeys(range(len(sizes)), 'center')
    else:
        turned, places = False, {0: 'left', len(sizes) - 1: 'right'}
    for spot, side in places.items():
        height = max(sizes[spot], 0.7) * 1.04
        axes.text(spot, height, texts[spot], ha=side, va='bottom', color=_GREY, rotation=90 * turned)
    return turned


def _short(name: str) -> str:
    return _plain(name if len(name) <= 24 else f'{name[:23]}…')


def _plain(text: str) -> str:
    """Text that can be drawn, and that matplotlib does not take for mathematics."""
    return printable(text).replace('$', r'\$')
