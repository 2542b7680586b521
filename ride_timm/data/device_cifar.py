"""`cifar_train_transform` for a batch on its device: padded crop, flip and rotation, pixel for pixel as Pillow's."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision import transforms

__all__ = ['CifarAugmentation', 'CifarDraws', 'fixed_point', 'pick_pixels', 'rotations', 'source_pixels']

_FIXED = 65536  # Pillow rotates in 16.16 fixed point


class CifarDraws(NamedTuple):
    """What is drawn for N images.

    Attributes:
        top: (N,) rows of the padded image above the crop, 0 to 2 * padding for images of the crop's size.
        left: (N,) columns left of it.
        flip: (N,) whether the crop is mirrored.
        degrees: (N,) angle that it is rotated by, counter-clockwise.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    degrees: Tensor


class CifarAugmentation:
    """Crop the padded images, flip and rotate them, all at once since every step takes the nearest pixel.

    Source: as of `cifar_train_transform`; the rotation is that of Pillow, in its fixed-point numbers.

    Args:
        size: As of `cifar_train_transform`, like the other arguments.
        padding: See there.
        degrees: See there.
        hflip: See there.
        interpolation: See there.
        shape: (height, width) of the images; those of `size` by default.
    """

    def __init__(
        self,
        size: int = 32,
        padding: int = 4,
        degrees: float = 15.0,
        hflip: float = 0.5,
        interpolation: str = 'bilinear',
        shape: tuple[int, int] | None = None,
    ) -> None:
        self.size, self.padding, self.degrees, self.hflip = size, padding, degrees, hflip
        self.before: Callable[[Any], Any] | None = transforms.Resize(
            size, interpolation=str_to_interp_mode(interpolation)
        )
        height, width = shape or (size, size)
        short = min(height, width)
        # (height, width) as `before` leaves them: the longer side is cut, not rounded, to whole pixels
        self.kept = tuple(size if side == short else int(size * side / short) for side in (height, width))

    def draw(self, count: int) -> CifarDraws:
        """Draw for `count` images, from torch's CPU generator."""
        rows, columns = (side + 2 * self.padding - self.size + 1 for side in self.kept)
        return CifarDraws(
            torch.randint(rows, (count,)),
            torch.randint(columns, (count,)),
            torch.rand(count) < self.hflip,
            torch.empty(count, dtype=torch.float64).uniform_(-self.degrees, self.degrees),
        )

    def prepare(self, drawn: Any) -> tuple[Tensor, ...]:
        """What `apply` takes, (N,) each: on the CPU, since the angles' sines must not depend on the device."""
        return (drawn.top, drawn.left, drawn.flip, *rotations(drawn.degrees, self.size))

    def apply(self, images: Tensor, *prepared: Tensor) -> Tensor:
        """Augmented images, uint8 (N, channels, size, size), of (N, channels, H, W); what lies outside is black."""
        top, left, flip, *rotation = prepared
        side = self.size
        x, y = source_pixels(rotation, side)  # in the crop
        inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
        x = torch.where(flip.view(-1, 1, 1), side - 1 - x, x) + left.view(-1, 1, 1) - self.padding  # in the image
        y = y + top.view(-1, 1, 1) - self.padding
        return pick_pixels(images, x, y, inside)


def source_pixels(matrix: Sequence[Tensor], side: int) -> tuple[Tensor, Tensor]:
    """Where the pixels of a moved image come from, to the nearest pixel.

    Args:
        matrix: a to f in fixed point, (N,) each: column a x + b y + c and row d x + e y + f of the source of (x, y).
        side: Height and width of the moved image.

    Returns:
        Columns and rows, int64 (N, side, side) each, also outside of the source.
    """
    a, b, c, d, e, f = (value.view(-1, 1, 1) for value in matrix)
    steps = torch.arange(side, device=a.device)
    rows, columns = steps.view(1, -1, 1), steps.view(1, 1, -1)
    return (a * columns + b * rows + c) >> 16, (d * columns + e * rows + f) >> 16


def pick_pixels(images: Tensor, x: Tensor, y: Tensor, valid: Tensor | None = None) -> Tensor:
    """Take pixels by column and row; black where there are none.

    Args:
        images: uint8 (N, channels, H, W).
        x: Columns, int64 (N, height, width).
        y: Rows, int64 (N, height, width).
        valid: (N, height, width) where to take one at all; None is everywhere.

    Returns:
        uint8 (N, channels, height, width).
    """
    height, width = images.shape[-2:]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    if valid is not None:
        inside &= valid
    place = (y * width + x).where(inside, 0).flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1)
    found = images.flatten(2).gather(2, place) * inside.flatten(1).unsqueeze(1)
    return found.unflatten(2, x.shape[1:])


def fixed_point(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Tensor:
    """An affine map as Pillow rounds it.

    Args:
        a: Of x in the column a x + b y + c of the source, number or array (N,) like the others.
        b: Of y there.
        c: The rest of it.
        d: Of x in the row d x + e y + f of the source.
        e: Of y there.
        f: The rest of it.

    Returns:
        int64 (6,) or (6, N), for the middles of the pixels.
    """
    values = np.array((a, b, c + 0.5 * a + 0.5 * b, d, e, f + 0.5 * d + 0.5 * e), dtype=np.float64)
    return torch.from_numpy(np.floor(values * _FIXED + 0.5).astype(np.int64))


def rotations(degrees: Tensor, side: int) -> tuple[Tensor, ...]:
    """Six fixed-point numbers an image, (N,) each: where Pillow's nearest-neighbour rotation looks for a pixel.

    Args:
        degrees: (N,) counter-clockwise.
        side: Height and width of the images.
    """
    angle = -np.radians(degrees.double().numpy() % 360.0)
    cos, sin = np.round(np.cos(angle), 15), np.round(np.sin(angle), 15)
    half = side / 2
    shift_x, shift_y = -half * cos - half * sin + half, half * sin - half * cos + half
    return fixed_point(cos, sin, shift_x, -sin, cos, shift_y).unbind(0)
