r"""Names and texts that come out of files may be anything: how they are shown, and how they stand in a table.

`printable` is for what people read: terminals, log lines, pages, pictures. `csv_cell` is for CSV files, which
spreadsheets open: there a cell that begins with =, +, -, @, a tab or a line break is run as a formula
(https://owasp.org/www-community/attacks/CSV_Injection).
"""

import unicodedata
from typing import Any

__all__ = ['csv_cell', 'from_csv_cell', 'printable', 'shortened']

_JOINERS = '\u200c\u200d'  # parts of words in Persian and Hindi, and of emoji
_STARTS = ('=', '+', '-', '@', '\t', '\r', '\n')


def printable(text: str) -> str:
    r"""Text in which nothing commands a terminal, breaks the line or turns the direction of what follows.

    Control characters, line breaks, marks of direction and what is no character at all become escapes such as `\x1b`;
    letters and spaces of every script stay.
    """
    if text.isprintable():
        return text
    return ''.join(char if _is_shown(char) else char.encode('unicode_escape').decode() for char in text)


def _is_shown(char: str) -> bool:
    return char.isprintable() or char in _JOINERS or unicodedata.category(char) == 'Zs'


def shortened(text: object, longest: int = 200) -> str:
    """A name for a message, cut in its middle if it is very long.

    Args:
        text: The name.
        longest: Characters to keep.
    """
    name = str(text)
    return name if len(name) <= longest else f'{name[: longest // 2]}...{name[3 - longest // 2 :]}'


def csv_cell(value: Any) -> Any:
    """A value as a cell of a CSV file, text that a spreadsheet would run made harmless by a leading apostrophe.

    Args:
        value: Numbers and None stay as they are.
    """
    if isinstance(value, str) and value.lstrip("'").startswith(_STARTS):
        return f"'{value}"
    return value


def from_csv_cell(text: str) -> str:
    """The text that `csv_cell` made a cell of."""
    return text[1:] if text.startswith("'") and csv_cell(text[1:]) == text else text
