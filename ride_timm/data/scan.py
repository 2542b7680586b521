"""One pass over images: what can be read, how large they are, and which are the same file."""

import hashlib
import io
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from ride_timm.data.images import NPY, ImageSet, convert_image, failure_reason, open_picture, read_array
from ride_timm.data.near_duplicates import fingerprint
from ride_timm.data.shots import Shot, read_shot

__all__ = ['ImageFacts', 'content_digest', 'find_repeats', 'scan_images']

_CHUNK = 512  # images between two reports of progress
_ANY_RANGE = (0, 65535)  # of 16-bit images; the pixels are not looked at


class ImageFacts(NamedTuple):
    """What a look at an image tells.

    `size` is (width, height) in pixels, `mode` Pillow's name for the kind of pixels, `digest` identifies the file's
    bytes (or the pixels, in a source without files), and `problem` says why it cannot be read, None if it can.
    `looks` is its `fingerprint`, and `shot` when and with what it was taken; None where that is not known.
    """

    size: tuple[int, int] | None
    mode: str
    animated: bool
    digest: bytes
    problem: str | None
    looks: bytes | None = None
    shot: Shot | None = None


def scan_images(
    images: ImageSet, threads: int = 4, progress: Callable[[int], object] | None = None
) -> list[ImageFacts]:
    """Read and decode every image once.

    Args:
        images: The images.
        threads: Reading threads.
        progress: Called now and then with the number of images read since the last call.

    Returns:
        The facts of each image, in order.
    """
    facts: list[ImageFacts] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # large images are what some data consists of
        for start in range(0, len(images), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(images)))
            facts += pool.map(lambda index: _look(images, index), chunk)
            if progress is not None:
                progress(len(chunk))
    return facts


def find_repeats(facts: Iterable[ImageFacts]) -> list[list[int]]:
    """Find images that are the same file.

    Args:
        facts: Of `scan_images`, of one or more splits in a row.

    Returns:
        The positions of each file that occurs more than once, ascending.
    """
    places: dict[bytes, list[int]] = {}
    for index, fact in enumerate(facts):
        if fact.problem is None:
            places.setdefault(fact.digest, []).append(index)
    return [found for found in places.values() if len(found) > 1]


def content_digest(data: bytes) -> bytes:
    """Identifies a file by its content."""
    return hashlib.blake2b(data, digest_size=16).digest()


def _look(images: ImageSet, index: int) -> ImageFacts:
    digest = b''
    try:
        opened = images.open(index)
        if opened is None:
            image: Image.Image = images.base[int(images.rows[index])][0]
            seen = convert_image(image, pixel_range=_ANY_RANGE)
            return ImageFacts(seen.size, image.mode, False, content_digest(image.tobytes()), None, fingerprint(seen))
        with opened as file:
            data = file.read()
        digest = content_digest(data)
        if data.startswith(NPY):
            shape = read_array(io.BytesIO(data)).shape
            return ImageFacts(shape[1::-1], f'array {shape}', False, digest, None)
        with open_picture(io.BytesIO(data)) as found:
            mode = found.mode
            # cameras store previews as further frames of an MPO
            animated = bool(getattr(found, 'is_animated', False)) and found.format != 'MPO'
            shot = read_shot(found)
            seen = convert_image(found, pixel_range=_ANY_RANGE)
        return ImageFacts(seen.size, mode, animated, digest, None, fingerprint(seen), shot)
    except Exception as error:  # Pillow's decoders raise many types for a broken file
        return ImageFacts(None, '', False, digest, failure_reason(error))
