"""Experts that also follow a larger ensemble."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ride_timm.losses import DistillationLoss, ExpertLoss

from .ride import RideTask, WeightedLoss

__all__ = ['RideDistillationTask', 'Teacher']

Pixels: TypeAlias = tuple[Sequence[float], Sequence[float]]


class Teacher(nn.Module):
    """A trained network that is only asked: frozen, always in eval mode, its classes in the student's order.

    Args:
        model: A classifier that returns logits (B, C) in eval mode.
        order: For each class of the student the teacher's index of it, C numbers; None means the same order.
        teacher_pixels: (mean, std) a channel that the teacher's images are normalised with.
        student_pixels: (mean, std) a channel of the images that it is given; they are normalised anew if these differ.
    """

    scale: Tensor
    shift: Tensor
    order: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        order: Sequence[int] | None = None,
        teacher_pixels: Pixels | None = None,
        student_pixels: Pixels | None = None,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        kept = None if order is None or list(order) == list(range(len(order))) else torch.tensor(list(order))
        self.register_buffer('order', kept, persistent=False)
        given, wanted = student_pixels or ((0.0,), (1.0,)), teacher_pixels or student_pixels or ((0.0,), (1.0,))
        (mean, std), (own_mean, own_std) = (
            tuple(torch.tensor([float(v) for v in values]).view(-1, 1, 1) for values in pixels)
            for pixels in (given, wanted)
        )
        self.normalises = not (torch.equal(mean, own_mean) and torch.equal(std, own_std))
        self.register_buffer('scale', std / own_std, persistent=False)
        self.register_buffer('shift', (mean - own_mean) / own_std, persistent=False)

    def train(self, mode: bool = True) -> 'Teacher':
        """Stay in eval mode, whatever `mode` is: BatchNorm's statistics and dropout are part of what is distilled."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) in the student's order of classes, of the student's images `x` (B, in_chans, H, W)."""
        if self.normalises:
            x = x * self.scale + self.shift
        logits: Tensor = self.model(x)
        return logits if self.order is None else logits[:, self.order]


class RideDistillationTask(RideTask):
    """Train all experts, and their mean to follow a teacher: the criterion plus `weight` times `DistillationLoss`.

    The teacher is no part of the trained module: not in its checkpoint, nor in what DistributedDataParallel wraps.

    Source: RIDE (arXiv:2010.01809), which distils a network of 6 experts with temperature 1.5. Its code adds the sum of
    both losses once for every expert and leaves the teacher in train mode; here the sum counts once and the teacher is
    in eval mode.

    Args:
        model: A multi-expert network, or any timm classifier.
        criterion: Loss of (logits (B, K, C), target).
        teacher: A `Teacher`, or a classifier to make one of.
        distillation: Loss of (logits (B, K, C), teacher logits (B, C)); temperature 1.5 by default.
        weight: Factor on the distillation loss.
        device: Where the losses' buffers and the teacher go.
        verbose: For timm; nothing is logged here.
        auxiliary: As in `RideTask`.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: ExpertLoss,
        teacher: nn.Module,
        distillation: DistillationLoss | None = None,
        weight: float = 1.0,
        device: torch.device | None = None,
        verbose: bool = True,
        auxiliary: Mapping[str, WeightedLoss] | None = None,
    ) -> None:
        super().__init__(model, criterion, device=device, verbose=verbose, auxiliary=auxiliary)
        self.teacher = (teacher if isinstance(teacher, Teacher) else Teacher(teacher)).to(self.device)
        self.distillation = distillation or DistillationLoss()
        self.distillation_weight = weight

    def terms(self, input: Tensor, target: Tensor, logits: Tensor) -> dict[str, tuple[float, Tensor]]:
        """As in `RideTask`, and `distillation`.

        Args:
            input: Images, shape (B, channels, H, W).
            target: Class indices, shape (B,), or class probabilities, shape (B, C).
            logits: Expert logits, shape (B, K, C).
        """
        value = self.distillation(logits, self.teacher(input))
        return {**super().terms(input, target, logits), 'distillation': (self.distillation_weight, value)}
