"""`cifar_aa_train_transform` for a batch on its device: padded crop, flip, AutoAugment and Cutout."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ride_timm.data.device_cifar import CifarAugmentation, CifarDraws
from ride_timm.data.device_policy import CifarPolicy

__all__ = ['CifarAAAugmentation', 'CifarAADraws']


class CifarAADraws(NamedTuple):
    """What is drawn for N images.

    Attributes:
        crop: Of `CifarAugmentation`, without a rotation.
        pairs: (N,) which pair of operations.
        chances: (N, 2) number from 0 to 1, compared with the operations' probabilities.
        positive: (N, 2) 1 where an operation goes in the positive direction, else 0.
        centres: (N, 2) row and column of the middle of the black square.
    """

    crop: CifarDraws
    pairs: Tensor
    chances: Tensor
    positive: Tensor
    centres: Tensor


class CifarAAAugmentation:
    """Crop the padded images and flip them, then AutoAugment's CIFAR-10 policy and Cutout.

    Source: as of `cifar_aa_train_transform`.

    Args:
        size: As of `cifar_aa_train_transform`, like the other arguments.
        padding: See there.
        hflip: See there.
        cutout: See there.
        interpolation: See there.
        shape: (height, width) of the images; those of `size` by default.
    """

    def __init__(
        self,
        size: int = 32,
        padding: int = 4,
        hflip: float = 0.5,
        cutout: int = 16,
        interpolation: str = 'bilinear',
        shape: tuple[int, int] | None = None,
    ) -> None:
        self.size, self.cutout = size, cutout
        self.crop = CifarAugmentation(size, padding, 0.0, hflip, interpolation, shape)
        self.policy = CifarPolicy(size)
        self.before: Callable[[Any], Any] | None = self.crop.before

    def draw(self, count: int) -> CifarAADraws:
        """Draw for `count` images, from torch's CPU generator."""
        return CifarAADraws(
            self.crop.draw(count),
            torch.randint(self.policy.num_pairs, (count,)),
            torch.rand(count, 2),
            torch.randint(2, (count, 2)),
            torch.randint(self.size, (count, 2)),
        )

    def prepare(self, drawn: Any) -> tuple[Tensor, ...]:
        """What `apply` takes: operations (N, 2), centres (N, 2), and what the crop takes, (N,) each."""
        chosen = self.policy.choose(drawn.pairs, drawn.chances, drawn.positive)
        return (chosen, drawn.centres, *self.crop.prepare(drawn.crop))

    def apply(self, images: Tensor, *prepared: Tensor) -> Tensor:
        """Augmented images, uint8 (N, channels, size, size), of (N, channels, H, W) with 1 or 3 channels."""
        chosen, centres, *crop = prepared
        images = self.policy.apply(self.crop.apply(images, *crop), chosen)
        steps = torch.arange(self.size, device=images.device)
        first = (centres - self.cutout // 2).unsqueeze(2)
        rows, columns = ((steps >= first) & (steps < first + self.cutout)).unbind(1)
        return images.masked_fill((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0)
