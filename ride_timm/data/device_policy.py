"""The operations of AutoAugment's CIFAR-10 policy for batches on their device, pixel for pixel as Pillow's."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from ride_timm.data.device_cifar import fixed_point, pick_pixels, rotations, source_pixels
from ride_timm.data.device_crops import blend, grey_levels, mean_grey

__all__ = ['CifarPolicy']

_LEVELS = 9  # magnitudes count from 0 to 9


class CifarPolicy:
    """AutoAugment's CIFAR-10 policy: one of 25 pairs of operations an image, each done with its probability.

    Source: arXiv:1805.09501, appendix; pairs, probabilities and magnitudes as torchvision's `AutoAugment`. What lies
    outside of a moved image is black.

    Args:
        side: Height and width of the images.
    """

    def __init__(self, side: int) -> None:
        policies = AutoAugment(AutoAugmentPolicy.CIFAR10).policies
        self.num_pairs = len(policies)
        self._probability = torch.tensor([[p for _, p, _ in pair] for pair in policies])  # (pairs, 2)
        # each operation of each pair with either sign, and behind them the one that does nothing
        entries = [
            (name, _magnitude(name, level, sign, side)) for pair in policies for name, _, level in pair
            for sign in (-1, 1)
        ]  # fmt: skip
        self._nothing = len(entries)
        self._kinds = torch.tensor([[*_OPERATIONS].index(name) for name, _ in entries] + [-1])
        self._values = torch.tensor([value for _, value in entries] + [0.0], dtype=torch.float64)
        self._matrices = torch.stack([_matrix(name, value, side) for name, value in entries] + [_unmoved()])

    def choose(self, pairs: Tensor, chances: Tensor, positive: Tensor) -> Tensor:
        """The operations that draws stand for.

        Args:
            pairs: (N,) 0 to `num_pairs` - 1.
            chances: (N, 2) from 0 to 1; an operation of at least this probability is done.
            positive: (N, 2) 1 where the image moves or changes in the positive direction, else 0.

        Returns:
            (N, 2) indices for `apply`.
        """
        chosen = (pairs.unsqueeze(1) * 2 + torch.arange(2)) * 2 + positive
        return chosen.where(chances <= self._probability[pairs], self._nothing)

    def apply(self, images: Tensor, chosen: Tensor) -> Tensor:
        """Do to each image first the one, then the other of its operations.

        Args:
            images: uint8 (N, channels, side, side) of 1 or 3 channels.
            chosen: (N, 2) of `choose`.

        Returns:
            uint8 (N, channels, side, side).
        """
        images, device = images.clone(), images.device
        kinds, values, matrices = (t.to(device) for t in (self._kinds, self._values, self._matrices))
        for which in chosen.unbind(1):
            for kind, operation in enumerate(_OPERATIONS.values()):
                places = (kinds[which] == kind).nonzero().squeeze(1)
                if len(places):
                    entries = which[places]
                    images[places] = operation(images[places], values[entries], matrices[entries])
        return images


def _magnitude(name: str, level: int | None, sign: int, side: int) -> float:
    """The strength of an operation: pixels, degrees, a slope, a factor, bits or a grey level."""
    if level is None:
        return 0.0
    if name == 'Posterize':
        return 8 - round(level * 4 / _LEVELS)
    if name == 'Solarize':
        return float(torch.linspace(255.0, 0.0, _LEVELS + 1)[level])
    if name in _BLENDED:
        return 1.0 + sign * float(torch.linspace(0.0, 0.9, _LEVELS + 1)[level])
    most = {'Rotate': 30.0, 'ShearX': 0.3, 'ShearY': 0.3}.get(name, 150.0 / 331.0 * side)
    value = sign * float(torch.linspace(0.0, most, _LEVELS + 1)[level])
    return float(int(value)) if name.startswith('Translate') else value


def _matrix(name: str, value: float, side: int) -> Tensor:
    """Six fixed-point numbers, (6,): where the pixels of a moved image come from."""
    if name == 'Rotate':
        return torch.cat(rotations(torch.tensor([value]), side))
    slope = math.tan(math.atan(value))
    moved = {
        'ShearX': (1.0, slope, 0.0, 0.0, 1.0, 0.0),
        'ShearY': (1.0, 0.0, 0.0, slope, 1.0, 0.0),
        'TranslateX': (1.0, 0.0, -value, 0.0, 1.0, 0.0),
        'TranslateY': (1.0, 0.0, 0.0, 0.0, 1.0, -value),
    }
    return fixed_point(*moved[name]) if name in moved else _unmoved()


def _unmoved() -> Tensor:
    return fixed_point(1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def _move(images: Tensor, _: Tensor, matrices: Tensor) -> Tensor:
    side = images.shape[-1]
    x, y = source_pixels(matrices.unbind(1), side)
    return pick_pixels(images, x, y)


def _brightness(images: Tensor, values: Tensor, _: Tensor) -> Tensor:
    return blend(torch.zeros_like(images[:1, :1, :1, :1]), images, values)


def _contrast(images: Tensor, values: Tensor, _: Tensor) -> Tensor:
    return blend(mean_grey(grey_levels(images)), images, values)


def _color(images: Tensor, values: Tensor, _: Tensor) -> Tensor:
    return blend(grey_levels(images), images, values)


def _sharpness(images: Tensor, values: Tensor, _: Tensor) -> Tensor:
    wide = images.to(torch.int16)  # 13 times a grey level, twice, fits
    rows = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[..., 1:-1, 1:-1]
    smooth = images.clone()  # the border stays
    smooth[..., 1:-1, 1:-1] = ((2 * total + 13) // 26).to(torch.uint8)
    return blend(smooth, images, values)


def _posterize(images: Tensor, values: Tensor, _: Tensor) -> Tensor:
    dropped = 2 ** (8 - values.to(torch.int16)) - 1
    return images & (255 - dropped).to(torch.uint8).view(-1, 1, 1, 1)


def _solarize(images: Tensor, values: Tensor, _: Tensor) -> Tensor:
    return torch.where(images < values.view(-1, 1, 1, 1), images, 255 - images)


def _invert(images: Tensor, *_: Tensor) -> Tensor:
    return 255 - images


def _autocontrast(images: Tensor, *_: Tensor) -> Tensor:
    low, high = (v.double().unsqueeze(2) for v in (images.flatten(2).amin(2), images.flatten(2).amax(2)))
    steps = torch.arange(256, dtype=torch.float64, device=images.device)
    scale = torch.full_like(low, 255.0) / (high - low)  # a plain 255.0 would be multiplied by a rounded reciprocal
    table = (steps * scale + -low * scale).trunc().clamp(0.0, 255.0)
    return _look_up(images, torch.where(high > low, table, steps))


def _equalize(images: Tensor, *_: Tensor) -> Tensor:
    flat = images.flatten(2).long()
    counts = torch.zeros((*flat.shape[:2], 256), dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    last = counts.gather(2, flat.amax(2, keepdim=True))
    step = (flat.shape[2] - last) // 255
    table = (step // 2 + counts.cumsum(2) - counts) // step.clamp(min=1)
    return _look_up(images, torch.where(step > 0, table.clamp(max=255), torch.arange(256, device=images.device)))


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """Replace grey levels by those of a table (N, channels, 256)."""
    return table.to(torch.uint8).gather(2, images.flatten(2).long()).view_as(images)


_BLENDED = {'Brightness': _brightness, 'Color': _color, 'Contrast': _contrast, 'Sharpness': _sharpness}
_OPERATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    **dict.fromkeys(('Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY'), _move),
    **_BLENDED,
    'AutoContrast': _autocontrast,
    'Equalize': _equalize,
    'Invert': _invert,
    'Posterize': _posterize,
    'Solarize': _solarize,
}
