"""Tables for a terminal: columns as wide as their text, in every script."""

import unicodedata
from collections.abc import Sequence

from ride_timm.escaping import printable

__all__ = ['counted', 'lay_out', 'padded', 'shortened_to', 'text_width']


def text_width(text: str) -> int:
    """Columns that a text takes on a terminal: two for a wide character, none for a combining one."""
    return sum((unicodedata.east_asian_width(c) in 'WF') + (not unicodedata.combining(c)) for c in text)


def padded(text: str, width: int, right: bool = False) -> str:
    """A text with spaces after it, or before it, up to a width."""
    space = ' ' * (width - text_width(text))
    return space + text if right else text + space


def shortened_to(width: int, text: str) -> str:
    """A printable text without its middle where it takes more columns: names are often told apart by their ends."""
    text, width = printable(text), max(width, 8)
    if text_width(text) <= width:
        return text
    head, tail = text, text
    while text_width(head) > width // 2 - 2:
        head = head[:-1]
    while text_width(tail) > width - width // 2 - 1:
        tail = tail[1:]
    return f'{head}...{tail}'


def lay_out(columns: Sequence[Sequence[str]], right: Sequence[int] = (), gap: int = 2) -> list[str]:
    """The lines of a table.

    Args:
        columns: The cells of each column, its heading first; all of one length.
        right: Indices of the columns that are flush right, as numbers are.
        gap: Spaces between columns.
    """
    widths = [max(map(text_width, column)) for column in columns]
    lines = zip(*columns, strict=True)
    return [
        (' ' * gap).join(padded(cell, widths[i], i in right) for i, cell in enumerate(line)).rstrip() for line in lines
    ]


def counted(number: int, one: str, several: str = '') -> str:
    """A number and its noun: `1 class`, `1,203 classes`.

    Args:
        number: How many there are.
        one: The noun, or more, in the singular.
        several: In the plural; with an s by default.
    """
    return f'{number:,} {one if number == 1 else several or f"{one}s"}'
