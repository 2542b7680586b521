"""Finding unreadable images before a training starts instead of hours into it."""

from concurrent.futures import ThreadPoolExecutor

from ride_timm.data.datasets import DataSplit
from ride_timm.errors import RideError

__all__ = ['check_images', 'find_unreadable']

_CHUNK = 64  # images per thread and round: small enough that `limit` stops early
_NAMED = 3  # files that a message names


def find_unreadable(split: DataSplit, limit: int | None = None, threads: int = 4) -> list[tuple[str, str]]:
    """Decode every image once and list those that fail.

    Args:
        split: The images.
        limit: Stop once this many were found; None looks at every image.
        threads: Decoding threads (Pillow decodes outside Python's global lock).

    Returns:
        (file, reason) of each unreadable image, in the order of the split.
    """
    found: list[tuple[str, str]] = []
    size = len(split.dataset)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, size, _CHUNK * threads):
            chunk = range(start, min(start + _CHUNK * threads, size))
            reasons = pool.map(split.dataset.unreadable, chunk)
            found += [
                (split.dataset.filename(i, absolute=True), why) for i, why in zip(chunk, reasons, strict=True) if why
            ]
            if limit is not None and len(found) >= limit:
                return found[:limit]
    return found


def check_images(split: DataSplit, threads: int = 4) -> None:
    """Refuse a split that holds unreadable images.

    Args:
        split: The images.
        threads: Decoding threads.

    Raises:
        RideError: If an image cannot be decoded; names the first few and the number of all.
    """
    found = find_unreadable(split, threads=threads)
    if not found:
        return
    named = ', '.join(f'{path} ({reason})' for path, reason in found[:_NAMED])
    rest = f' and {len(found) - _NAMED} more' if len(found) > _NAMED else ''
    raise RideError(
        f'{len(found)} of {len(split.dataset)} images of {split.source} cannot be read: '
        f'{named}{rest}; remove or replace them'
    )
