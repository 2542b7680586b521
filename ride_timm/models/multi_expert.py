"""What every multi-expert network shares, whatever its trunk and experts are made of."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.fx
import torch.nn.functional as F
from timm.layers import get_device_dtype
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

__all__ = ['Expert', 'MultiExpertNet', 'count_experts', 'expert_logits']

torch.fx.wrap('at_least_float32')  # symbolic tracing keeps it whole in this module too


class Expert(nn.Module):
    """One expert: what follows the trunk, a pooling and a head of its own.

    A subclass gives `forward_features` and sets `pool`.

    Attributes:
        pool: From the final features to the pre-logits (B, D).
        fc: The head, from the pre-logits to the logits (B, C).
        drop_rate: Dropout before the head.
        grad_checkpointing: Recompute the body in the backward pass.
    """

    if TYPE_CHECKING:  # the network sets it, after the body: optimizers keep their state by the order of parameters
        fc: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.pool: nn.Module = nn.Identity()
        self.drop_rate = 0.0
        self.grad_checkpointing = False

    def forward_features(self, x: list[torch.Tensor]) -> torch.Tensor:
        """Final features of this expert, from what the trunk puts out."""
        raise NotImplementedError

    def forward_pool(self, x: torch.Tensor) -> torch.Tensor:
        """Pre-logits (B, D) of these features."""
        x = self.pool(x)
        if self.drop_rate > 0.0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x

    def forward(self, x: list[torch.Tensor]) -> torch.Tensor:
        """Logits (B, C), from what the trunk puts out; pre-logits where there is no head."""
        return self.fc(self.forward_pool(self.forward_features(x)))


class MultiExpertNet(RouterModule):
    """Base of the networks with one shared trunk and K experts.

    A subclass builds its trunk and `experts`, fills `feature_info`, and calls `_init_heads`. It gives `forward_trunk`,
    `prune_trunk` and `prune_expert`, and, where the pooling may change after creation, `_set_pool`.

    Attributes:
        num_experts: Number K of experts.
        num_features: Channels of `forward_features`: K times the channels of one expert.
        head_hidden_size: Width of the pre-logits, all experts side by side.
        expert_width: Width D of the pre-logits of one expert.
        per_image: Which of the tensors that the trunk puts out have one entry an image; all images share the others.
        channel_dim: Where the channels are in what `forward_features` returns: 1 or -1.
        feature_info: timm's list of feature maps. `module` is a path in the network, or behind `experts.` in each
            expert, whose maps stand side by side in the channels.
        expert_training: Whether train mode returns a tuple of K logits instead of their mean.
        routing_threshold: The threshold that eval mode routes with, or None while routing is off.
        logit_offset: What is added to the logits of each expert, (K, C), or None; see `set_logit_offset`.
        run_experts: Computes the final features of the experts in place of a loop over them, from the experts and
            what the trunk puts out; None for the loop. `ride_timm.training.fast.expert_streams` sets it.
    """

    if TYPE_CHECKING:  # TorchScript cannot read these annotations
        experts: Any  # a ModuleList of `Expert`, which mypy cannot say
        router: ExpertRouter | None
        feature_info: list[dict[str, Any]]
        global_pool: str | None
        num_features: int
        per_image: tuple[bool, ...]
        head_hidden_size: int
        expert_width: int

    def __init__(self) -> None:
        super().__init__()
        self.channel_dim = 1
        self.per_image = (True,)

    def _init_heads(
        self,
        num_classes: int,
        in_chans: int,
        global_pool: str | None,
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
        self.run_experts: Callable[[Any, list[torch.Tensor]], list[torch.Tensor]] | None = None
        self.head = head
        for expert in self.experts:
            expert.drop_rate = drop_rate
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

    def _set_pool(self, global_pool: str | None) -> None:
        """Give every expert this pooling, and set `global_pool`, `num_features`, `expert_width`, `head_hidden_size`."""
        raise NotImplementedError

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

    def _forget_labels(self) -> None:
        cfg: Any = getattr(self, 'pretrained_cfg', None)
        if cfg:
            labels = ('label_names', 'label_descriptions')
            self.pretrained_cfg = self.default_cfg = {key: value for key, value in cfg.items() if key not in labels}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute trunk and experts in the backward pass instead of keeping their activations, or not."""
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
        The bias of a `biased_cosine` head and the names of the classes go with the old heads.

        Args:
            num_classes: Number of classes; 0 removes the heads.
            global_pool: Type of pooling; None keeps the current one, '' removes it (with `num_classes=0`).

        Raises:
            ValueError: Heads are asked for of a network pruned to its trunk, or together with `global_pool=''`.
        """
        if global_pool is None:
            global_pool = self.global_pool
        else:  # only what is asked for here is refused: timm's tests put heads on a network made without pooling
            check_head(num_classes, global_pool)
        if num_classes > 0 and not len(self.experts):
            raise ValueError('This network was pruned to its trunk and has no experts to put heads on.')
        width, changed = self.expert_width, num_classes != self.num_classes
        self.num_classes = num_classes
        self.logit_offset = None
        self._forget_labels()
        self._set_pool(global_pool)
        if self.router is not None and (changed or width != self.expert_width):
            warnings.warn('The router belongs to the old heads and is dropped.', stacklevel=2)
            self._drop_router()
        if self.head == 'biased_cosine':
            self.head = 'cosine'
            _compat.update_model_args(self, head='cosine')
        self._create_heads(get_device_dtype(self))

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
        """Feature maps of the levels in `feature_info`; those of the experts side by side in the channels.

        Args:
            x: Images, shape (B, in_chans, H, W).
            indices: Which maps: the last n, a list, or all (None).
            norm: Has no effect: the maps are those before a final norm.
            stop_early: Stop after the last wanted map.
            output_fmt: Only `NCHW`.
            intermediates_only: Return the list alone.

        Returns:
            The final features (as `forward_features`; the last wanted map after `stop_early`) and the list, or the list
            alone.

        Raises:
            ValueError: Another output format.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt={output_fmt!r} is not available; use 'NCHW'.")
        take, last = _compat.feature_take_indices(len(self.feature_info), indices)
        final, maps = self._forward_levels(x, take, last if stop_early else None)
        return maps if intermediates_only else (final, maps)

    def _forward_levels(
        self, x: torch.Tensor, take: Sequence[int], last: int | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The final features and the maps of the levels `take`; computes no further than level `last`."""
        names = [info['module'] for info in self.feature_info]
        with _recording(self, {names[level] for level in take}) as seen:
            if last is None:
                final = self.forward_features(x)
            else:
                z = _until(self, names[last], partial(self.forward_trunk, x))
                for expert in self.experts if names[last].startswith('experts.') else ():
                    _until(expert, names[last].removeprefix('experts.'), partial(expert.forward_features, z))
        maps = [torch.cat([self.as_map(part, i, x.shape[-2:]) for part in seen[names[i]]], dim=1) for i in take]
        return (maps[-1] if last is not None else final), maps

    def as_map(self, x: torch.Tensor, level: int, size: Sequence[int]) -> torch.Tensor:
        """What a module of `feature_info` puts out, as a map (B, C, H, W).

        Args:
            x: The module's output, of the trunk or of one expert.
            level: Index into `feature_info`.
            size: Height and width of the images.
        """
        return x

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the wanted feature maps do not need.

        Args:
            indices: Which maps stay available: the last n, a list, or (None) all of a pyramid, and the last three
                where all have one resolution, as `features_only=True` gives of timm's models.
            prune_norm: Remove what follows the last level of the experts, as a final norm.
            prune_head: Remove heads and pooling also when the last map stays.

        Returns:
            The indices of the maps that stay.
        """
        levels = len(self.feature_info)
        if indices is None and len({info['reduction'] for info in self.feature_info}) == 1:
            indices = min(3, levels)
        take, last = _compat.feature_take_indices(levels, indices)
        path = self.feature_info[last]['module']
        prune_end = prune_norm or last < levels - 1
        if not path.startswith('experts.'):
            self.experts = nn.ModuleList()
            self.prune_trunk(path)
        elif prune_end:
            for expert in self.experts:
                self.prune_expert(expert, path.removeprefix('experts.'))
        if prune_end:
            self.num_features = int(self.feature_info[last]['num_chs'])
        if prune_head or prune_end:
            self._drop_router()
            self.reset_classifier(0, '')
        return take

    def prune_trunk(self, path: str) -> None:
        """Remove what follows the submodule `path` of the network's trunk."""
        raise NotImplementedError

    def prune_expert(self, expert: Any, path: str) -> None:
        """Remove what follows the submodule `path` of an expert's body."""
        raise NotImplementedError

    @torch.jit.ignore
    def seeds(self, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the tensors of a plain backbone are in this network; its own heads stay as they are.

        Args:
            state_dict: Of the plain backbone; timm's names.

        Returns:
            Tensors by this network's names; what does not fit is left for the caller to refuse.
        """
        raise NotImplementedError

    @torch.jit.ignore
    def fitted(self, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A checkpoint of this network, made to fit another image size where the backbone can."""
        return dict(state_dict)

    def forward_trunk(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What every expert takes, of images `x` (B, in_chans, H, W): the tensors that cross the cut."""
        raise NotImplementedError

    def take(self, z: list[torch.Tensor], index: torch.Tensor) -> list[torch.Tensor]:
        """What the trunk put out, for some images alone.

        Args:
            z: Of `forward_trunk`.
            index: Places of the images in the batch, shape (n,), int64.
        """
        return [value[index] for value in z]

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Final features of all experts, side by side in the channels.

        Args:
            x: Images, shape (B, in_chans, H, W).

        Returns:
            Shape (B, K * channels, H', W'), or (B, ..., K * channels) where `channel_dim` is -1.
        """
        z = self.forward_trunk(x)
        if len(self.experts) == 0:
            return z[-1]
        if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript leaves out a branch of exactly this form only
            if self.run_experts is not None:
                return torch.cat(self.run_experts(self.experts, z), dim=self.channel_dim)
        parts: list[torch.Tensor] = []
        for expert in self.experts:
            parts.append(expert.forward_features(z))
        return torch.cat(parts, dim=self.channel_dim)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pool and classify.

        Args:
            x: What `forward_features` returned.
            pre_logits: Return the pre-logits (B, head_hidden_size) instead.

        Returns:
            Mean logits (B, C); in train mode after `set_expert_training(True)` a tuple of K logits (B, C).
        """
        if len(self.experts) == 0:
            return x
        width = self.num_features // self.num_experts
        parts: list[torch.Tensor] = []
        for i, expert in enumerate(self.experts):
            part = expert.forward_pool(x.narrow(self.channel_dim, i * width, width))
            parts.append(part if pre_logits or self.num_classes <= 0 else self.with_offset(i, expert.fc(part)))
        if pre_logits or self.num_classes <= 0:
            return torch.cat(parts, dim=self.channel_dim)
        if self.expert_training and self.training and not torch.jit.is_scripting():
            each: Any = tuple(parts)  # the annotation of the result is what TorchScript can read
            return each
        return torch.stack(parts).mean(dim=0)

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

    def forward_pooled(self, z: list[torch.Tensor]) -> list[torch.Tensor]:
        """Pre-logits (B, D) of every expert, from what the trunk puts out."""
        if self.run_experts is not None:
            parts = self.run_experts(self.experts, z)
        else:
            parts = [expert.forward_features(z) for expert in self.experts]
        return [expert.forward_pool(part) for expert, part in zip(self.experts, parts, strict=True)]

    @torch.jit.ignore
    def forward_experts(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of every expert, shape (B, K, C), of images `x` (B, in_chans, H, W)."""
        return self.classify(self.forward_pooled(self.forward_trunk(x)))

    @torch.jit.ignore
    def classify(self, pooled: list[torch.Tensor]) -> torch.Tensor:
        """Logits of every expert, shape (B, K, C), from the pre-logits (B, D) of each."""
        return torch.stack([self.with_offset(i, expert.fc(pooled[i])) for i, expert in enumerate(self.experts)], dim=1)

    @torch.jit.ignore
    def forward_router(self, x: torch.Tensor) -> RouterOutput:
        """Every router's and every expert's logits, whatever the routers decide.

        Args:
            x: Images, shape (B, in_chans, H, W).

        Raises:
            RuntimeError: The network has no router.
        """
        self.require_router()
        return self.ask_router(self.forward_pooled(self.forward_trunk(x)))

    @torch.jit.ignore
    def ask_router(self, pooled: list[torch.Tensor]) -> RouterOutput:
        """What `forward_router` returns, from the pre-logits (B, D) of every expert.

        Raises:
            RuntimeError: The network has no router.
        """
        router = self.require_router()
        logits = [expert.fc(p) for expert, p in zip(self.experts, pooled, strict=True)]
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


class _ReachedError(Exception):
    """The last wanted feature map is there."""


def _until(owner: nn.Module, path: str, run: Callable[[], Any]) -> Any:
    """What `run` returns; None where it ran the submodule `path`, after which it was left."""

    def stop(*_: Any) -> None:
        raise _ReachedError

    last = dict(owner.named_modules()).get(path)
    hook = last.register_forward_hook(stop) if last is not None else None
    try:
        return run()
    except _ReachedError:
        return None
    finally:
        if hook is not None:
            hook.remove()


@contextlib.contextmanager
def _recording(net: MultiExpertNet, names: set[str]) -> Iterator[dict[str, list[torch.Tensor]]]:
    """What the submodules `names` put out meanwhile, `experts.NAME` of every expert."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    hooks = []
    for name in names:
        owners = net.experts if name.startswith('experts.') else [net]
        for owner in owners:
            module = owner.get_submodule(name.removeprefix('experts.'))
            hooks.append(module.register_forward_hook(partial(_keep, seen[name])))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _keep(outputs: list[torch.Tensor], module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
    outputs.append(output)


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
