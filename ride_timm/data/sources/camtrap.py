"""Camtrap DP, the exchange format of camera-trap data: a package of tables of deployments, media and observations.

Form: https://camtrap-dp.tdwg.org (1.0).
"""

import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path, PureWindowsPath
from typing import Any

from ride_timm.data.sources.list_lines import read_text
from ride_timm.data.sources.rows import Box, ImageRow, Listed
from ride_timm.data.sources.tables import divide
from ride_timm.errors import RideError
from ride_timm.escaping import printable
from ride_timm.records.schema import OBJECT, TEXT, Kind, Schema, check_record, list_of

__all__ = ['read_camtrap']

_PACKAGE: Schema = {'resources': list_of(OBJECT)}
_RESOURCE: Schema = {'name': TEXT, 'path': Kind('the name of one file', lambda value: isinstance(value, str))}
_BOX = ('bboxX', 'bboxY', 'bboxWidth', 'bboxHeight')

_Row = dict[str, str]


def read_camtrap(content: dict[str, Any], file: str, labelled: bool = True) -> Listed:
    """The animals observed on each image; the label is `scientificName`, the group `deploymentID`.

    Observations of a medium are of that image, those of an event of all images of the event: by `eventID` where the
    media have one, else by the time between `eventStart` and `eventEnd` at the deployment.

    Args:
        content: That of `datapackage.json`.
        file: Its name; the tables lie next to it.
        labelled: Leave out images without an animal that has a name.

    Returns:
        A row for each image and animal.

    Raises:
        RideError: A table or a column is missing, or a table lies outside of the package.
    """
    check_record(content, _PACKAGE, file)
    media = _table(content, 'media', file, ('mediaID', 'filePath'))
    images = [row for _, row in media if not row.get('fileMediatype', '').startswith(('video', 'audio'))]
    if not images:
        raise RideError(f'The media of {file} have no image; give a package with images.')
    seen: dict[str, list[tuple[str, Box | None]]] = {row['mediaID']: [] for row in images}
    notes = [f'{len(media) - len(images)} videos are left out'] if len(media) > len(images) else []
    others: Counter[str] = Counter()
    if labelled or any(resource.get('name') == 'observations' for resource in content['resources']):
        events = _Events(images)
        for place, row in _table(content, 'observations', file, ('mediaID', 'observationType', 'scientificName')):
            kind = row['observationType']
            if kind != 'animal' or not row['scientificName']:
                others['animal without a name' if kind == 'animal' else kind] += 1
                continue
            for medium in [row['mediaID']] if row['mediaID'] else events.media(row, place):
                if medium in seen:  # others are videos, or were not exported
                    seen[medium].append((row['scientificName'], _box(row, place) if row['mediaID'] else None))
    rows = []
    for line, row in enumerate(images, 1):
        group = row.get('deploymentID') or None
        path = row['filePath']
        if '://' in path and row.get('fileName'):
            path = row['fileName']
        for label, box in seen[row['mediaID']] or ([] if labelled else [('', None)]):
            rows.append(ImageRow(path, label if labelled else '', line, None, group, box))
    if not rows:
        raise RideError(f'{file} has no observation of an animal with a scientificName; give a package with some.')
    if others and labelled:
        kinds = ', '.join(f'{number} {printable(kind)}' for kind, number in others.most_common())
        notes.append(f'observations of other types are left out ({kinds})')
    empty = sum(not found for found in seen.values())
    if empty and labelled:
        notes.append(f'{empty} of {len(images)} images show no animal with a name and are left out')
    return Listed(rows, 'a Camtrap DP', 'medium', tuple(notes), contained=True, many=True)


class _Events:
    """Which media belong to an event."""

    def __init__(self, images: Iterable[_Row]) -> None:
        self.by_event: dict[str, list[str]] = defaultdict(list)
        self.by_time: dict[str, list[tuple[float, str]]] = defaultdict(list)
        for row in images:
            if row.get('eventID'):
                self.by_event[row['eventID']].append(row['mediaID'])
            time = _time(row.get('timestamp', ''))
            if time is not None:
                self.by_time[row.get('deploymentID', '')].append((time, row['mediaID']))
        for times in self.by_time.values():
            times.sort()

    def media(self, row: _Row, place: str) -> list[str]:
        """The media of the event that an observation is of."""
        if self.by_event:
            return self.by_event.get(row.get('eventID', ''), [])
        start, end = _time(row.get('eventStart', '')), _time(row.get('eventEnd', ''))
        if start is None or end is None:
            raise RideError(
                f'{place} is of no medium, and its event has no eventStart and eventEnd; give it a mediaID, or both.'
            )
        times = self.by_time.get(row.get('deploymentID', ''), [])
        found = times[bisect.bisect_left(times, (start, '')) : bisect.bisect_right(times, (end, '\U0010ffff'))]
        return [medium for _, medium in found]


def _table(content: dict[str, Any], name: str, file: str, needed: tuple[str, ...]) -> list[tuple[str, _Row]]:
    """Place and cells, by column, of each row of a resource."""
    resources = [resource for resource in content['resources'] if resource.get('name') == name]
    if len(resources) != 1:
        raise RideError(f'{file} has {len(resources)} resources called "{name}" and must have one; correct it.')
    check_record(resources[0], _RESOURCE, f'The resource {name} of {file}', ('path',))
    path = resources[0]['path']
    if '://' in path or PureWindowsPath(path).drive or path.startswith(('/', '\\')) or '..' in path.split('/'):
        raise RideError(
            f'The resource {name} of {file} lies at {printable(path)}, outside of the package; put it next to the file.'
        )
    table = divide(read_text(Path(file).parent / path, f'The {name} of {file}'), path)
    missing = [column for column in needed if table is None or column not in table.header]
    if table is None or missing:
        raise RideError(
            f'{Path(file).parent / path} lacks the column {", ".join(missing)}; give the {name} of a Camtrap DP.'
        )
    return list(_named(table.header, table.body, str(Path(file).parent / path)))


def _named(header: list[str], body: list[tuple[int, list[str]]], path: str) -> Iterator[tuple[str, _Row]]:
    for line, cells in body:
        if len(cells) != len(header):
            raise RideError(
                f'Line {line} of {path} has {len(cells)} fields and the first line {len(header)}; correct it.'
            )
        yield f'Line {line} of {path}', dict(zip(header, map(str.strip, cells), strict=True))


def _time(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text.replace('Z', '+00:00')).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _box(row: _Row, place: str) -> Box | None:
    values = [row.get(name, '') for name in _BOX]
    if not all(values):
        return None
    try:
        x, y, width, height = map(float, values)
    except ValueError:
        x = y = width = height = -1.0
    if not all(0 <= value <= 1 for value in (x, y, width, height)):
        raise RideError(f'{place} has the box {printable(", ".join(values))}; give four numbers from 0 to 1, or none.')
    return Box(x, y, width, height, relative=True) if width > 0 and height > 0 else None
