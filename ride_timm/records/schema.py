"""Reading JSON and YAML that others wrote: bounded in size, then checked field by field.

A schema maps the names of fields, dotted for nested ones, to kinds. Fields without an entry pass: older and newer
versions write others. A misfit is one sentence that names the file, the field, what was found and what is allowed.
"""

import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import yaml

from ride_timm.errors import RideError, reason_of

__all__ = [
    'FLAG', 'OBJECT', 'TEXT', 'Kind', 'Schema', 'check_record', 'list_of', 'nullable', 'number', 'one_of',
    'parse_object', 'read_object', 'read_text', 'shown', 'text', 'whole',
]  # fmt: skip

MAX_BYTES = 64 * 2**20
"""Of a text file; label names and descriptions of 20,000 classes have 3 MB."""
_MAX_ITEMS = 1_000_000


class Kind(NamedTuple):
    """What a field may hold: in words, and as a function that says whether a value is one."""

    words: str
    fits: Callable[[Any], bool]


Schema: TypeAlias = Mapping[str, Kind]


def whole(low: int, high: int) -> Kind:
    """A whole number from `low` to `high`."""
    return Kind(
        f'a whole number from {low} to {high:,}',
        lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high,
    )


def number(low: float, high: float) -> Kind:
    """A finite number from `low` to `high`."""

    def fits(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high

    return Kind(f'a number from {low:g} to {high:g}' if math.isfinite(high - low) else 'a number', fits)


def text(pattern: str, words: str) -> Kind:
    """A text that matches a pattern as a whole."""
    return Kind(words, lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None)


def one_of(*values: str) -> Kind:
    """One of some texts."""
    return Kind(' or '.join(values), lambda value: isinstance(value, str) and value in values)


def list_of(kind: Kind, shortest: int = 0, longest: int = _MAX_ITEMS) -> Kind:
    """A list of values of one kind."""
    length = f' of length {shortest} to {longest:,}' if longest < _MAX_ITEMS else ''

    def fits(value: Any) -> bool:
        right = isinstance(value, (list, tuple)) and shortest <= len(value) <= longest
        return right and all(kind.fits(item) for item in value)

    return Kind(f'a list{length}, each item {kind.words}', fits)


def nullable(kind: Kind) -> Kind:
    """A kind, or null."""
    return Kind(f'{kind.words}, or null', lambda value: value is None or kind.fits(value))


TEXT = Kind('a text', lambda value: isinstance(value, str))
FLAG = Kind('true or false', lambda value: isinstance(value, bool))
OBJECT = Kind(
    'an object with texts as keys', lambda value: isinstance(value, dict) and all(isinstance(key, str) for key in value)
)


def check_record(content: Mapping[str, Any], schema: Schema, source: str, needed: tuple[str, ...] = ()) -> None:
    """Compare fields with a schema.

    Args:
        content: The fields, nested.
        schema: What each may hold; an entry must come after the one of the object that it lies in.
        source: The file, for the message.
        needed: The fields that must be there.

    Raises:
        RideError: A field is missing or holds something else.
    """
    for key, kind in schema.items():
        value: Any = content
        for part in key.split('.'):
            there = isinstance(value, Mapping) and part in value
            value = value[part] if there else None
            if not there:
                break
        if not there and key in needed:
            raise RideError(f'{source} lacks "{key}", {kind.words}; get the file again.')
        if there and not kind.fits(value):
            raise RideError(
                f'{source}: "{key}" holds {shown(value)} and must be {kind.words}; correct it, or get the file again.'
            )


def shown(value: Any) -> str:
    """A value in a few words, whatever it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    try:
        return ' '.join(short.repr(value).split())
    except ValueError:  # a number with more digits than Python turns into text
        return 'a huge number'


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """Read a text file of bounded size.

    Args:
        path: The file.
        limit: Bytes that it may have.

    Raises:
        RideError: It cannot be read, is too large, or is not in UTF-8.
    """
    try:
        with path.open('rb') as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise RideError(f'{path} cannot be read ({error.strerror}); name another file.') from None
    if len(data) > limit:
        raise RideError(f'{path} has more than {limit:,} bytes, which no file of this kind has; name another file.')
    try:
        return data.decode('utf-8')
    except UnicodeDecodeError as error:
        raise RideError(f'{path} is not text in UTF-8 (byte {error.start}); get the file again.') from None


def read_object(path: Path, schema: Schema | None = None, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a JSON file, or a YAML file by its suffix, that holds an object, and check its fields.

    Args:
        path: The file.
        schema: See `check_record`.
        needed: Likewise.

    Returns:
        Its content.

    Raises:
        RideError: It cannot be read, is no such file, or a field holds something else.
    """
    form = 'YAML' if path.suffix in ('.yaml', '.yml') else 'JSON'
    content = parse_object(read_text(path), str(path), form)
    check_record(content, schema or {}, str(path), needed)
    return content


def parse_object(source: str, name: str, form: str = 'JSON') -> dict[str, Any]:
    """The object that a text holds.

    Args:
        source: The text.
        name: What to call it in a message.
        form: `JSON` or `YAML`.

    Raises:
        RideError: It is not such a text.
    """
    try:
        content: Any = yaml.safe_load(source) if form == 'YAML' else json.loads(source)
    except RecursionError:
        raise RideError(f'{name} is nested too deeply to be a file of ride-timm; get the file again.') from None
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:  # PyYAML's constructors raise any of them
        raise RideError(
            f'{name} is not valid {form} ({reason_of(error, 200)}); correct it, or get the file again.'
        ) from None
    if not OBJECT.fits(content):
        wanted = '`argument: value` lines' if form == 'YAML' else 'JSON object'
        raise RideError(f'{name} holds no {wanted}; correct it, or get the file again.')
    found: dict[str, Any] = content
    return found
