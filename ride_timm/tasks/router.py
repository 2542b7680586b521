"""The router stage: the router learns on frozen experts."""

import torch

from ride_timm.losses import RouterLoss
from ride_timm.models import MultiExpertNet, RouterOutput

from ._base import PartModule, PartTask

__all__ = ['RouterModule', 'RouterTask']


class RouterModule(PartModule):
    """A multi-expert network of which only the router trains.

    Args:
        model: A network with a router; its other parameters are frozen and its other layers stay in eval mode.

    Raises:
        RuntimeError: The network has no router.
    """

    model: MultiExpertNet

    def __init__(self, model: MultiExpertNet) -> None:
        super().__init__(model, [model.require_router()])
        self.per_image = (True,) * model.num_experts

    def before(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The pre-logits (B, D) of every expert, of images `x` (B, in_chans, H, W)."""
        return self.model.forward_pooled(self.model.forward_trunk(x))

    def after(self, z: list[torch.Tensor]) -> RouterOutput:
        """Router logits (B, K - 1) and expert logits (B, K, C), from the pre-logits of every expert."""
        return self.model.ask_router(z)


class RouterTask(PartTask):
    """Train the router of a network whose experts are done.

    Source: RIDE (arXiv:2010.01809), stage 2.

    Args:
        model: A multi-expert network with a router.
        criterion: Loss of (router logits, expert logits, target).
        device: Where the loss's buffers go.
        verbose: For timm; nothing is logged here.

    Raises:
        RuntimeError: The network has no router.
    """

    def __init__(
        self,
        model: MultiExpertNet,
        criterion: RouterLoss | None = None,
        device: torch.device | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(device=device, verbose=verbose)
        self.trainable_module = RouterModule(model)
        self.criterion: RouterLoss = (criterion or RouterLoss()).to(self.device)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """One training step's forward pass.

        Args:
            input: Images, shape (B, channels, H, W), or places of `features`, shape (B,).
            target: Class indices, shape (B,).

        Returns:
            `loss`, the loss's detached parts, and `output`, the mean logits (B, C).
        """
        router_logits, expert_logits = self.outputs(input)
        return {**self.criterion.parts(router_logits, expert_logits, target), 'output': expert_logits.mean(dim=1)}
