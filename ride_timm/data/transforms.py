"""Training augmentation by name: timm's own, or the ones of the CIFAR long-tail papers."""

from collections.abc import Callable
from typing import Any

import torch
from timm.data import create_transform
from timm.data.transforms import MaybePILToTensor, str_to_interp_mode
from torchvision import transforms

from ride_timm.errors import RideError
from ride_timm.options import AUGMENTATIONS

__all__ = [
    'AUGMENTATIONS', 'Cutout', 'cifar_aa_train_transform', 'cifar_train_transform', 'create_train_transform',
    'flip_train_transform',
]  # fmt: skip


class Cutout:
    """Blacken a square whose centre is any pixel, so that at the border less of it is inside the image.

    torchvision's RandomErasing keeps the whole square inside, which blackens more.

    Source: arXiv:1708.04552, section 3; before normalisation, as the long-tail papers apply it.

    Args:
        size: Side of the square in pixels.
    """

    def __init__(self, size: int = 16) -> None:
        self.size = size

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """A copy of `image` (channels, H, W) with the square set to 0."""
        top, left = (int(torch.randint(side, ())) - self.size // 2 for side in image.shape[-2:])
        image = image.clone()
        image[..., max(top, 0) : top + self.size, max(left, 0) : left + self.size] = 0
        return image


def cifar_train_transform(
    size: int = 32,
    padding: int = 4,
    degrees: float = 15.0,
    hflip: float = 0.5,
    interpolation: str = 'bilinear',
) -> Callable[[Any], Any]:
    """Augmentation of the CIFAR-LT experiments in RIDE (arXiv:2010.01809): padded crop, flip, small rotation.

    Args:
        size: Side of the square crop, in pixels. Images of another size are first resized to it by their shorter side.
        padding: Black pixels added on every side before the crop.
        degrees: Rotation is drawn from [-degrees, degrees]; nearest neighbour, corners black.
        hflip: Probability of a horizontal flip.
        interpolation: timm's name of the interpolation for the resize.

    Returns:
        A transform from a Pillow image to a uint8 tensor (channels, size, size); timm's `PrefetchLoader` normalises.
    """
    steps = [
        transforms.Resize(size, interpolation=str_to_interp_mode(interpolation)),  # does nothing to images of that size
        transforms.RandomCrop(size, padding=padding),
        transforms.RandomHorizontalFlip(hflip),
        transforms.RandomRotation(degrees, interpolation=transforms.InterpolationMode.NEAREST, fill=0),
        MaybePILToTensor(),
    ]
    compose: Callable[[Any], Any] = transforms.Compose(steps)
    return compose


def cifar_aa_train_transform(
    size: int = 32,
    padding: int = 4,
    hflip: float = 0.5,
    cutout: int = 16,
    interpolation: str = 'bilinear',
) -> Callable[[Any], Any]:
    """Strong augmentation of later CIFAR-LT experiments: padded crop, flip, CIFAR AutoAugment, Cutout; no rotation.

    Source: AutoAugment, arXiv:1805.09501, its CIFAR-10 policy in torchvision's implementation; Cutout,
    arXiv:1708.04552; together as in Balanced Meta-Softmax (arXiv:2007.10740) and SHIKE (arXiv:2304.01279).

    Args:
        size: As in `cifar_train_transform`.
        padding: As in `cifar_train_transform`.
        hflip: Probability of a horizontal flip.
        cutout: Side of the blackened square in pixels.
        interpolation: timm's name of the interpolation for the resize.

    Returns:
        A transform from a Pillow image to a uint8 tensor (channels, size, size); timm's `PrefetchLoader` normalises.
    """
    steps = [
        transforms.Resize(size, interpolation=str_to_interp_mode(interpolation)),
        transforms.RandomCrop(size, padding=padding),
        transforms.RandomHorizontalFlip(hflip),
        transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10),
        transforms.PILToTensor(),
        Cutout(cutout),
    ]
    compose: Callable[[Any], Any] = transforms.Compose(steps)
    return compose


def flip_train_transform(
    size: int | tuple[int, int] | tuple[int, int, int],
    hflip: float = 0.5,
    interpolation: str = 'bilinear',
    **kwargs: Any,
) -> Callable[[Any], Any]:
    """Images as they are evaluated, some of them mirrored: what a frozen trunk sees has two forms at most.

    Args:
        size: Image side, (height, width) or (channels, height, width).
        hflip: Probability of a horizontal flip.
        interpolation: timm's name of the interpolation for the resize.
        **kwargs: `crop_pct` and `crop_mode` of `timm.data.create_transform`.

    Returns:
        A transform from a Pillow image to a uint8 tensor (channels, height, width).
    """
    evaluated: Any = create_transform(size, use_prefetcher=True, interpolation=interpolation, **kwargs)
    flips = [transforms.RandomHorizontalFlip(hflip)] if hflip else []  # of 0 it draws a random number too
    compose: Callable[[Any], Any] = transforms.Compose([evaluated, *flips])
    return compose


def create_train_transform(
    augmentation: str, input_size: int | tuple[int, int] | tuple[int, int, int] = 224, **kwargs: Any
) -> Callable[[Any], Any]:
    """Training transform by name, for a loader whose normalisation happens in timm's `PrefetchLoader`.

    Args:
        augmentation: `timm`, `cifar`, `cifar_aa` or `flip`.
        input_size: Image side, (height, width) or (channels, height, width).
        **kwargs: Arguments of `timm.data.create_transform`, `cifar_train_transform`,
            `cifar_aa_train_transform` or `flip_train_transform`.

    Returns:
        A transform from a Pillow image to a uint8 tensor.

    Raises:
        RideError: If the name is unknown, or the crop of a CIFAR augmentation would not be square.
    """
    if augmentation == 'timm':
        made: Callable[[Any], Any] = create_transform(input_size, is_training=True, use_prefetcher=True, **kwargs)
        return made
    if augmentation == 'flip':
        return flip_train_transform(input_size, **kwargs)
    made_by = {'cifar': cifar_train_transform, 'cifar_aa': cifar_aa_train_transform}
    if augmentation not in made_by:
        raise RideError(f'The augmentation "{augmentation}" is unknown; use one of {", ".join(AUGMENTATIONS)}.')
    sides = {input_size} if isinstance(input_size, int) else set(input_size[-2:])
    if len(sides) != 1:
        raise RideError(
            f'The {augmentation} augmentation makes square images, not {input_size}; use the timm augmentation.'
        )
    return made_by[augmentation](sides.pop(), **kwargs)
