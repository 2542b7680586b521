"""Training images held decoded on the device and augmented there, for data sets of small images.

Where a network is small, a GPU is done with a batch before a CPU has decoded, shifted and rotated the next one.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.data.loader import PrefetchLoader
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.functional import pil_to_tensor

from ride_timm.errors import RideError

__all__ = ['CifarDraws', 'DeviceBatches', 'hold_on_device', 'warp_cifar']

_FIXED = 65536  # Pillow rotates in 16.16 fixed point
_SHARE = 0.5  # of the device's free memory that the images may take


class CifarDraws(NamedTuple):
    """What the CIFAR augmentation has drawn for N images.

    Attributes:
        top: (N,) rows of the padded image above the crop, 0 to 2 * padding.
        left: (N,) columns left of it.
        flip: (N,) whether the crop is mirrored.
        degrees: (N,) angle that it is rotated by, counter-clockwise.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    degrees: Tensor


class DeviceBatches:
    """Batches of uint8 images that never leave the device, in place of the DataLoader inside timm's `PrefetchLoader`.

    The augmentation is `cifar_train_transform`'s, pixel for pixel (Pillow's fixed-point rotation included); only the
    order of the draws differs. They come from torch's CPU generator, so that every device sees the same images.

    Args:
        loader: What it replaces; its sampler, batch size and data set are kept.
        images: All images of the data set, uint8 (N, channels, side, side).
        targets: Their classes, (N,).
        padding: As of `cifar_train_transform`.
        degrees: As of `cifar_train_transform`.
        hflip: As of `cifar_train_transform`.
    """

    num_workers = 0
    worker_init_fn: Callable[[int], None] | None = None  # there are no processes to start

    def __init__(
        self, loader: Any, images: Tensor, targets: Tensor, padding: int = 4, degrees: float = 15.0, hflip: float = 0.5
    ) -> None:
        self.sampler, self.batch_sampler = loader.sampler, loader.batch_sampler
        self.batch_size, self.drop_last = loader.batch_size, loader.drop_last
        self.dataset, self.collate_fn = loader.dataset, loader.collate_fn
        self.images, self.targets = images, targets
        self.padding, self.degrees, self.hflip = padding, degrees, hflip

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of an epoch: images uint8 (B, channels, side, side) and class indices (B,)."""
        torch.empty((), dtype=torch.int64).random_()  # DataLoader draws its processes' seed before the order of images
        batches = [list(batch) for batch in self.batch_sampler]
        drawn = self.draw(sum(map(len, batches)))
        device = self.images.device
        order = torch.tensor([index for batch in batches for index in batch]).to(device)
        warp = [part.to(device) for part in (drawn.top, drawn.left, drawn.flip, *_rotations(drawn.degrees, self.side))]
        start = 0
        for batch in batches:
            part = slice(start, start + len(batch))
            chosen = order[part]
            top, left, flip, *rotation = (values[part] for values in warp)
            images = _warped(self.images, chosen, top, left, flip, rotation, self.padding)
            target = self.targets[chosen]
            # both names outlive the yield: PrefetchLoader reads them on another stream, and this one is told to wait
            # for that only before it asks for the next batch
            yield images, target
            start += len(batch)

    @property
    def side(self) -> int:
        """Of the images, in pixels."""
        return self.images.shape[-1]

    def draw(self, count: int) -> CifarDraws:
        """Draw the augmentation of `count` images from torch's CPU generator."""
        shift = 2 * self.padding + 1
        return CifarDraws(
            torch.randint(shift, (count,)),
            torch.randint(shift, (count,)),
            torch.rand(count) < self.hflip,
            torch.empty(count, dtype=torch.float64).uniform_(-self.degrees, self.degrees),
        )


def warp_cifar(images: Tensor, drawn: CifarDraws, padding: int = 4) -> Tensor:
    """Crop the padded images, flip and rotate them, as drawn; what lies outside is black.

    Args:
        images: uint8 (N, channels, side, side), on any device.
        drawn: What to do with each.
        padding: Black pixels on every side before the crop.

    Returns:
        uint8 (N, channels, side, side), what torchvision makes of Pillow images with the same draws.
    """
    device = images.device
    rotation = [part.to(device) for part in _rotations(drawn.degrees, images.shape[-1])]
    chosen = torch.arange(len(images), device=device)
    return _warped(
        images, chosen, drawn.top.to(device), drawn.left.to(device), drawn.flip.to(device), rotation, padding
    )


