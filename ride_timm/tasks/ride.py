"""Stage 1: the experts."""

import torch
from timm.utils import unwrap_model

from ride_timm.losses import ExpertLoss

from ._base import ExpertTask, stack_experts

__all__ = ['RideTask']


class RideTask(ExpertTask):
    """Train all experts together, each on its own logits.

    A plain timm network takes part as a single expert, so that baselines run through the same code.

    Args:
        model: A multi-expert network, or any timm classifier.
        criterion: Loss of (logits (B, K, C), target).
        device: Where the loss's buffers go.
        verbose: For timm; nothing is logged here.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        criterion: ExpertLoss,
        device: torch.device | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(device=device, verbose=verbose)
        net = unwrap_model(model)
        if hasattr(net, 'set_expert_training'):
            net.set_expert_training(True)
        self.trainable_module = model
        self.criterion: ExpertLoss = criterion.to(self.device)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """One training step's forward pass.

        Args:
            input: Images, shape (B, channels, H, W).
            target: Class indices, shape (B,), or class probabilities, shape (B, C).

        Returns:
            `loss`, the loss's detached parts, and `output`, the mean logits (B, C).
        """
        logits = stack_experts(self.trainable_module(input))
        return {**self.criterion.parts(logits, target), 'output': logits.detach().mean(dim=1)}
