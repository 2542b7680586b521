"""Reading images strictly: what cannot be read is an error that names the file, never another image."""

import functools
import io
import logging
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset

from ride_timm.data.counts import IntArray
from ride_timm.errors import RideError, reason_of

__all__ = [
    'NPY',
    'ImageSet',
    'PixelRange',
    'convert_image',
    'failure_reason',
    'image_mode',
    'image_types',
    'is_image_name',
    'measure_range',
    'open_image',
    'open_picture',
    'open_regular',
    'read_array',
    'read_pixels',
    'upright',
]

_logger = logging.getLogger(__name__)

PixelRange = tuple[int, int]
"""The 16-bit values that black and white stand for."""

_NO_PICTURES = frozenset({'BUFR', 'EPS', 'GRIB', 'HDF5', 'MPEG', 'WMF'})
"""Formats that Pillow knows and does not draw itself; EPS files would be run as programs, by Ghostscript."""

_ORIENTED_BY = ('exif', 'xmp', 'XML:com.adobe.xmp', 'Raw profile type exif')
NPY = b'\x93NUMPY'

_SAMPLED = 1000  # images that the range is measured on
_PERCENTILES = (0.1, 99.9)  # a hot pixel must not darken all others


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    # in this order Pillow tries them
    return tuple(dict.fromkeys(('JPEG', 'PNG', *(name for name in Image.ID if name not in _NO_PICTURES))))


@functools.cache
def image_types() -> tuple[str, ...]:
    """Suffixes of pictures: of all that Pillow, with its plugins, draws; `.jpg` first."""
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in _formats()}
    usual = ('.jpg', '.jpeg', '.png', '.tif', '.tiff', '.webp', '.bmp', '.gif', '.ppm', '.pgm')
    return (*usual, *sorted(suffixes.difference(usual)))


def is_image_name(text: str) -> bool:
    """Whether a text ends as the name of a picture does."""
    return text.strip().lower().endswith(image_types())


def image_mode(in_chans: int) -> str | int:
    """How images are read for a number of input channels.

    Args:
        in_chans: 3 for colour, 1 for grey, any other number for images that have just these channels.

    Returns:
        `RGB` or `L`, Pillow's modes, or the number itself.
    """
    return {1: 'L', 3: 'RGB'}.get(in_chans, in_chans)


def convert_image(image: Image.Image, mode: str = 'RGB', pixel_range: PixelRange | None = None) -> Image.Image:
    """Decode an image as a viewer shows it, and convert it to `mode`.

    The image is turned as its EXIF data say, and lies on white where it is transparent.

    Args:
        image: Image of any Pillow mode.
        mode: `RGB` or `L`.
        pixel_range: What black and white are in images of 16 bits; None: 0 and 65535, of which the upper byte is kept.

    Returns:
        The image in that mode, with 8 bits a channel.

    Raises:
        ValueError: Its pixels are floats, or integers of more than 16 bits, whose black and white nobody states.
    """
    image = upright(image)
    if image.mode == 'F':
        raise ValueError('its pixels are floating-point numbers; save it with 8 or 16 bits a channel')
    if _is_deep(image):
        image = Image.fromarray(_eight_bits(_deep_pixels(image), pixel_range))
    elif image.has_transparency_data:
        white = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(white, image.convert('RGBA'))
    return image.convert(mode)


def upright(image: Image.Image) -> Image.Image:
    """Decode an image, turned as its EXIF data say."""
    image.load()  # PNG files may have their EXIF data at the end
    if image.format in ('JPEG', 'PNG') and not any(key in image.info for key in _ORIENTED_BY):
        return image  # which getexif would find out in more time than decoding a small image takes
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # viewers show a picture whose EXIF data are damaged, too
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith('I')


def _deep_pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    # 16 bits are 'I;16', but 'I' of a PGM and, in older releases of Pillow, of a PNG; elsewhere 'I' is 32 bits
    pixels = np.asarray(image)
    if image.mode == 'I' and (image.format not in ('PNG', 'PPM') or pixels.min() < 0 or pixels.max() > 65535):
        raise ValueError('its pixels are 32-bit integers; save it with 8 or 16 bits a channel')
    return pixels


def _eight_bits(pixels: np.ndarray[Any, Any], pixel_range: PixelRange | None) -> np.ndarray[Any, Any]:
    if pixel_range is None:
        _tell_full_range()
        return (pixels >> 8).astype(np.uint8)
    low, high = pixel_range
    scaled = (pixels.astype(np.float32) - low) * (255 / (high - low))
    return scaled.round().clip(0, 255).astype(np.uint8)


