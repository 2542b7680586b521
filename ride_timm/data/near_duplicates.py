"""Images that are nearly the same: frames of one moment, and copies that were scaled or compressed again."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ['CORRELATION', 'DISTANCE', 'fingerprint', 'near_duplicates']

DISTANCE = 7
"""Bits in which the hashes of two such images differ at most."""
CORRELATION = 0.97
"""Least correlation of their pixels."""

_BITS, _SIDE = 64, 16
_FLAT = 4.0  # grey levels: an image that varies by less looks like every other such one
_CELLS = 2**23  # compared at once


def fingerprint(image: Image.Image) -> bytes | None:
    """What an image looks like, whatever its size.

    Args:
        image: Of 8 bits a channel.

    Returns:
        Its difference hash of 64 bits (Krawetz, "Kind of Like That", 2013: whether the brightness grows from left to
        right, on 8 x 9 pixels), and 16 x 16 grey pixels. None for an image without contrast.
    """
    grey = image.convert('L')
    pixels = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0))
    if pixels.std() < _FLAT:
        return None
    steps = np.asarray(grey.resize((9, 8), Image.Resampling.LANCZOS, reducing_gap=2.0))
    return np.packbits(steps[:, 1:] > steps[:, :-1]).tobytes() + pixels.tobytes()


def near_duplicates(first: Sequence[bytes | None], second: Sequence[bytes | None]) -> dict[int, int]:
    """Find the images of the second sequence that look nearly like one of the first.

    All pairs are compared: two such images have hashes that differ in at most `DISTANCE` of the 64 bits, and pixels
    with a correlation of at least `CORRELATION`.

    Returns:
        For numbers of images of the second sequence, ascending, the number of the most similar one of the first.
    """
    (rows, bits, pixels), (others, other_bits, other_pixels) = _unpacked(first), _unpacked(second)
    found: dict[int, int] = {}
    if not rows.size:
        return found
    step = max(_CELLS // rows.size, 1)
    for start in range(0, others.size, step):
        # the product of rows of -1 and 1 is 64 less twice the number of bits that differ
        agreement = other_bits[start : start + step] @ bits.T
        for index in np.flatnonzero(agreement.max(1) >= _BITS - 2 * DISTANCE).tolist():
            close = np.flatnonzero(agreement[index] >= _BITS - 2 * DISTANCE)
            alike = pixels[close] @ other_pixels[start + index]
            best = int(alike.argmax())
            if alike[best] >= CORRELATION:
                found[int(others[start + index])] = int(rows[close[best]])
    return found


def _unpacked(prints: Sequence[bytes | None]) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Numbers (N,) of the images with a fingerprint, bits as -1 and 1 (N, 64), and pixels of unit length (N, 256)."""
    rows = np.array([row for row, known in enumerate(prints) if known is not None], dtype=np.int64)
    data = np.frombuffer(b''.join(known for known in prints if known is not None), dtype=np.uint8)
    data = data.reshape(rows.size, _BITS // 8 + _SIDE**2)
    bits = np.unpackbits(data[:, : _BITS // 8], axis=1).astype(np.float32) * 2 - 1
    pixels = data[:, _BITS // 8 :].astype(np.float32)
    pixels -= pixels.mean(1, keepdims=True)
    return rows, bits, pixels / np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), 1e-9)
