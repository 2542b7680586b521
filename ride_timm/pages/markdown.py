"""Markdown for the cards: text that stays text, tables, code, and numbers as people read them."""

import html
import re
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ride_timm.escaping import printable

__all__ = ['Markdown', 'code', 'count', 'duration', 'escape', 'fence', 'gmacs', 'percent', 'render', 'table']

NONE = '-'
"""Stands where a number is unknown or has no meaning."""


class Markdown(str):
    """Text that is Markdown already, which templates and tables take as it is."""

    __slots__ = ()


def escape(text: object) -> Markdown:
    """Make a text show as it is, in a paragraph or a table's cell: no HTML, no Markdown, no control characters.

    Args:
        text: Any, such as a class name.
    """
    if isinstance(text, Markdown):
        return text
    line = printable(' '.join(str(text).split()))
    marked = re.sub(r'([\\`*\[\]|~$])', r'\\\1', line)
    # within a word, as in `few_shot`, an underscore means nothing to Markdown
    marked = re.sub(r'(?<![^\W_])_|_(?![^\W_])', r'\\_', marked)
    return Markdown(html.escape(marked, quote=False))


def code(text: str) -> Markdown:
    """A name in a code span, or as plain text where it holds more than a name does.

    Args:
        text: Such as an architecture or a commit.
    """
    return Markdown(f'`{text}`') if re.fullmatch(r'[\w./:-]+', text) else escape(text)


def table(header: Sequence[object], rows: Sequence[Sequence[object]], numbers: bool = True) -> Markdown:
    """A table of GitHub's Markdown.

    Args:
        header: Names of the columns.
        rows: Cells.
        numbers: Set all columns but the first flush right.
    """
    marks = ['---'] + ['---:' if numbers else '---'] * (len(header) - 1)
    return Markdown('\n'.join(f'| {" | ".join(map(escape, cells))} |' for cells in (header, marks, *rows)))


def fence(code: str, language: str) -> Markdown:
    """A block of code, fenced by more backticks than it has itself.

    Args:
        code: The lines.
        language: `python`, `bash`, ...
    """
    lines = '\n'.join(map(printable, code.strip().split('\n')))
    longest = max((len(run) for run in re.findall('`+', code)), default=0)
    ticks = '`' * max(3, longest + 1)
    return Markdown(f'{ticks}{language}\n{lines}\n{ticks}')


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


def _shown(value: object) -> str:
    """A value in a template, escaped, with the spaces around it."""
    text = str(value)
    return ' ' * text.startswith(' ') + escape(value) + ' ' * (text.endswith(' ') and bool(text.strip()))


def render(name: str, **values: Any) -> str:
    """Fill in a template of Markdown.

    Args:
        name: Of the file.
        **values: What it shows; all text is escaped but `Markdown`.
    """
    environment = Environment(
        loader=PackageLoader('ride_timm', 'pages/templates'), undefined=StrictUndefined, finalize=_shown,
        autoescape=False, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {
        'code': code, 'count': count, 'gmacs': gmacs, 'percent': percent,
        'raw': lambda value: Markdown('\n'.join(map(printable, str(value).split('\n')))),
    }  # fmt: skip
    return re.sub('\n{3,}', '\n\n', environment.get_template(name).render(**values)).strip() + '\n'
