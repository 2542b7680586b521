"""The report on a data set as text for a terminal."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ride_timm.data import imbalance_factor
from ride_timm.escaping import printable
from ride_timm.surveys.survey import Finding, Survey
from ride_timm.tables import padded, shortened_to, text_width

__all__ = ['render', 'tail_lines']

_EIGHTHS = ' ▁▂▃▄▅▆▇█'
_ONE_BY_ONE = 20  # classes that are drawn with their names
_SHOWN = 5  # examples under a finding, and classes at each end of the tail


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
        few = len(found.train.counts) <= _ONE_BY_ONE
        parts += (
            [_bars(found, width, blocks)] if few else [_tail(found, width, blocks), _ends(found.train.counts, width)]
        )
        parts.append(_groups(found))
        if every_class and not few:
            parts.append(_classes(found))
    if found.looked:
        parts.append(_files(found))
    parts.append(_findings(found.findings, every_class))
    return '\n\n'.join(part for part in parts if part)


def tail_lines(counts: Sequence[int], columns: int, height: int = 8, blocks: bool = True) -> list[str]:
    """Draw class sizes as bars, the largest class first.

    Where there are more classes than columns, a column is the mean of its classes; where there are fewer, a class is
    several columns wide. A class with images is never drawn without a bar.

    Args:
        counts: (C,) images of each class, in any order.
        columns: Width of the drawing, at least 1.
        height: Its lines.
        blocks: Draw with block characters, an eighth of a line fine; else with `#`.

    Returns:
        `height` lines of equal length.
    """
    sizes = np.sort(np.asarray(counts, dtype=np.float64))[::-1]
    wide = max(columns // len(sizes), 1)
    bins = np.array_split(sizes, columns) if len(sizes) > columns else [sizes[i : i + 1] for i in range(len(sizes))]
    means = np.array([part.mean() for part in bins])
    steps = 8 if blocks else 1
    levels = np.ceil(means / max(sizes[0], 1) * height * steps).astype(int)
    lines = []
    for row in range(height - 1, -1, -1):
        filled = np.clip(levels - row * steps, 0, steps)
        marks = [_EIGHTHS[level] if blocks else ' #'[level] for level in filled]
        # a gap between wide bars tells neighbours of the same size apart
        lines.append(''.join(mark * wide if wide < 3 else mark * (wide - 1) + ' ' for mark in marks))
    return lines


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


def _tail(found: Survey, width: int, blocks: bool) -> str:
    assert found.train is not None
    sizes = list(found.train.counts.values())
    top, middle = f'{max(sizes):,}', f'{max(sizes) / 2:,.0f}'
    margin = max(len(top), len(middle)) + 1
    lines = tail_lines(sizes, max(width - margin - 2, 10), blocks=blocks)
    marks = {0: top, len(lines) // 2: middle}
    drawn = [f'{marks.get(row, ""):>{margin}}{"│" if blocks else "|"}{line}'.rstrip() for row, line in enumerate(lines)]
    ruler = f'{"":>{margin}}{"└" if blocks else "+"}{_ruler(found, len(lines[0]), "─" if blocks else "-")}'
    return '\n'.join(['Training images of each class, the largest class first', *drawn, ruler])


def _ruler(found: Survey, columns: int, dash: str) -> str:
    """The groups' names under their part of the bars."""
    assert found.groups is not None
    members = found.groups.groups
    ends = np.cumsum([len(classes) for classes in members.values()])
    ends = np.rint(ends / ends[-1] * columns).astype(int).tolist()
    parts = []
    for name, start, end in zip(members, [0, *ends[:-1]], ends, strict=True):
        parts.append(f'{name} '.ljust(end - start, dash) if end - start > len(name) else dash * (end - start))
    return ''.join(parts)


def _bars(found: Survey, width: int, blocks: bool) -> str:
    """Every class with its name, where there are few."""
    rows = [(shortened_to(width // 3, name), count, tested, group) for name, count, tested, group in _rows(found)]
    wide = max(max(text_width(row[0]) for row in rows), 5)
    space = max(min(width - wide - 36, 60), 8)
    largest = max(max(row[1] for row in rows), 1)
    lines = [f'{"class":<{wide}}  {"training":>8}  {"":<{space}}  evaluation  group']
    for name, count, tested, group in rows:
        bar = _bar(count / largest * space, blocks)
        lines.append(f'{padded(name, wide)}  {count:>8,}  {bar:<{space}}  {tested:>10,}  {group}')
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
        span = f'{own.max():,} to {own.min():,} a class' if own.max() > own.min() else f'{own.max():,} a class'
        classes = 'class  ' if len(members) == 1 else 'classes'
        images = 'image' if own.sum() == 1 else 'images'
        lines.append(f'  {name:<8}{len(members):>6,} {classes}  {own.sum():>9,} {images}, {span}')
    return '\n'.join(lines)


def _ends(counts: dict[str, int], width: int) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return f'{_named("Largest", ordered[:_SHOWN], width)}\n{_named("Smallest", ordered[-_SHOWN:], width)}'


def _named(title: str, items: Sequence[tuple[str, int]], width: int) -> str:
    """Classes and their numbers of images, on as many lines as they take."""
    lines = [title.ljust(9)]
    for place, (name, count) in enumerate(items, 1):
        word = f' {printable(name)} {count:,}' + ',' * (place < len(items))
        if text_width(lines[-1] + word) > width and lines[-1].strip() not in ('', title):
            lines.append(' ' * 9)
        lines[-1] += word
    return '\n'.join(lines)


def _classes(found: Survey) -> str:
    rows = _rows(found)
    wide = max(text_width(row[0]) for row in rows)
    head = f'{"class":<{wide}}  training  evaluation  group'
    return '\n'.join([head, *(f'{padded(name, wide)}  {n:>8,}  {v:>10,}  {group}' for name, n, v, group in rows)])


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
