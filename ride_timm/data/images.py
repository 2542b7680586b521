"""Reading images strictly: what cannot be read is an error that names the file, never another image."""

from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from ride_timm.data.counts import IntArray
from ride_timm.errors import RideError

__all__ = ['ImageSet', 'convert_image', 'failure_reason', 'image_mode', 'open_image']


def image_mode(in_chans: int) -> str:
    """Pillow mode for a number of input channels.

    Args:
        in_chans: 3 for colour, 1 for grey.

    Returns:
        `RGB` or `L`.

    Raises:
        RideError: For any other number of channels.
    """
    modes = {1: 'L', 3: 'RGB'}
    if in_chans not in modes:
        raise RideError(
            f'images are read with 3 channels (colour) or 1 (grey), not {in_chans}: set --in-chans to 1 or 3'
        )
    return modes[in_chans]


def convert_image(image: Image.Image, mode: str = 'RGB') -> Image.Image:
    """Decode an image and convert it to `mode`.

    Args:
        image: Image of any Pillow mode.
        mode: `RGB` or `L`.

    Returns:
        The image in that mode. 16-bit grey keeps its upper 8 bits, where Pillow alone would clip it to white.

    Raises:
        ValueError: Its pixels are floats, or integers of more than 16 bits, whose black and white nobody states.
    """
    if image.mode == 'F':
        raise ValueError('its pixels are floating-point numbers; save it with 8 or 16 bits a channel')
    if image.mode.startswith('I'):
        # 16 bits are 'I;16', but 'I' of a PGM and, in older releases of Pillow, of a PNG; elsewhere 'I' is 32 bits
        pixels = np.asarray(image)
        if image.mode == 'I' and (image.format not in ('PNG', 'PPM') or pixels.min() < 0 or pixels.max() > 65535):
            raise ValueError('its pixels are 32-bit integers; save it with 8 or 16 bits a channel')
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    elif image.mode == 'P' and 'transparency' in image.info:
        image = image.convert('RGBA')  # Pillow warns about the direct way
    return image.convert(mode)


def open_image(file: IO[bytes], mode: str = 'RGB') -> Image.Image:
    """Decode the image in an open file; training, validation and prediction all read through here.

    Args:
        file: Binary file at the image's first byte.
        mode: `RGB` or `L`.

    Returns:
        The decoded image.
    """
    with Image.open(file) as image:
        return convert_image(image, mode)


def failure_reason(error: Exception) -> str:
    """A few words on why an image could not be decoded.

    Args:
        error: What the decoder raised.

    Returns:
        The words.
    """
    if isinstance(error, UnidentifiedImageError):
        return 'not an image, or an empty file'  # Pillow's own words repeat the file object
    if isinstance(error, Image.DecompressionBombError):
        return f'more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, which Pillow refuses'
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the path, which the caller names
    return ' '.join(str(error).split()) or type(error).__name__


class ImageSet(Dataset[tuple[Any, int]]):
    """Map-style data set of (image, class index) that reads strictly and may be a subset of its source.

    timm's loaders set `transform` after construction, as they do with timm's own data sets.

    Args:
        base: A timm `ImageDataset` over a reader of files, or a torchvision data set; its own transform stays unset.
        targets: (N,) class index of each item.
        rows: (N,) row of `base` that each item reads.
        mode: Pillow mode that images are converted to.
    """

    def __init__(self, base: Any, targets: IntArray, rows: ArrayLike, mode: str = 'RGB') -> None:
        self.base = base
        self.targets = targets
        self.rows: IntArray = np.asarray(rows, dtype=np.int64)
        self.mode = mode
        self.transform: Callable[[Any], Any] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image: Any = self.load(index)
        if self.transform is not None:
            image = self.transform(image)
        return image, int(self.targets[index])

    def load(self, index: int) -> Image.Image:
        """Decode one image.

        Args:
            index: Item number.

        Returns:
            The image, converted but not transformed.

        Raises:
            RideError: If the image cannot be read; the message names the file.
        """
        try:
            return self._decode(index)
        except Exception as error:  # Pillow's decoders raise many types for a broken file
            reason = failure_reason(error)
            raise RideError(
                f'the image {self.filename(index, absolute=True)} cannot be read ({reason}): remove or replace it'
            ) from error

    def open(self, index: int) -> IO[bytes] | None:
        """Open the file behind an item.

        Args:
            index: Item number.

        Returns:
            The file at its first byte, or None in a source that has no files.
        """
        if not hasattr(self.base, 'reader'):
            return None
        # timm's own __getitem__ would put the next image in the place of one that it cannot read
        file: IO[bytes] = self.base.reader[int(self.rows[index])][0]
        return file

    def _decode(self, index: int) -> Image.Image:
        opened = self.open(index)
        if opened is None:
            return convert_image(self.base[int(self.rows[index])][0], self.mode)
        with opened as file:
            return open_image(file, self.mode)

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """Name of the file behind an item, or its row number in a source that has no files.

        Args:
            index: Item number.
            basename: Only the last part of the path.
            absolute: The whole path instead of the part below the source's folder.

        Returns:
            The name, for messages and reports.
        """
        row = int(self.rows[index])
        if hasattr(self.base, 'reader'):
            return str(self.base.filename(row, basename, absolute))
        samples = getattr(self.base, 'samples', None)
        return str(samples[row][0]) if samples is not None else f'number {row} of {type(self.base).__name__}'

    @property
    def locations(self) -> list[str] | None:
        """Path, or shard and member, or table and row, of every item; None where nothing says which images they are."""
        if hasattr(self.base, 'reader') or hasattr(self.base, 'samples'):
            return self.filenames(absolute=True)
        if not hasattr(self.base, 'root'):
            return None
        where = ', '.join(repr(self.base).split('\n    '))  # torchvision's description names folder and split
        return [f'{name} ({where})' for name in self.filenames()]

    def filenames(self, basename: bool = False, absolute: bool = False) -> list[str]:
        """Names of all items, in order; arguments as in `filename`."""
        return [self.filename(index, basename, absolute) for index in range(len(self))]

    def unreadable(self, index: int) -> str | None:
        """Reason why an item cannot be decoded.

        Args:
            index: Item number.

        Returns:
            A few words, or None for a readable image.
        """
        try:
            self._decode(index)
        except Exception as error:
            return failure_reason(error)
        return None
