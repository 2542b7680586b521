"""What the hand-written ResNets share: a stem and named stages, the last of them an expert's own."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import SelectAdaptivePool2d
from timm.models import checkpoint_seq
from torch import nn

from .multi_expert import MultiExpertNet
from .seeding import seed_from_plain

__all__ = ['StageNet']


class StageNet(MultiExpertNet):
    """A stem `conv1 bn1 act1 maxpool`, the stages `trunk_stages`, and experts with the stages `expert_stages`.

    A subclass builds them and sets `num_features`.
    """

    trunk_stages: tuple[str, ...] = ()
    expert_stages: tuple[str, ...] = ()
    if TYPE_CHECKING:  # TorchScript cannot read these annotations
        conv1: nn.Module
        bn1: nn.Module
        act1: nn.Module
        maxpool: nn.Module

    def _set_pool(self, global_pool: str | None) -> None:
        factor = 1
        for expert in self.experts:
            pool = SelectAdaptivePool2d(pool_type=global_pool or '', flatten=bool(global_pool))
            expert.pool, factor = pool.train(self.training), pool.feat_mult()
        self.global_pool = global_pool
        self.head_hidden_size = self.num_features * factor
        self.expert_width = self.head_hidden_size // max(len(self.experts), 1)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that group parameters by depth; the experts' stages of one depth share a group.

        Args:
            coarse: Group by stage instead of by block.
        """
        block = r'(\d+)' if coarse else r'(\d+)\.(\d+)'
        return {
            'stem': r'^conv1|bn1|maxpool',
            'blocks': [(rf'^layer{block}', None), (rf'^experts\.\d+\.layer{block}', None)],
        }

    def _forward_levels(
        self, x: torch.Tensor, take: Sequence[int], last: int | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """As of the base, without hooks: a feature extractor compiles and exports."""
        end = len(self.feature_info) - 1 if last is None else last
        x = self.act1(self.bn1(self.conv1(x)))
        maps = [x]
        x = self.maxpool(x)
        for name in self.trunk_stages[:end]:
            x = self._run(getattr(self, name), x)
            maps.append(x)
        parts = [x] * len(self.experts)
        for name in self.expert_stages[: max(end - len(self.trunk_stages), 0)] if parts else ():
            parts = [self._run(getattr(e, name), part) for e, part in zip(self.experts, parts, strict=True)]
            x = torch.cat(parts, dim=1)
            maps.append(x)
        return x, [feature for i, feature in enumerate(maps) if i in take]

    def _run(self, stage: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if self.grad_checkpointing:
            return checkpoint_seq(stage, x)
        return stage(x)

    @torch.jit.ignore
    def seeds(self, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the tensors of a plain timm ResNet are in this network, as `seed_from_plain` has it.

        Args:
            state_dict: Of the plain ResNet, `conv1 bn1 layer1 .. layer4 fc`.
        """
        return seed_from_plain(state_dict, self.state_dict(), self.expert_stages)

    def prune_trunk(self, path: str) -> None:
        """Remove what follows the stem's `act1` or one of `trunk_stages`."""
        if path == 'act1':
            self.maxpool = nn.Identity()
        for name in self.trunk_stages[0 if path == 'act1' else self.trunk_stages.index(path) + 1 :]:
            setattr(self, name, nn.Sequential())

    def prune_expert(self, expert: Any, path: str) -> None:
        """Remove the stages of an expert that follow one of `expert_stages`."""
        for name in self.expert_stages[self.expert_stages.index(path) + 1 :]:
            setattr(expert, name, nn.Sequential())
