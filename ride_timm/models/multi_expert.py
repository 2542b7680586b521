"""What every multi-expert network shares: heads, features, routed inference and timm's model contract."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.fx
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d, get_device_dtype
from timm.models import checkpoint_seq
from torch import nn

from ride_timm import _compat

from .heads import ExpertHeads, at_least_float32, check_head, create_head
from .router import ExpertRouter
from .routing import (
    RoutedOutput,
    RouterModule,
    RouterOutput,
    check_threshold,
    forward_early_exit,
    forward_selected,
    is_symbolic,
    logit,
    prefix_means,
    warn_nothing_saved,
)

__all__ = ['MultiExpertNet', 'count_experts', 'expert_logits']

torch.fx.wrap('at_least_float32')  # symbolic tracing keeps it whole in this module too


class MultiExpertNet(RouterModule):
    """Base of the networks with one shared trunk and K experts.

    A subclass builds `conv1 bn1 act1 maxpool`, the stages named in `trunk_stages` and `experts` (each with the stages
    named in `expert_stages`, a `forward_features` and a head `fc`), fills `feature_info`, and calls `_init_heads`.

    Attributes:
        num_experts: Number K of experts.
        num_features: Channels of `forward_features`: K times the channels of one expert.
        head_hidden_size: Width of the pooled features, all experts side by side.
        expert_training: Whether train mode returns a tuple of K logits instead of their mean.
        routing_threshold: The threshold that eval mode routes with, or None while routing is off.
        logit_offset: What is added to the logits of each expert, (K, C), or None; see `set_logit_offset`.
        run_experts: Computes the final feature maps of the experts in place of a loop over them, from the experts and
            the trunk's map; None for the loop. `ride_timm.training.fast.expert_streams` sets it.
    """

    trunk_stages: tuple[str, ...] = ()
    expert_stages: tuple[str, ...] = ()

    if TYPE_CHECKING:  # TorchScript cannot read these annotations
        conv1: nn.Module
        bn1: nn.Module
        act1: nn.Module
        maxpool: nn.Module
        experts: Any  # a ModuleList of experts, which mypy cannot say
        router: ExpertRouter | None
        feature_info: list[dict[str, Any]]

    def _init_heads(
        self,
        num_classes: int,
        in_chans: int,
        global_pool: str,
        head: str,
        router: bool | int | None,
        router_top_k: int,
        router_threshold: float,
        drop_rate: float,
        dd: dict[str, Any],
    ) -> None:
        """Create pooling, heads and router, after the bodies of the experts."""
        self.num_experts = len(self.experts)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = self.expert_training = False
        self.routing_threshold: float | None = None
        self.logit_offset: torch.Tensor | None = None  # no buffer: it never enters a state dict, and keeps its digits
        self.run_experts: Callable[[Any, torch.Tensor], list[torch.Tensor]] | None = None
        self.head = head
        self.num_features = int(self.feature_info[-1]['num_chs'])
        self._set_pool(global_pool)
        check_head(num_classes, global_pool)
        self._create_heads(dd)
        self.router_top_k = router_top_k
        self.router_threshold = check_threshold(router_threshold)
        self.router = None
        if router and not isinstance(router, bool) and router != num_classes:
            warnings.warn('The router belongs to the old heads and is dropped.', stacklevel=2)
        elif router:
            self._create_router(dd)

    def _set_pool(self, global_pool: str) -> None:
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool)).train(self.training)
        # a pooling that concatenates (catavgmax) must not mix the experts' features: it is applied to each alone
        self.pool_each_expert = self.global_pool.feat_mult() != 1 and len(self.experts) > 0
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.expert_width = self.head_hidden_size // max(len(self.experts), 1)

    def _create_heads(self, dd: dict[str, Any]) -> None:
        for expert in self.experts:
            expert.fc = create_head(self.head, self.expert_width, self.num_classes, **dd).train(self.training)

    def _create_router(self, dd: dict[str, Any]) -> None:
        if self.num_experts < 2 or self.num_classes < 1:
            raise ValueError(
                f'router=True was given to a network with {self.num_experts} expert(s) and {self.num_classes} classes; '
                'a router needs at least two experts and a head.'
            )
        self.router_top_k = min(self.router_top_k, self.num_classes)
        self.router = ExpertRouter(self.num_experts, self.expert_width, self.router_top_k, **dd)
        self.router.requires_grad_(False)  # until a router stage: plain training and DDP refuse what has no gradient

    @torch.jit.ignore
    def add_router(self) -> None:
        """Give a network without a router a new one, untrained and frozen, as `router=True` would have.

        `ride_timm.train_router` trains it. It is drawn from torch's random numbers.

        Raises:
            RuntimeError: The network has a router.
            ValueError: It has a single expert, or no head.

        Example:
            >>> import timm, ride_timm
            >>> model = timm.create_model('test_ride_resnet_cifar_3e', num_classes=10)
            >>> model.add_router()
            >>> model.router is None
            False
        """
        if self.router is not None:
            raise RuntimeError('This network has a router already; train it with ride_timm.train_router.')
        self._create_router(get_device_dtype(self))
        _compat.update_model_args(self, router=True)

    @torch.jit.ignore
    def set_logit_offset(self, offset: torch.Tensor | None) -> None:
        """Choose what is added to the logits of each expert, wherever they go but to the router.

        The router reads the logits as it was trained on them, so every image passes as many experts as without. Copies
        of the network have the offset too, its state dict has not. New heads take it back.

        Args:
            offset: Shape (K, C), of any floating point type; None takes it back.

        Raises:
            ValueError: Another shape.
        """
        if offset is not None and offset.shape != (self.num_experts, self.num_classes):
            raise ValueError(
                f'The offset has shape {tuple(offset.shape)}, but must be ({self.num_experts}, {self.num_classes}).'
            )
        self.logit_offset = offset

    def _drop_router(self) -> None:
        if self.router is not None:
            self.router = self.routing_threshold = None
            _compat.update_model_args(self, router=False)

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

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping their activations, or not."""
        self.grad_checkpointing = enable
        for expert in self.experts:
            expert.grad_checkpointing = enable

    @torch.jit.ignore
    def set_expert_training(self, enable: bool = True) -> None:
        """Choose what train mode returns.

        Args:
            enable: True: a tuple of K logits (B, C), timm's convention for several heads; False: their mean (B, C).
        """
        self.expert_training = enable

    @torch.jit.ignore
    def set_routing(self, threshold: float | None) -> None:
        """Choose what eval mode computes.

        Args:
            threshold: In [0, 1]: an image goes on to the next expert while the router's probability is above it, so
                0 uses all experts and 1 the first alone. None switches routing off: every image passes all experts.

        Raises:
            RuntimeError: The network has no router.
            ValueError: The threshold is outside [0, 1].
        """
        if threshold is None:
            self.routing_threshold = None
            return
        self.require_router()
        self.routing_threshold = check_threshold(threshold)

    @torch.jit.ignore
    def get_classifier(self) -> ExpertHeads:
        """The K heads."""
        return ExpertHeads([expert.fc for expert in self.experts])

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Draw new heads.

        A router goes with the classes it was trained on: another number of classes or features drops it with a warning.
        The bias of a `biased_cosine` head goes with the old heads.

        Args:
            num_classes: Number of classes; 0 removes the heads.
            global_pool: Type of pooling; None keeps the current one, '' removes it (with `num_classes=0`).

        Raises:
            ValueError: Heads are asked for of a network pruned to its trunk, or together with `global_pool=''`.
        """
        if global_pool is None:
            global_pool = self.global_pool.pool_type
        else:  # only what is asked for here is refused: timm's tests put heads on a network made without pooling
            check_head(num_classes, global_pool)
        if num_classes > 0 and not len(self.experts):
            raise ValueError('This network was pruned to its trunk and has no experts to put heads on.')
        width, changed = self.expert_width, num_classes != self.num_classes
        self.num_classes = num_classes
        self.logit_offset = None
        self._set_pool(global_pool)
        if self.router is not None and (changed or width != self.expert_width):
            warnings.warn('The router belongs to the old heads and is dropped.', stacklevel=2)
            self._drop_router()
        if self.head == 'biased_cosine':
            self.head = 'cosine'
            _compat.update_model_args(self, head='cosine')
        self._create_heads(get_device_dtype(self))

    def _run(self, stage: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(stage, x)
        return stage(x)

    @torch.jit.ignore
    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Feature maps after the stem and after each stage; those of the experts side by side in the channels.

        Args:
            x: Images, shape (B, in_chans, H, W).
            indices: Which maps: the last n, a list, or all (None).
            norm: Has no effect: there is no final norm.
            stop_early: Stop after the last wanted map.
            output_fmt: Only `NCHW`.
            intermediates_only: Return the list alone.

        Returns:
            The final features (B, K * channels, H', W') and the list, or the list alone.

        Raises:
            ValueError: Another output format.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt={output_fmt!r} is not available; use 'NCHW'.")
        take, max_index = _compat.feature_take_indices(len(self.feature_info), indices)
        last = max_index if stop_early else len(self.feature_info) - 1
        x = self.act1(self.bn1(self.conv1(x)))
        maps = [x]
        x = self.maxpool(x)
        for name in self.trunk_stages[:last]:
            x = self._run(getattr(self, name), x)
            maps.append(x)
        parts = [x] * len(self.experts)
        for name in self.expert_stages[: max(last - len(self.trunk_stages), 0)] if parts else ():
            parts = [self._run(getattr(e, name), part) for e, part in zip(self.experts, parts, strict=True)]
            x = torch.cat(parts, dim=1)
            maps.append(x)
        intermediates = [feature for i, feature in enumerate(maps) if i in take]
        return intermediates if intermediates_only else (x, intermediates)

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the wanted feature maps do not need.

        Args:
            indices: Which maps stay available, as for `forward_intermediates`.
            prune_norm: Has no effect: there is no final norm.
            prune_head: Remove heads and pooling also when the last map stays.

        Returns:
            The indices of the maps that stay.
        """
        take, max_index = _compat.feature_take_indices(len(self.feature_info), indices)
        for name in self.trunk_stages[max_index:]:
            setattr(self, name, nn.Sequential())
        if max_index == 0:
            self.maxpool = nn.Identity()
        if max_index <= len(self.trunk_stages):
            self.experts = nn.ModuleList()
        for expert in self.experts:
            for name in self.expert_stages[max_index - len(self.trunk_stages) :]:
                setattr(expert, name, nn.Sequential())
        prune_end = max_index < len(self.feature_info) - 1
        if prune_end:
            self.num_features = self.head_hidden_size = int(self.feature_info[max_index]['num_chs'])
        if prune_head or prune_end:
            self._drop_router()
            self.reset_classifier(0, '')
        return take

    def forward_trunk(self, x: torch.Tensor) -> torch.Tensor:
        """Feature map of the shared trunk, of images `x` (B, in_chans, H, W)."""
        raise NotImplementedError

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Final feature maps of all experts, concatenated over the channels.

        Args:
            x: Images, shape (B, in_chans, H, W).

        Returns:
            Shape (B, K * channels, H', W').
        """
        x = self.forward_trunk(x)
        if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript leaves out a branch of exactly this form only
            if self.run_experts is not None:
                return torch.cat(self.run_experts(self.experts, x), dim=1)
        maps: list[torch.Tensor] = []
        for expert in self.experts:
            maps.append(expert.forward_features(x))
        if len(maps) == 0:
            return x
        return torch.cat(maps, dim=1)

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool_each_expert:
            width = self.num_features // self.num_experts
            pooled: list[torch.Tensor] = []
            for i in range(self.num_experts):
                pooled.append(self.global_pool(x[:, i * width : (i + 1) * width]))
            x = torch.cat(pooled, dim=1)
        else:
            x = self.global_pool(x)
        if self.drop_rate > 0.0:
            x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pool and classify.

        Args:
            x: What `forward_features` returned.
            pre_logits: Return the pooled features (B, head_hidden_size) instead.

        Returns:
            Mean logits (B, C); in train mode after `set_expert_training(True)` a tuple of K logits (B, C).
        """
        x = self._pool(x)
        if pre_logits or self.num_classes <= 0:
            return x
        logits: list[torch.Tensor] = []
        for i, expert in enumerate(self.experts):
            logits.append(self.with_offset(i, expert(x[:, i * self.expert_width : (i + 1) * self.expert_width])))
        if self.expert_training and self.training and not torch.jit.is_scripting():
            each: Any = tuple(logits)  # the annotation of the result is what TorchScript can read
            return each
        return torch.stack(logits).mean(dim=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mean logits (B, C) of images `x` (B, in_chans, H, W); see `set_routing` and `set_expert_training`."""
        if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript leaves out a branch of exactly this form only
            if self.routing_threshold is not None and not self.training:
                return self.forward_routed(x, self.routing_threshold).logits
        return self.forward_head(self.forward_features(x))

    def with_offset(self, index: int, logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) of expert `index` with its offset."""
        offset = self.logit_offset
        if offset is None:
            return logits
        logits = at_least_float32(logits)
        return logits + offset[index].to(logits.device, logits.dtype)

    def _forward_pooled(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Pooled features (B, D) of every expert."""
        pooled = self._pool(self.forward_features(x))
        return [pooled[:, i * self.expert_width : (i + 1) * self.expert_width] for i in range(self.num_experts)]

    @torch.jit.ignore
    def forward_experts(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of every expert, shape (B, K, C), of images `x` (B, in_chans, H, W)."""
        pooled = self._forward_pooled(x)
        return torch.stack([self.with_offset(i, expert(pooled[i])) for i, expert in enumerate(self.experts)], dim=1)

    @torch.jit.ignore
    def forward_router(self, x: torch.Tensor) -> RouterOutput:
        """Every router's and every expert's logits, whatever the routers decide.

        Args:
            x: Images, shape (B, in_chans, H, W).

        Raises:
            RuntimeError: The network has no router.
        """
        router = self.require_router()
        pooled = self._forward_pooled(x)
        logits = [expert(p) for expert, p in zip(self.experts, pooled, strict=True)]
        prefix = prefix_means(torch.stack(logits, dim=1))
        decisions = [router(i, pooled[i], prefix[:, i]) for i in range(self.num_experts - 1)]
        answers = torch.stack([self.with_offset(i, each) for i, each in enumerate(logits)], dim=1)
        return RouterOutput(torch.stack(decisions, dim=1), answers)

    @torch.jit.ignore
    def forward_routed(self, x: torch.Tensor, threshold: float | None = None) -> RoutedOutput:
        """Send each image through as many experts as the router asks for, and compute no more.

        While tracing, exporting or compiling all experts are computed and the result is selected, to the same numbers.

        Args:
            x: Images, shape (B, in_chans, H, W).
            threshold: In [0, 1]; None means `router_threshold`.

        Raises:
            RuntimeError: The network has no router, or is in train mode.
            ValueError: The threshold is outside [0, 1].
        """
        self.require_router()
        if self.training:
            raise RuntimeError('Routed inference was asked for in train mode; call model.eval() first.')
        limit = logit(check_threshold(self.router_threshold if threshold is None else threshold))
        if torch.compiler.is_compiling():
            warn_nothing_saved('compiled')
            return forward_selected(self, x, limit)
        if torch.jit.is_tracing() or is_symbolic(x):
            warn_nothing_saved('symbolically traced' if is_symbolic(x) else 'traced')
            return forward_selected(self, x, limit)
        return forward_early_exit(self, x, limit)

    def require_router(self) -> ExpertRouter:
        """The router; a RuntimeError says what to do where there is none."""
        if self.router is None:
            raise RuntimeError(
                'This network has no router; create it with router=True (and train the router), or load weights that '
                'have one.'
            )
        return self.router


def count_experts(model: nn.Module) -> int:
    """Number K of experts of a network; 0 for one that has none, as timm's own."""
    return model.num_experts if isinstance(model, MultiExpertNet) else 0


def expert_logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Logits of every expert of any classifier, in train or eval mode; a plain one counts as a single expert.

    Args:
        model: A multi-expert network, or any timm classifier.
        x: Images, shape (B, in_chans, H, W).

    Returns:
        Shape (B, K, C); K = 1 for a plain network.
    """
    if isinstance(model, MultiExpertNet):
        return model.forward_experts(x)
    logits: torch.Tensor = model(x)
    return logits.unsqueeze(1)
