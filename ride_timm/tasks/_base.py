"""What our tasks add to timm's."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ride_timm._compat import get_inner
from ride_timm.losses import ExpertLoss

__all__ = ['ExpertTask', 'PartModule', 'PartTask']


class ExpertTask(TrainingTask):
    """A task that knows the epoch, runs distributed on the CPU too, and tells heads from bodies.

    Attributes:
        trainable_module: The module whose parameters are trained.
        criterion: The loss.
    """

    trainable_module: nn.Module
    criterion: nn.Module

    def set_epoch(self, epoch: int) -> None:
        """Tell the loss the epoch index, counted from 0; deferred re-weighting depends on nothing else.

        Args:
            epoch: Index of the epoch that begins.
        """
        if isinstance(self.criterion, ExpertLoss):
            self.criterion.set_epoch(epoch)

    def end_epoch(self) -> None:
        """Tell all losses that an epoch is over, in every process; before the checkpoint that goes on from here."""
        for module in self.modules():
            if isinstance(module, ExpertLoss):
                module.end_epoch()

    def prepare_distributed(self, device_ids: list[Any] | None = None, **ddp_kwargs: Any) -> 'ExpertTask':
        """Wrap the trained module for distributed training.

        Args:
            device_ids: The device of this process; left out on the CPU, where DistributedDataParallel refuses it.
            **ddp_kwargs: Arguments of DistributedDataParallel.

        Returns:
            This task.
        """
        ids = None if self.device.type == 'cpu' else device_ids
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=ids, **ddp_kwargs)
        return self

    def compile(  # type: ignore[override]  # as timm's
        self, backend: str = 'inductor', mode: str | None = None, **compile_kwargs: Any
    ) -> nn.Module:
        """Compile the trained module, before it is wrapped for distributed training; evaluation stays eager.

        Args:
            backend: As of `torch.compile`.
            mode: As of `torch.compile`.
            **compile_kwargs: Others of `torch.compile`.

        Returns:
            The compiled module.
        """
        compiled: Any = torch.compile(self.trainable_module, backend=backend, mode=mode, **compile_kwargs)
        self.trainable_module = compiled
        return self.trainable_module

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Parameters whose gradients are clipped.

        Args:
            exclude_head: Leave out all K heads, as adaptive gradient clipping wants.
        """
        module = unwrap_model(self.get_trainable_module())
        heads: set[int] = set()
        if exclude_head and hasattr(module, 'get_classifier'):
            found = module.get_classifier()
            for head in found if isinstance(found, tuple) else (found,):
                heads.update(id(p) for p in head.parameters())
        return [p for p in module.parameters() if p.requires_grad and id(p) not in heads]


class PartModule(nn.Module):
    """A network of which only some parts train, cut where the first of them begins.

    All other parameters are frozen and all other layers stay in eval mode, also when the training loop calls `train()`:
    a BatchNorm in train mode would change its statistics, frozen or not.

    Args:
        model: The network; its parameters are frozen here, but for those of the parts.
        parts: Submodules of the network that train.

    Attributes:
        per_image: Which of the tensors that `before` gives have one entry an image; None where nothing comes before.
    """

    per_image: tuple[bool, ...] | None = None

    def __init__(self, model: nn.Module, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        model.requires_grad_(False)
        for part in parts:
            part.requires_grad_(True)
        self.model = model
        self.parts = tuple(parts)  # a tuple of modules is not registered, so no parameter is listed twice

    def before(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What is computed of images `x` (B, in_chans, H, W) before anything that trains."""
        raise NotImplementedError

    def after(self, z: list[torch.Tensor]) -> Any:
        """The outputs, from what `before` gave."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor | list[torch.Tensor]) -> Any:
        """The outputs, of images (B, in_chans, H, W) or of what `before` gave for them."""
        return self.after(x if isinstance(x, list) else self.before(x))

    def train(self, mode: bool = True) -> 'PartModule':
        """Put the parts alone into train mode.

        Args:
            mode: Train or eval mode.
        """
        self.training = mode
        self.model.eval()
        for part in self.parts:
            part.train(mode)
        return self


class PartTask(ExpertTask):
    """A task whose trained module is a `PartModule`; what it evaluates and saves is the whole network inside.

    Attributes:
        features: Gives what `before` of the module gives, by the places (B,), int64, that the training batches then
            hold instead of images; None to compute it in every step.
    """

    features: Callable[[torch.Tensor], list[torch.Tensor]] | None = None

    def outputs(self, input: torch.Tensor) -> Any:
        """What the trained module gives for a training batch.

        Args:
            input: Images, shape (B, channels, H, W), or places of `features`, shape (B,).
        """
        return self.trainable_module(input if self.features is None else self.features(input))

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The whole network, so that checkpoints hold it and not the wrapper.

        Args:
            module: A given module instead of this task's own.
            ema: The moving average instead.
        """
        found: Any = super().get_eval_model(module=module, ema=ema)
        while found is not None:
            if isinstance(found, PartModule):
                return found.model
            inner = get_inner(found)
            if inner is None:
                break
            found = inner
        return found
