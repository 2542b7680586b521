"""Stage 2: the router, on frozen experts."""

from typing import Any

import torch
from torch import nn

from ride_timm.losses import RouterLoss
from ride_timm.models import MultiExpertNet, RouterOutput

from ._base import ExpertTask

__all__ = ['RouterModule', 'RouterTask']


class RouterModule(nn.Module):
    """A multi-expert network of which only the router trains.

    Trunk and experts stay in eval mode and without gradient, also when the training loop calls `train()`.

    Args:
        model: A network with a router; its other parameters are frozen.
    """

    def __init__(self, model: MultiExpertNet) -> None:
        super().__init__()
        model.requires_grad_(False)
        model.require_router().requires_grad_(True)
        self.model = model

    def train(self, mode: bool = True) -> 'RouterModule':
        """Put the router alone into train mode.

        Args:
            mode: Train or eval mode.
        """
        super().train(mode)
        self.model.eval()
        self.model.require_router().train(mode)
        return self

    def forward(self, x: torch.Tensor) -> RouterOutput:
        """Router logits (B, K - 1) and expert logits (B, K, C) of images `x` (B, in_chans, H, W)."""
        return self.model.forward_router(x)


class RouterTask(ExpertTask):
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

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The whole network, so that checkpoints hold it and not the wrapper.

        Args:
            module: A given module instead of this task's own.
            ema: The moving average instead.
        """
        found: Any = super().get_eval_model(module=module, ema=ema)
        while found is not None and not isinstance(found, MultiExpertNet):
            found = found.model if isinstance(found, RouterModule) else found.module
        net: nn.Module | None = found
        return net

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """One training step's forward pass.

        Args:
            input: Images, shape (B, channels, H, W).
            target: Class indices, shape (B,).

        Returns:
            `loss`, the loss's detached parts, and `output`, the mean logits (B, C).
        """
        router_logits, expert_logits = self.trainable_module(input)
        return {**self.criterion.parts(router_logits, expert_logits, target), 'output': expert_logits.mean(dim=1)}
