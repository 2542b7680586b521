"""The experts stage: the whole network learns."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from timm.utils import unwrap_model
from torch import nn

from ride_timm.errors import RideError
from ride_timm.losses import ExpertLoss, stack_experts

from ._base import ExpertTask

__all__ = ['RideTask', 'WeightedLoss']


class WeightedLoss(NamedTuple):
    """A loss that is added to another one, `weight` times."""

    weight: float
    loss: ExpertLoss


class RideTask(ExpertTask):
    """Train all experts together, each on its own logits.

    A plain timm network takes part as a single expert, so that baselines run through the same code.

    Args:
        model: A multi-expert network, or any timm classifier.
        criterion: Loss of (logits (B, K, C), target).
        auxiliary: Losses to add, by the name that they are logged under, such as `MutualLoss`.
        device: Where the losses' buffers go.
        verbose: For timm; nothing is logged here.
    """

    criterion: ExpertLoss

    def __init__(
        self,
        model: torch.nn.Module,
        criterion: ExpertLoss,
        device: torch.device | None = None,
        verbose: bool = True,
        auxiliary: Mapping[str, WeightedLoss] | None = None,
    ) -> None:
        super().__init__(device=device, verbose=verbose)
        net = unwrap_model(model)
        self.num_experts = int(getattr(net, 'num_experts', 1))
        if hasattr(net, 'set_expert_training'):
            net.set_expert_training(True)
        self.trainable_module = model
        self.criterion = criterion.to(self.device)
        extra = dict(auxiliary or {})
        self.auxiliary_weights = {name: term.weight for name, term in extra.items()}
        self.auxiliary = nn.ModuleDict({name: term.loss.to(self.device) for name, term in extra.items()})

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """One training step's forward pass.

        Args:
            input: Images, shape (B, channels, H, W).
            target: Class indices, shape (B,), or class probabilities, shape (B, C).

        Returns:
            `loss`, the detached parts that it is made of, each without its weight, and `output`, the mean logits
            (B, C).

        Raises:
            RideError: The network of several experts returned one answer, as in eval mode.
        """
        logits = self._expert_logits(input)
        result = self.criterion.parts(logits, target)
        for name, (weight, value) in self.terms(input, target, logits).items():
            result['loss'] = result['loss'] + weight * value
            result[name] = value.detach()
        return {**result, 'output': logits.detach().mean(dim=1)}

    def _expert_logits(self, input: torch.Tensor) -> torch.Tensor:
        logits = stack_experts(self.trainable_module(input))
        if logits.shape[1] != self.num_experts:
            raise RideError(
                f'The network returned one answer in place of those of its {self.num_experts} experts, which would '
                'train as a single one; call task.train() or model.train() before the step, and '
                'model.set_expert_training(True) if it was switched off.'
            )
        return logits

    def terms(
        self, input: torch.Tensor, target: torch.Tensor, logits: torch.Tensor
    ) -> dict[str, tuple[float, torch.Tensor]]:
        """What is added to the classification loss, by name: a weight and a scalar.

        Args:
            input: Images, shape (B, channels, H, W).
            target: Class indices, shape (B,), or class probabilities, shape (B, C).
            logits: Expert logits, shape (B, K, C).
        """
        return {name: (self.auxiliary_weights[name], loss(logits, target)) for name, loss in self.auxiliary.items()}

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """What the added losses have found in training, for the checkpoint; the moving average shares it.

        Args:
            module: For timm; not used.
            ema: Whether the state is for the moving average's entry.
        """
        del module
        return {} if ema else dict(self.auxiliary.state_dict())

    def load_task_state(
        self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        """Go on with what the added losses had found; of losses that are new or gone there is nothing to load.

        Args:
            state: Of `get_task_state`.
            strict: For timm; not used.
            module: For timm; not used.
            ema: Whether the state is the moving average's.

        Raises:
            RuntimeError: The number of classes differs.
            ValueError: A value is not finite.
            TypeError: It is not made of tensors by name.
        """
        del strict, module
        if state is None or ema:
            return
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise TypeError('task_state is not made of tensors by name')
        if not all(bool(value.isfinite().all()) for value in state.values()):
            raise ValueError('task_state holds numbers that are not finite')
        self.auxiliary.load_state_dict(state, strict=False)
