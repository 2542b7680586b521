"""Markdown for the cards: texts of users that stay texts, tables, code, and figures as people read them."""

import html
import re
from collections.abc import Sequence

from ride_timm.escaping import printable

__all__ = ['code', 'count', 'duration', 'escape', 'fence', 'gmacs', 'percent', 'table']

NONE = '-'
"""Stands where a figure is unknown or has no meaning."""


def escape(text: str) -> str:
    """Make a text show as it is, in a paragraph or a table's cell: no HTML, no Markdown, no control characters.

    Args:
        text: Any, such as a class name.
    """
    line = printable(' '.join(text.split()))
    marked = re.sub(r'([\\`*\[\]|~$])', r'\\\1', line)
    # within a word, as in `few_shot`, an underscore means nothing to Markdown
    marked = re.sub(r'(?<![^\W_])_|_(?![^\W_])', r'\\_', marked)
    return html.escape(marked, quote=False)


def code(text: str) -> str:
    """A name in a code span, or as plain text where it holds more than a name does.

    Args:
        text: Such as an architecture or a commit.
    """
    return f'`{text}`' if re.fullmatch(r'[\w./:-]+', text) else escape(text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """A table of GitHub's Markdown.

    Args:
        header: Names of the columns.
        rows: Cells, already escaped.
        numbers: Set all columns but the first flush right.
    """
    marks = ['---'] + ['---:' if numbers else '---'] * (len(header) - 1)
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in (header, marks, *rows))


def fence(code: str, language: str) -> str:
    """A block of code, fenced by more backticks than it has itself.

    Args:
        code: The lines.
        language: `python`, `bash`, ...
    """
    lines = '\n'.join(map(printable, code.strip().split('\n')))
    longest = max((len(run) for run in re.findall('`+', code)), default=0)
    ticks = '`' * max(3, longest + 1)
    return f'{ticks}{language}\n{lines}\n{ticks}'


def percent(value: float | None, digits: int = 2) -> str:
    """Percent as a table shows them, without the sign."""
    return NONE if value is None else f'{value:.{digits}f}'


def gmacs(value: float | None) -> str:
    """GMACs with four places below 1 and three above."""
    return NONE if value is None else f'{value:.{4 if value < 1 else 3}f}'


def count(value: int | None) -> str:
    """A whole number with commas at the thousands."""
    return NONE if value is None else f'{value:,}'


def duration(seconds: float | None) -> str:
    """Time as `2 h 15 min`, `4 min` or `12 s`."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    return f'{minutes // 60} h {minutes % 60} min' if minutes >= 60 else f'{minutes} min'