@functools.cache
def _tell_full_range() -> None:
    _logger.warning(
        'Images of 16 bits are read with 0 as black and 65535 as white, since no range of their data set is stored'
    )


def measure_range(images: 'ImageSet') -> PixelRange | None:
    """The range of the 16-bit images of a data set, whose values seldom fill 16 bits.

    Args:
        images: The training images; an even sample of 1,000 is looked at.

    Returns:
        The 0.1st and the 99.9th percentile of the pixels; None where no image of the sample has 16 bits.
    """
    total = np.zeros(65536, dtype=np.int64)
    step = max(len(images) // _SAMPLED, 1)
    for index in range(0, len(images), step):
        total += images.histogram(index)
    if not total.any():
        return None
    shares = total.cumsum() * (100 / total.sum())
    low, high = (int(np.searchsorted(shares, percentile)) for percentile in _PERCENTILES)
    return low, max(high, low + 1)


def open_image(
    file: IO[bytes], mode: str | int = 'RGB', pixel_range: PixelRange | None = None
) -> Image.Image | torch.Tensor:
    """Decode the image in an open file; training, validation and prediction all read through here.

    Args:
        file: Binary file at the image's first byte; seekable.
        mode: Of `image_mode`.
        pixel_range: As in `convert_image`.

    Returns:
        The decoded image; for a number of channels a uint8 tensor (channels, H, W).

    Raises:
        ValueError: It has other channels, or a type of pixels that is not read.
    """
    start = file.read(len(NPY))
    file.seek(-len(start), os.SEEK_CUR)
    if start == NPY:
        array = read_array(file)
        return _bands(array, mode, pixel_range) if isinstance(mode, int) else _picture(array, mode, pixel_range)
    try:
        with open_picture(file) as image:
            return read_pixels(image, mode, pixel_range)
    except UnidentifiedImageError:
        if start[:4] in (b'II*\0', b'MM\0*'):
            raise ValueError('Pillow does not read TIFF files of such channels; save the array as .npy') from None
        raise


def open_picture(file: IO[bytes]) -> Image.Image:
    """Open a picture with Pillow, of the formats that it draws itself; its pixels are not decoded yet.

    Args:
        file: Binary file at the picture's first byte.

    Raises:
        UnidentifiedImageError: It is none of these.
    """
    return Image.open(file, formats=_formats())


def read_pixels(
    image: Image.Image, mode: str | int, pixel_range: PixelRange | None = None
) -> Image.Image | torch.Tensor:
    """As `open_image`, of an image that Pillow has opened; transparency is a channel like others if all are read."""
    if isinstance(mode, str):
        return convert_image(image, mode, pixel_range)
    return _bands(np.atleast_3d(np.asarray(upright(image))), mode, pixel_range)


def read_array(file: IO[bytes]) -> np.ndarray[Any, Any]:
    """An array of a `.npy` file; its header's size is compared with the file's before anything is made of it."""
    data = io.BytesIO(file.read())
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(data)
    if version not in read_header:
        raise ValueError(f'it is a .npy file of version {version}; save it with numpy.save')
    shape, fortran, dtype = read_header[version](data)
    if dtype not in (np.uint8, np.uint16):
        raise ValueError(f'its values are {dtype}; save it as uint8 or uint16')
    content = data.read()
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f'its {len(content)} bytes do not match its shape {shape}; save it again')
    return np.frombuffer(content, dtype).reshape(shape, order='F' if fortran else 'C')


def _bands(array: np.ndarray[Any, Any], channels: int, pixel_range: PixelRange | None) -> torch.Tensor:
    """A uint8 tensor (channels, H, W) of an array (H, W, channels) or (channels, H, W)."""
    if array.ndim == 3 and array.shape[2] == channels:
        array = array.transpose(2, 0, 1)
    elif array.ndim != 3 or array.shape[0] != channels:
        raise ValueError(
            f'its shape is {array.shape} and {channels} channels are read; give their number with --in-chans'
        )
    if array.dtype != np.uint8:
        array = _eight_bits(array, pixel_range)
    return torch.from_numpy(array.copy())


def _picture(array: np.ndarray[Any, Any], mode: str, pixel_range: PixelRange | None) -> Image.Image:
    """An array (H, W), (H, W, 1 or 3) or (1 or 3, H, W) as a picture."""
    channels = next((count for count in (3, 1) if array.ndim == 3 and count in (array.shape[0], array.shape[2])), 1)
    pixels = _bands(array if array.ndim == 3 else array[..., None], channels, pixel_range).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels if channels == 3 else pixels[..., 0]).convert(mode)


