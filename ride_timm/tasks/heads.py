"""Parts of a network on frozen features: the heads stage, and what `--train-only` names."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ride_timm.losses import ExpertLoss, stack_experts
from ride_timm.models import MultiExpertNet, expert_logits

from ._base import PartModule, PartTask

__all__ = ['HeadModule', 'HeadTask']


class HeadModule(PartModule):
    """A network of which only the classification heads train, or other parts.

    Args:
        model: A multi-expert network, or any timm classifier; its other parameters are frozen and its other layers
            stay in eval mode, so there is no dropout before the heads either.
        parts: Submodules of the network to train instead of the heads.
    """

    def __init__(self, model: nn.Module, parts: Sequence[nn.Module] | None = None) -> None:
        found: Any = model.get_classifier() if parts is None else tuple(parts)  # type: ignore[operator]
        super().__init__(model, found if isinstance(found, tuple) else (found,))
        self.pooled = False
        if isinstance(model, MultiExpertNet):
            trained = {parameter for part in self.parts for parameter in part.parameters()}
            self.pooled = trained.issubset(model.get_classifier().parameters())
            if self.pooled:
                self.per_image = (True,) * model.num_experts
            elif trained.issubset(model.experts.parameters()):
                self.per_image = model.per_image

    def before(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The pre-logits (B, D) of every expert, what the trunk puts out, or the images (B, in_chans, H, W)."""
        net: Any = self.model
        if self.per_image is None:
            return [x]
        z: list[torch.Tensor] = net.forward_trunk(x)
        return net.forward_pooled(z) if self.pooled else z

    def after(self, z: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """K expert logits (B, C), as a network returns them in training; K = 1 for a plain one."""
        net: Any = self.model
        if self.per_image is None:
            return expert_logits(net, z[0]).unbind(1)
        logits: torch.Tensor = net.classify(z if self.pooled else net.forward_pooled(z))
        return logits.unbind(1)


class HeadTask(PartTask):
    """Retrain the heads of a network whose features are done, on a balanced loss or a class-balanced sampler.

    Source: classifier re-training (cRT), arXiv:1910.09217, section 4.1, with one classifier an expert.

    Args:
        model: A multi-expert network, or any timm classifier.
        criterion: Loss of (logits (B, K, C), target).
        device: Where the loss's buffers go.
        verbose: For timm; nothing is logged here.
        parts: Submodules to train instead of the heads, such as the experts on a trunk that stays.
    """

    criterion: ExpertLoss

    def __init__(
        self,
        model: nn.Module,
        criterion: ExpertLoss,
        device: torch.device | None = None,
        verbose: bool = True,
        parts: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__(device=device, verbose=verbose)
        self.trainable_module = HeadModule(model, parts)
        self.criterion = criterion.to(self.device)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """One training step's forward pass.

        Args:
            input: Images, shape (B, channels, H, W), or places of `features`, shape (B,).
            target: Class indices, shape (B,), or class probabilities, shape (B, C).

        Returns:
            `loss`, the loss's detached parts, and `output`, the mean logits (B, C).
        """
        logits = stack_experts(self.outputs(input))
        return {**self.criterion.parts(logits, target), 'output': logits.detach().mean(dim=1)}
