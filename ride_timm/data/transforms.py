"""Training augmentation by name: timm's own, or the one of the CIFAR long-tail papers."""

from collections.abc import Callable
from typing import Any

from timm.data import create_transform
from timm.data.transforms import MaybePILToTensor, str_to_interp_mode
from torchvision import transforms

from ride_timm.errors import RideError

__all__ = ['AUGMENTATIONS', 'cifar_train_transform', 'create_train_transform']

AUGMENTATIONS = ('timm', 'cifar')


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


def create_train_transform(
    augmentation: str, input_size: int | tuple[int, int] | tuple[int, int, int] = 224, **kwargs: Any
) -> Callable[[Any], Any]:
    """Training transform by name, for a loader whose normalisation happens in timm's `PrefetchLoader`.

    Args:
        augmentation: `timm` or `cifar`.
        input_size: Image side, (height, width) or (channels, height, width).
        **kwargs: Arguments of `timm.data.create_transform` or of `cifar_train_transform`.

    Returns:
        A transform from a Pillow image to a uint8 tensor.

    Raises:
        RideError: If the name is unknown, or the `cifar` crop would not be square.
    """
    if augmentation == 'timm':
        made: Callable[[Any], Any] = create_transform(input_size, is_training=True, use_prefetcher=True, **kwargs)
        return made
    if augmentation != 'cifar':
        raise RideError(f'the augmentation "{augmentation}" is unknown: use one of {", ".join(AUGMENTATIONS)}')
    sides = {input_size} if isinstance(input_size, int) else set(input_size[-2:])
    if len(sides) != 1:
        raise RideError(f'the cifar augmentation makes square images, not {input_size}: use the timm augmentation')
    return cifar_train_transform(sides.pop(), **kwargs)
