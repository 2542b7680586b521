"""When and with which camera photographs were taken, by their EXIF data."""

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

__all__ = ['BURST_SECONDS', 'Shot', 'read_shot', 'same_bursts']

BURST_SECONDS = 5
"""Photographs of one camera that are no further apart count as one burst."""

_SAME_TIME = 50  # more photographs of one second than this come from a clock that was never set


class Shot(NamedTuple):
    """A photograph: make and model of its `camera`, the `serial` number, and seconds on its clock; None: unknown."""

    camera: str
    serial: str | None
    taken: float | None


def read_shot(image: Image.Image) -> Shot | None:
    """What the EXIF data of an image say; None without any of it."""
    if 'exif' not in image.info:  # getexif would take its time to find nothing
        return None
    try:
        data = image.getexif()
        own = data.get_ifd(ExifTags.IFD.Exif)
        camera = ' '.join(str(data.get(tag) or '').strip() for tag in (ExifTags.Base.Make, ExifTags.Base.Model)).strip()
        serial = str(own.get(ExifTags.Base.BodySerialNumber) or '').strip() or None
        taken = _seconds(own.get(ExifTags.Base.DateTimeOriginal))
    except Exception:  # damaged EXIF data are none
        return None
    return Shot(camera, serial, taken) if serial or taken is not None else None


def same_bursts(first: Sequence[Shot | None], second: Sequence[Shot | None]) -> dict[int, int]:
    """Find the photographs of the second sequence that were taken together with one of the first.

    Returns:
        For numbers of photographs of the second sequence, ascending, the number of the one of the first, of the same
        camera, that was taken next to it in time and at most `BURST_SECONDS` before or after.
    """
    times: dict[tuple[str, str | None], list[tuple[float, int]]] = {}
    for row, shot in enumerate(first):
        if shot is not None and shot.taken is not None:
            times.setdefault((shot.camera, shot.serial), []).append((shot.taken, row))
    clocks = {camera: np.array(sorted(known)) for camera, known in times.items()}
    found: dict[int, int] = {}
    for row, shot in enumerate(second):
        known = None if shot is None else clocks.get((shot.camera, shot.serial))
        if shot is None or shot.taken is None or known is None:
            continue
        low, high = np.searchsorted(known[:, 0], [shot.taken, shot.taken + 0.5])
        if high - low > _SAME_TIME:
            continue
        near = [place for place in (low - 1, low) if 0 <= place < len(known)]
        best = min(near, key=lambda place: abs(known[place, 0] - shot.taken))
        if abs(known[best, 0] - shot.taken) <= BURST_SECONDS:
            found[row] = int(known[best, 1])
    return found


def _seconds(text: object) -> float | None:
    try:
        return datetime.strptime(str(text).strip(), '%Y:%m:%d %H:%M:%S').replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None