def open_regular(path: str | Path) -> IO[bytes]:
    """Open a file that is one, also behind links: a pipe would keep a reader waiting, and a device never end.

    Raises:
        OSError: It is something else, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError('it is not a regular file')
        return os.fdopen(descriptor, 'rb')
    except BaseException:
        os.close(descriptor)
        raise


def failure_reason(error: Exception) -> str:
    """A few words on why an image could not be decoded.

    Returns:
        The words.
    """
    if isinstance(error, UnidentifiedImageError):
        return 'not an image, or an empty file'  # Pillow's own words repeat the file object
    if isinstance(error, Image.DecompressionBombError):
        return f'more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, which Pillow refuses'
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the path, which the caller names
    return reason_of(error)


def _histogram(image: Image.Image) -> IntArray:
    pixels = _deep_pixels(image).ravel() if _is_deep(image) else np.zeros(0, dtype=np.int64)
    return np.bincount(pixels, minlength=65536)


class ImageSet(Dataset[tuple[Any, int]]):
    """Map-style data set of (image, class index) that reads strictly and may be a subset of its source.

    timm's loaders set `transform` after construction, as they do with timm's own data sets.

    Args:
        base: A timm `ImageDataset` over a reader of files, or a torchvision data set; its own transform stays unset.
        targets: (N,) class index of each item.
        rows: (N,) row of `base` that each item reads.
        mode: Of `image_mode`.
        pixel_range: As in `convert_image`; it may be set later.
    """

    def __init__(
        self,
        base: Any,
        targets: IntArray,
        rows: ArrayLike,
        mode: str | int = 'RGB',
        pixel_range: PixelRange | None = None,
    ) -> None:
        self.base = base
        self.targets = targets
        self.rows: IntArray = np.asarray(rows, dtype=np.int64)
        self.mode = mode
        self.pixel_range = pixel_range
        self.transform: Callable[[Any], Any] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image: Any = self.load(index)
        if self.transform is not None:
            image = self.transform(image)
        return image, int(self.targets[index])

    def load(self, index: int) -> Image.Image | torch.Tensor:
        """Decode one image.

        Args:
            index: Item number.

        Returns:
            The image as of `open_image`, not transformed.

        Raises:
            RideError: If the image cannot be read; the message names the file.
        """
        try:
            return self._decode(index)
        except Exception as error:  # Pillow's decoders raise many types for a broken file
            reason = failure_reason(error)
            raise RideError(
                f'The image {self.filename(index, absolute=True)} cannot be read ({reason}); remove or replace it.'
            ) from error

    def open(self, index: int) -> IO[bytes] | None:
        """Open the file behind an item.

        Returns:
            The file at its first byte, or None in a source that has no files.
        """
        if not hasattr(self.base, 'reader'):
            return None
        # timm's own __getitem__ would put the next image in the place of one that it cannot read
        file: IO[bytes] = self.base.reader[int(self.rows[index])][0]
        return file

    def _decode(self, index: int) -> Image.Image | torch.Tensor:
        opened = self.open(index)
        if opened is None:
            return read_pixels(self.base[int(self.rows[index])][0], self.mode, self.pixel_range)
        with opened as file:
            return open_image(file, self.mode, self.pixel_range)

    def histogram(self, index: int) -> IntArray:
        """How often each 16-bit value occurs in an item, (65536,); all zero for other images and broken ones."""
        none = np.zeros(65536, dtype=np.int64)
        try:
            opened = self.open(index)
            if opened is None:
                return _histogram(self.base[int(self.rows[index])][0])
            with opened as file:
                if file.read(len(NPY)) == NPY:
                    file.seek(0)
                    array = read_array(file)
                    return np.bincount(array.ravel(), minlength=65536) if array.dtype == np.uint16 else none
                file.seek(0)
                with open_picture(file) as image:
                    return _histogram(image)
        except Exception:  # reading it as an image has the sentence
            return none

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

    @property
    def groups(self) -> tuple[str, ...] | None:
        """What each item belongs to (a place, a patient), by itself if nothing is known of it; None if of none is."""
        known = getattr(getattr(self.base, 'reader', None), 'groups', None)
        if known is None:
            return None
        return tuple(known[row] or self.filename(index) for index, row in enumerate(self.rows.tolist()))

    def filenames(self, basename: bool = False, absolute: bool = False) -> list[str]:
        """Names of all items, in order; arguments as in `filename`."""
        return [self.filename(index, basename, absolute) for index in range(len(self))]

    def unreadable(self, index: int) -> str | None:
        """Reason why an item cannot be decoded.

        Returns:
            A few words, or None for a readable image.
        """
        try:
            self._decode(index)
        except Exception as error:
            return failure_reason(error)
        return None
