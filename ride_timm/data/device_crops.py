"""timm's training transform for a batch on its device: resized crops, flips, colour jitter, as Pillow computes them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ride_timm.errors import RideError

__all__ = ['CropAugmentation', 'CropDraws', 'blend', 'grey_levels', 'jitter_colours', 'mean_grey', 'resize_crops']

_ATTEMPTS = 10  # of timm at a crop that fits
_BITS = 22  # Pillow weighs pixels in fixed point with so many
_LUMA = (19595, 38470, 7471)  # Pillow's grey of red, green and blue, in 65536ths


class CropDraws(NamedTuple):
    """What is drawn for N images.

    Attributes:
        top: (N,) rows above the crop.
        left: (N,) columns left of it.
        height: (N,) its rows.
        width: (N,) its columns.
        hflip: (N,) whether it is mirrored.
        vflip: (N,) whether it is turned upside down.
        factors: (N, 3) of brightness, contrast and saturation.
        order: (N, 3) in which order these three come.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    hflip: Tensor
    vflip: Tensor
    factors: Tensor
    order: Tensor


class CropAugmentation:
    """Resized crops, flips and colour jitter of images that all have one size.

    Source: `timm.data.create_transform` for training, with bilinear interpolation; Pillow's resampling, grey levels and
    blending in its own fixed-point and float32 numbers, so that the pixels are the same.

    Args:
        stored: (height, width) of the images as they come.
        size: (height, width) of what is made of them.
        scale: Share of the image's area that a crop takes, lowest and highest.
        ratio: Its width over its height, lowest and highest.
        hflip: Probability of mirroring.
        vflip: Probability of turning upside down.
        color_jitter: Strength of brightness, contrast and saturation, or one for all three; a fourth, of the hue, must
            be 0.

    Raises:
        RideError: The hue is to be changed.
    """

    before: Callable[[Any], Any] | None = None  # images are kept as they come

    def __init__(
        self,
        stored: tuple[int, int],
        size: tuple[int, int],
        scale: Any = None,
        ratio: Any = None,
        hflip: float = 0.5,
        vflip: float = 0.0,
        color_jitter: Any = 0.4,
    ) -> None:
        self.stored, self.size = stored, size
        self.scale, self.ratio = tuple(scale or (0.08, 1.0)), tuple(ratio or (3 / 4, 4 / 3))
        self.hflip, self.vflip = hflip, vflip
        strengths = tuple(color_jitter) if isinstance(color_jitter, (list, tuple)) else (color_jitter or 0.0,) * 3
        if len(strengths) > 3 and strengths[3]:
            raise RideError('--data-on-device leaves the hue as it is; give --color-jitter three numbers.')
        self.jitter = torch.tensor(strengths[:3])

    def draw(self, count: int) -> CropDraws:
        """Draw for `count` images, from torch's CPU generator."""
        height, width = self.stored
        shape = (_ATTEMPTS, count)
        area = torch.empty(shape, dtype=torch.float64).uniform_(*self.scale) * (height * width)
        aspect = torch.empty(shape, dtype=torch.float64).uniform_(*map(math.log, self.ratio)).exp()
        widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (widths <= width) & (heights <= height)
        first = fits.to(torch.uint8).argmax(0, keepdim=True)  # the first that fits
        w, h = (values.gather(0, first)[0].long() for values in (widths, heights))
        none = ~fits.any(0)
        whole_h, whole_w = self._fallback()
        w, h = w.masked_fill(none, whole_w), h.masked_fill(none, whole_h)
        top = (torch.rand(count, dtype=torch.float64) * (height - h + 1)).long()
        left = (torch.rand(count, dtype=torch.float64) * (width - w + 1)).long()
        top = torch.where(none, (height - h) // 2, top)
        left = torch.where(none, (width - w) // 2, left)
        low = (1 - self.jitter).clamp(min=0.0)
        factors = low + (1 + self.jitter - low) * torch.rand(count, 3)
        order = torch.rand(count, 3).argsort(1)
        return CropDraws(
            top, left, h, w, torch.rand(count) < self.hflip, torch.rand(count) < self.vflip, factors, order
        )

    def _fallback(self) -> tuple[int, int]:
        """(height, width) of the crop where no attempt fits: the most of the middle that the ratio allows."""
        height, width = self.stored
        if width / height < min(self.ratio):
            return round(width / min(self.ratio)), width
        if width / height > max(self.ratio):
            return height, round(height * max(self.ratio))
        return height, width

    def prepare(self, drawn: Any) -> tuple[Tensor, ...]:
        """What `apply` takes: the draws."""
        return tuple(drawn)

    def apply(self, images: Tensor, *prepared: Tensor) -> Tensor:
        """Augmented images, uint8 (N, channels, *size), of images (N, channels, *stored)."""
        top, left, height, width, hflip, vflip, factors, order = prepared
        images = resize_crops(images, top, left, height, width, self.size)
        images = torch.where(hflip.view(-1, 1, 1, 1), images.flip(-1), images)
        if self.vflip:
            images = torch.where(vflip.view(-1, 1, 1, 1), images.flip(-2), images)
        return jitter_colours(images, factors, order) if bool(self.jitter.any()) else images


def resize_crops(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: tuple[int, int]
) -> Tensor:
    """Cut a rectangle out of each image and resize it, bilinear and antialiased as Pillow does it.

    Args:
        images: uint8 (N, channels, H, W).
        top: (N,) as the other three: the rectangle in pixels.
        left: See above.
        height: See above.
        width: See above.
        size: (height, width) of the result.

    Returns:
        uint8 (N, channels, *size).
    """
    taps_x, taps_y = (
        2 * math.ceil(max(1.0, side / wanted)) + 1 for side, wanted in zip(images.shape[:1:-1], size[::-1], strict=True)
    )
    for axis, start, extent, taps in ((-1, left, width, taps_x), (-2, top, height, taps_y)):
        images = _resample(images, axis, start, extent, size[axis], taps)
    return images


def _resample(images: Tensor, axis: int, start: Tensor, extent: Tensor, size: int, taps: int) -> Tensor:
    """One of Pillow's two passes: along the columns (axis -1) or the rows (-2); rounds to whole grey levels."""
    steps = torch.arange(size, device=images.device, dtype=torch.float64)
    inside = extent.double().unsqueeze(1)
    scale = inside / size
    support = scale.clamp(min=1.0)
    center = (steps + 0.5) * scale
    low = (center - support + 0.5).clamp(min=0.0).floor()
    high = torch.minimum((center + support + 0.5).floor(), inside)
    weights, total = [], torch.zeros_like(center)
    for tap in range(taps):
        place = low + tap
        weight = (1.0 - ((place - center + 0.5) * (1.0 / support)).abs()).clamp(min=0.0) * (place < high)
        weights.append(weight)
        total = total + weight
    result = torch.full((), 1 << (_BITS - 1), dtype=torch.int32, device=images.device)
    last = images.shape[axis] - 1
    shape = (len(images), 1, 1, size) if axis == -1 else (len(images), 1, size, 1)
    wide = [*images.shape]
    wide[axis] = size
    for tap, weight in enumerate(weights):
        fixed = (weight / total * (1 << _BITS) + 0.5).int().view(shape)
        place = (start.unsqueeze(1) + low.long() + tap).clamp(max=last).view(shape).expand(wide)
        result = result + images.gather(axis, place).int() * fixed
    return (result >> _BITS).clamp(0, 255).to(torch.uint8)


def jitter_colours(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Change brightness, contrast and saturation, as torchvision does with Pillow images.

    Args:
        images: uint8 (N, channels, H, W).
        factors: (N, 3) of brightness, contrast and saturation; 1 changes nothing.
        order: (N, 3) in which order they come.

    Returns:
        uint8 (N, channels, H, W).
    """
    for step in range(3):
        what = order[:, step].view(-1, 1, 1, 1)
        grey = grey_levels(images)
        target = torch.where(what == 0, 0, torch.where(what == 1, mean_grey(grey), grey))
        images = blend(target, images, factors.gather(1, order[:, step : step + 1]))
    return images


def blend(target: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Move images away from another image, or towards it.

    Args:
        target: Where a factor of 0 leads, grey levels (N, channels, H, W) or what broadcasts to it.
        images: uint8 (N, channels, H, W).
        factor: (N,) or (N, 1); 1 changes nothing.

    Returns:
        uint8 (N, channels, H, W).
    """
    start = target.float()
    return (start + factor.float().view(-1, 1, 1, 1) * (images.float() - start)).clamp(0.0, 255.0).to(torch.uint8)


def mean_grey(grey: Tensor) -> Tensor:
    """The mean of grey levels (N, 1, H, W), rounded, int32 (N, 1, 1, 1)."""
    return (grey.flatten(1).sum(1).double() / grey[0].numel() + 0.5).floor().int().view(-1, 1, 1, 1)


def grey_levels(images: Tensor) -> Tensor:
    """Grey levels, int32 (N, 1, H, W).

    Args:
        images: uint8 (N, channels, H, W) of 1 or 3 channels.
    """
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = (images[:, i : i + 1].int() * _LUMA[i] for i in range(3))
    return (red + green + blue + 0x8000) >> 16
