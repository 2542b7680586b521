"""Training images held decoded on the device and augmented there, for data sets of small images.

Where a network is small, a GPU is done with a batch before a CPU has decoded and augmented the next one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from timm.data.loader import PrefetchLoader
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from ride_timm._compat import get_batches, set_batches
from ride_timm.errors import RideError

__all__ = ['DeviceAugmentation', 'DeviceBatches', 'hold_on_device']

_AT_ONCE = 2**22  # bytes of images
_SHARE = 0.5  # of the device's free memory that the images may take


class DeviceAugmentation(Protocol):
    """An augmentation of whole batches.

    The draws come from torch's CPU generator, so that every device sees the same images.

    Attributes:
        before: What is done to a Pillow image once, before it is kept; None for nothing.
    """

    before: Callable[[Any], Any] | None

    def draw(self, count: int) -> Any:
        """Draw for `count` images."""

    def prepare(self, drawn: Any) -> Sequence[Tensor]:
        """Tensors (N, ...) for `apply`, made of the draws."""

    def apply(self, images: Tensor, *prepared: Tensor) -> Tensor:
        """Augmented images uint8 (N, channels, H, W) of images as they are kept."""


class DeviceBatches:
    """Batches of uint8 images that never leave the device, in place of the DataLoader inside timm's `PrefetchLoader`.

    The images come in the order that the DataLoader would have them in.

    Args:
        loader: What it replaces; its sampler, batch size and data set are kept.
        images: All images of the data set, uint8 (N, channels, H, W).
        targets: Their classes, (N,).
        augmentation: What is done to a batch.
    """

    num_workers = 0
    worker_init_fn: Callable[[int], None] | None = None  # there are no processes to start

    def __init__(self, loader: Any, images: Tensor, targets: Tensor, augmentation: DeviceAugmentation) -> None:
        self.sampler, self.batch_sampler = loader.sampler, loader.batch_sampler
        self.batch_size, self.drop_last = loader.batch_size, loader.drop_last
        self.dataset, self.collate_fn = loader.dataset, loader.collate_fn
        self.images, self.targets, self.augmentation = images, targets, augmentation

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of an epoch: images uint8 (B, channels, H, W) and class indices (B,)."""
        torch.empty((), dtype=torch.int64).random_()  # DataLoader draws its processes' seed before the order of images
        batches = [list(batch) for batch in self.batch_sampler]
        order = torch.tensor([index for batch in batches for index in batch])
        prepared = self.augmentation.prepare(self.augmentation.draw(len(order)))
        order, *prepared = (values.to(self.images.device) for values in (order, *prepared))
        start = 0
        at_once = _at_once(self.images.device, self.images[0].numel() * (self.batch_size or 1))
        for first in range(0, len(batches), at_once):
            several = batches[first : first + at_once]
            part = slice(start, start + sum(map(len, several)))
            images = self.augmentation.apply(self.images[order[part]], *(values[part] for values in prepared))
            targets = self.targets[order[part]]
            sizes = [len(batch) for batch in several]
            # these names outlive the yields: PrefetchLoader reads them on another stream, and this one is told to wait
            # for that only before it asks for the next batch
            yield from zip(images.split(sizes), targets.split(sizes), strict=True)
            start = part.stop


def _at_once(device: torch.device, size: int) -> int:
    """Batches of `size` bytes to augment at once: a GPU is slower to ask than to compute, a CPU fastest with one."""
    return 1 if device.type == 'cpu' else max(1, _AT_ONCE // size)


def hold_on_device(
    loader: PrefetchLoader, targets: Any, create: Callable[[tuple[int, int]], DeviceAugmentation]
) -> PrefetchLoader:
    """Decode all images of a loader once, and let it take its batches from the device from then on.

    Args:
        loader: Of `create_train_loader`; it is changed.
        targets: (N,) class index of each image of its data set.
        create: Makes the augmentation for images of a (height, width).

    Returns:
        The loader.

    Raises:
        RideError: The images differ in size, or take more than half of the device's free memory.
    """
    device, dataset = loader.device, loader.dataset
    dataset.transform = pil_to_tensor
    first = dataset[0][0]
    augmentation = create((first.shape[1], first.shape[2]))
    before = augmentation.before
    if before is not None:
        dataset.transform = lambda image: pil_to_tensor(before(image))
        first = dataset[0][0]
    _check_memory(len(dataset) * math.prod(first.shape), device)
    images = torch.empty((len(dataset), *first.shape), dtype=torch.uint8)
    for index in range(len(dataset)):
        image = dataset[index][0]
        if image.shape != first.shape:
            found, wanted = ('x'.join(map(str, reversed(each.shape[1:]))) for each in (image, first))
            raise RideError(
                f'Image {index} has {found} pixels and the first {wanted}, and --data-on-device takes images of one '
                'size; leave it out.'
            )
        images[index] = image
    classes = torch.as_tensor(targets, dtype=torch.int64).to(device)
    batches: Any = DeviceBatches(get_batches(loader), images.to(device), classes, augmentation)
    set_batches(loader, batches)
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
