"""The report on a data set as text for a terminal."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ride_timm.data import imbalance_factor
from ride_timm.data.survey import Finding, Survey
from ride_timm.escaping import printable
from ride_timm.tables import padded, shortened_to, text_width

__all__ = ['render']

_ONE_BY_ONE = 20  # classes that are shown
_SHOWN = 5  # examples under a finding


def render(found: Survey, *, every_class: bool = False, width: int = 100, blocks: bool = True) -> str:
    """Lay the findings out as text.

    Args:
        found: Of `survey`.
        every_class: List all classes and all examples instead of a few.
        width: Columns of the terminal.
        blocks: Whether it shows block characters.

    Returns:
        The text, several lines.
    """
    parts = [_sides(found)]
    if found.train is not None and found.groups is not None:
        parts += [_classes(found, every_class, width, blocks), _groups(found)]
    if found.looked:
        parts.append(_files(found))
    parts.append(_findings(found.findings, every_class))
    return '\n\n'.join(part for part in parts if part)


def _sides(found: Survey) -> str:
    rows: list[tuple[str, ...]] = [('', 'images', 'classes', 'largest', 'median', 'smallest', 'imbalance')]
    for title, side in (('training', found.train), ('evaluation', found.val)):
        if side is not None:
            sizes = [count for count in side.counts.values() if count] or [0]
            factor = f'{imbalance_factor(sizes):.4g}'
            numbers = (len(side.labels), len(sizes), max(sizes), int(np.median(sizes)), min(sizes))
            rows.append((title, *(f'{number:,}' for number in numbers), factor))
    table = [f'{row[0]:<11}' + ''.join(f'{cell:>10}' for cell in row[1:]) for row in rows]
    sources = [
        f'{title:<11} {printable(side.text)}'
        for title, side in (('training', found.train), ('evaluation', found.val))
        if side is not None
    ]
    return '\n'.join([f'{"form":<11} {found.form}', *sources, '', *table]) if sources else ''


def _classes(found: Survey, every: bool, width: int, blocks: bool) -> str:
    """A bar for each class, the largest first; of many classes some at equal distances, with both ends."""
    rows = [(shortened_to(width // 3, name), count, tested, group) for name, count, tested, group in _rows(found)]
    largest, total = max(rows[0][1], 1), len(rows)
    if total > _ONE_BY_ONE and not every:
        rows = [rows[index] for index in np.linspace(0, total - 1, _ONE_BY_ONE).round().astype(int)]
    wide = max(max(text_width(row[0]) for row in rows), 5)
    space = max(min(width - wide - 36, 60), 8)
    lines = [f'{"class":<{wide}}  {"training":>8}  {"":<{space}}  evaluation  group']
    for name, count, tested, group in rows:
        bar = _bar(count / largest * space, blocks)
        lines.append(f'{padded(name, wide)}  {count:>8,}  {bar:<{space}}  {tested:>10,}  {group}')
    if len(rows) < total:
        lines.append(f'{len(rows)} of {total:,} classes, evenly spaced from the largest to the smallest (all: --all)')
    return '\n'.join(lines)


def _bar(length: float, blocks: bool) -> str:
    """A bar of a number of columns; what is not nothing is seen."""
    if not blocks:
        return '#' * max(round(length), int(length > 0))
    eighths = max(round(length * 8), int(length > 0))
    return '█' * (eighths // 8) + ' ▏▎▍▌▋▊▉'[eighths % 8].strip()


def _groups(found: Survey) -> str:
    assert found.train is not None
    assert found.groups is not None
    sizes = np.array(list(found.train.counts.values()))
    fixed = found.groups.rule == 'threshold'
    why = (
        f'limits of the field: {found.groups.text}' if fixed else 'thirds of the classes, as 100 and 20 leave one empty'
    )
    lines = [f'Groups by training images ({why})']
    for name, members in found.groups.groups.items():
        own = sizes[members]
        span = f'{own.max():,} to {own.min():,} per class' if own.max() > own.min() else f'{own.max():,} per class'
        classes = 'class  ' if len(members) == 1 else 'classes'
        images = 'image' if own.sum() == 1 else 'images'
        lines.append(f'  {name:<8}{len(members):>6,} {classes}  {own.sum():>9,} {images}, {span}')
    return '\n'.join(lines)


def _rows(found: Survey) -> list[tuple[str, int, int, str]]:
    """Name, training images, evaluation images and group of every class, the largest first."""
    assert found.train is not None
    assert found.groups is not None
    tested = {} if found.val is None else found.val.counts
    group_of = {int(index): name for name, members in found.groups.groups.items() for index in members}
    rows = [
        (printable(name), count, tested.get(name, 0), group_of[index])
        for index, (name, count) in enumerate(found.train.counts.items())
    ]
    return sorted(rows, key=lambda row: -row[1])


def _files(found: Survey) -> str:
    """Sizes and kinds of pixels of all images that can be read."""
    facts = [fact for side in (found.train, found.val) if side is not None for fact in side.facts if fact.size]
    if not facts:
        return ''
    sizes = sorted((fact.size for fact in facts if fact.size), key=lambda size: size[0] * size[1])
    small, middle, large = (f'{w:,}x{h:,}' for w, h in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    text = small if small == large else f'{small} to {large} pixels, median {middle}'
    modes = ', '.join(f'{mode} {count:,}' for mode, count in Counter(fact.mode for fact in facts).most_common())
    return f'Sizes     {text}\nPixels    {modes}'


def _findings(findings: Sequence[Finding], every: bool) -> str:
    order = {'error': 0, 'warning': 1, 'ok': 2}
    lines = []
    for finding in sorted(findings, key=lambda finding: order[finding.level]):
        lines.append(f'{finding.level:<9} {printable(finding.text)}')
        shown = finding.details if every else finding.details[:_SHOWN]
        lines += [f'{"":<10}  {detail}' for detail in shown]
        if len(shown) < len(finding.details):
            lines.append(f'{"":<10}  and {len(finding.details) - len(shown)} more (--all)')
    return '\n'.join(lines)