def _rotations(degrees: Tensor, side: int) -> tuple[Tensor, ...]:
    """Six fixed-point numbers an image, (N,) each: where Pillow's nearest-neighbour rotation looks for a pixel."""
    angle = -np.radians(degrees.double().numpy() % 360.0)
    cos, sin = np.round(np.cos(angle), 15), np.round(np.sin(angle), 15)
    half = side / 2
    shift_x, shift_y = -half * cos - half * sin + half, half * sin - half * cos + half
    # x of the source is a x + b y + c, y of it d x + e y + f, at the middle of a pixel
    c, f = shift_x + 0.5 * cos + 0.5 * sin, shift_y - 0.5 * sin + 0.5 * cos
    return tuple(torch.from_numpy(np.floor(v * _FIXED + 0.5).astype(np.int64)) for v in (cos, sin, c, -sin, cos, f))


def _warped(
    images: Tensor, chosen: Tensor, top: Tensor, left: Tensor, flip: Tensor, rotation: list[Tensor], padding: int
) -> Tensor:
    side = images.shape[-1]
    steps = torch.arange(side, device=images.device)
    rows, columns = steps.view(1, -1, 1), steps.view(1, 1, -1)
    a, b, c, d, e, f = (value.view(-1, 1, 1) for value in rotation)
    x, y = (a * columns + b * rows + c) >> 16, (d * columns + e * rows + f) >> 16  # in the crop
    inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
    x = torch.where(flip.view(-1, 1, 1), side - 1 - x, x) + left.view(-1, 1, 1) - padding  # in the image
    y = y + top.view(-1, 1, 1) - padding
    inside &= (x >= 0) & (x < side) & (y >= 0) & (y < side)
    place = (y * side + x).where(inside, 0).flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1)
    found = images[chosen].flatten(2).gather(2, place) * inside.flatten(1).unsqueeze(1)
    return found.unflatten(2, (side, side))


def hold_on_device(
    loader: PrefetchLoader, targets: Any, size: tuple[int, int, int], interpolation: Any, **augmentation: Any
) -> PrefetchLoader:
    """Decode all images of a loader once, and let it take its batches from the device from then on.

    Args:
        loader: Of `create_train_loader`; it is changed.
        targets: (N,) class index of each image of its data set.
        size: (channels, height, width) of the images.
        interpolation: For images of another size, as of `torchvision.transforms.Resize`.
        **augmentation: `padding`, `degrees` and `hflip` of `DeviceBatches`.

    Returns:
        The loader.

    Raises:
        RideError: The images are not square, or take more than half of the device's free memory.
    """
    device, dataset = loader.device, loader.dataset
    _check_memory(len(dataset) * math.prod(size), device)
    resize = transforms.Resize(size[-1], interpolation=interpolation)
    dataset.transform = lambda image: pil_to_tensor(resize(image))
    images = torch.empty((len(dataset), *size), dtype=torch.uint8)
    for index in range(len(dataset)):
        image = dataset[index][0]
        if image.shape != size:
            shape = 'x'.join(map(str, reversed(image.shape[1:])))
            raise RideError(
                f'Image {index} has {shape} pixels, and --data-on-device takes square ones only; leave it out.'
            )
        images[index] = image
    classes = torch.as_tensor(targets, dtype=torch.int64).to(device)
    batches: Any = DeviceBatches(loader.loader, images.to(device), classes, **augmentation)
    loader.loader = batches
    return loader


def _check_memory(size: int, device: torch.device) -> None:
    if device.type != 'cuda':
        return
    free = torch.cuda.mem_get_info(device)[0]
    if size > _SHARE * free:
        raise RideError(
            f'--data-on-device would put {size / 2**30:.1f} GiB of images on {device}, which has {free / 2**30:.1f} '
            'GiB free; leave it out.'
        )
