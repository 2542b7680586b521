"""Frozen dataclasses that are read from JSON: each field says what it may hold, and a misfit is named by its place."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from ride_timm.errors import RideError
from ride_timm.records.schema import OBJECT, Kind, list_of, nullable, shown

__all__ = ['from_json', 'item', 'part', 'parts', 'to_json']

_T = TypeVar('_T')


def item(kind: Kind, default: Any = dataclasses.MISSING) -> Any:
    """A field with a plain value.

    Args:
        kind: What it may hold.
        default: What an absent entry means; without one the entry has to be there.
    """
    return dataclasses.field(default=default, metadata={'kind': kind})


def part(of: type, default: Any = dataclasses.MISSING) -> Any:
    """A field with another dataclass of this sort; it may be null where `default` is None."""
    return dataclasses.field(default=default, metadata={'kind': OBJECT if default is not None else None, 'of': of})


def parts(of: type, default: Any = dataclasses.MISSING, shortest: int = 0) -> Any:
    """A field with a tuple of such; it may be null where `default` is None."""
    kind = list_of(OBJECT, shortest)
    metadata = {'kind': nullable(kind) if default is None else kind, 'of': of}
    return dataclasses.field(default=default, metadata=metadata)


def from_json(cls: type[_T], content: Mapping[str, Any], source: str, place: str = '') -> _T:
    """Make a record from what a JSON file holds; entries that it has no field for are left out.

    Args:
        cls: A dataclass whose fields are made by `item`, `part` and `parts`.
        content: The entries.
        source: The file, for the message.
        place: Where in the file the entries stand, with a dot behind it.

    Raises:
        RideError: An entry is missing or holds something else.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        name, kind, of = f'{place}{field.name}', field.metadata['kind'] or nullable(OBJECT), field.metadata.get('of')
        if field.name not in content:
            if field.default is dataclasses.MISSING:
                raise RideError(f'{source}: "{name}" is missing and must be {kind.words}; write the file again.')
            continue
        value = content[field.name]
        if not kind.fits(value):
            raise RideError(f'{source}: "{name}" holds {shown(value)} and must be {kind.words}; write the file again.')
        if of is not None and isinstance(value, Mapping):
            value = from_json(of, value, source, f'{name}.')
        elif of is not None and value is not None:
            value = tuple(from_json(of, row, source, f'{name}[{index}].') for index, row in enumerate(value))
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def to_json(record: Any) -> dict[str, Any]:
    """What `from_json` makes the same record from.

    Args:
        record: A dataclass of this sort.
    """
    return dataclasses.asdict(record)
