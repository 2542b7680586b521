"""Test-time augmentation: figures of more than one view of an image, next to the ordinary ones and never for them."""

import torch
from torch import nn

__all__ = ['WithMirrorImage']


class WithMirrorImage(nn.Module):
    """A classifier that takes the mean logits of an image and its mirror image, at twice the cost.

    Args:
        model: Any timm classifier.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mean logits (B, C) of images `x` (B, channels, H, W)."""
        logits: torch.Tensor = (self.model(x) + self.model(x.flip(-1))) / 2
        return logits
