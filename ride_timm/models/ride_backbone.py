"""RIDE on any timm backbone.

Paper: Long-tailed Recognition by Routing Diverse Distribution-Aware Experts, ICLR 2021, arXiv:2010.01809.
The backbone up to a cut is the shared trunk; each expert has the rest of it and its own head.
"""

import copy
import functools
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import timm
import torch
from timm.models import (
    PretrainedCfg,
    generate_default_cfgs,
    get_model_args,
    get_model_traits,
    get_pretrained_cfg,
    resolve_pretrained_cfg,
)
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from ride_timm import _compat
from ride_timm.errors import RideError
from ride_timm.records.published import default_tag

from ._factory import build_multi_expert, head_names, register_entry_point
from .cut import Cut, cut, default_split, end_at, extract
from .multi_expert import Expert, MultiExpertNet

__all__ = ['RideBackbone', 'backbone_cfg', 'create_on_backbone', 'rideify']  # register_entry_point adds the names

_logger = logging.getLogger(__name__)

_OURS = ('split', 'num_classes', 'head', 'router', 'router_top_k', 'router_threshold', 'drop_rate')
_PREFIX = r'(trunk|experts\.\d+\.(body|pool))\.'
# of a backbone's cfg: what says where its weights are
_SOURCE = (
    'architecture', 'tag', 'custom_load', 'hf_hub_id', 'hf_hub_filename', 'url', 'file', 'state_dict', 'label_offset',
    'label_names', 'label_descriptions', 'origin_url', 'source', 'notes',
)  # fmt: skip


class BackboneExpert(Expert):
    """One expert: the backbone from the cut on, and its own head.

    Args:
        body: From what crosses the cut to the backbone's final features.
        pool: From there to its pre-logits.
    """

    def __init__(self, body: fx.GraphModule, pool: fx.GraphModule) -> None:
        super().__init__()
        self.body = body
        self.pool = pool

    def forward_features(self, x: list[torch.Tensor]) -> torch.Tensor:
        """Final features of this expert, from what the trunk puts out."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return _recomputed(self.body, x)
        return self.body(x)


class RideBackbone(MultiExpertNet):
    """A timm model up to a cut as the trunk, and K times the rest of it as experts.

    Args:
        host: The timm model, for example with pretrained weights; it is taken over.
        num_experts: Number K of experts.
        others: K - 1 more of the same, for experts that are drawn anew; None: every expert starts as the host's.
        split: Path of the last module of the trunk, as `stages.1` or `blocks.8`; None: `default_split`.
        num_classes: Number C of classes; 0 removes the heads.
        head: `cosine`, `biased_cosine` or `linear`.
        router: As of `RideResNet`.
        router_top_k: How many of the largest running mean logits the router sees, at most `num_classes`.
        router_threshold: The probability above which an image goes on, when none is given.
        drop_rate: Dropout before the heads.
        light: K models that differ from `host` after the cut alone, as in depth or width; the experts are theirs.

    Attributes:
        make_host: Builds the plain backbone again, with random weights; None where that is not known.
        make_light: Builds one of `light` again; None where experts are as the backbone is.

    Raises:
        RideError: The model cannot be cut, or not there.
        ValueError: Arguments that do not fit each other.
    """

    def __init__(
        self,
        host: nn.Module,
        num_experts: int = 3,
        others: Sequence[nn.Module] | None = None,
        split: str | None = None,
        num_classes: int = 1000,
        head: str = 'cosine',
        router: bool | int | None = None,
        router_top_k: int = 50,
        router_threshold: float = 0.5,
        drop_rate: float = 0.0,
        light: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.make_host: Callable[[], nn.Module] | None = None
        self.make_light: Callable[[], nn.Module] | None = None
        if num_experts < 1:
            raise ValueError(f'num_experts={num_experts} was given; a network has at least one expert.')
        for model in (host, *(others or ()), *(light or ())):
            _remove_head(model)
        self.split = default_split(host) if split is None else split
        pieces = _cut(host, self.split)
        self.per_image = pieces.per_image
        self.channel_dim = pieces.channel_dim
        if hasattr(host, 'output_fmt'):
            self.output_fmt = host.output_fmt
        self.trunk = fx.GraphModule(host, pieces.trunk)
        if light:
            host, others = light[0], light[1:]
            pieces = _lighter(pieces, host, self.split)
        first = _expert(host, pieces)
        rest = [copy.deepcopy(first) for _ in range(num_experts - 1)] if others is None else []
        self.experts = nn.ModuleList([first, *rest, *(_expert(other, pieces) for other in others or ())])
        self.train(host.training)
        self.feature_info = list(_feature_info(getattr(host, 'feature_info', None) or (), pieces, num_experts))
        self.num_prefix_tokens: Any = getattr(host, 'num_prefix_tokens', 0)
        self._traits = {key: value for key, value in get_model_traits(host).items() if key != 'first_conv'}
        self._matchers = {coarse: _ask(host, 'group_matcher', coarse=coarse) or {} for coarse in (False, True)}
        self._no_decay = sorted(_ask(host, 'no_weight_decay') or ())
        net: Any = host
        self.num_features = int(net.num_features) * num_experts
        self.expert_width = pieces.width
        self.global_pool = get_model_args(host).get('global_pool')
        parameter = next(self.parameters())
        dd = {'device': parameter.device, 'dtype': parameter.dtype}
        self._init_heads(
            num_classes, net.in_chans, self.global_pool, head, router, router_top_k, router_threshold, drop_rate, dd
        )

    def _set_pool(self, global_pool: str | None) -> None:
        if global_pool == '' != self.global_pool or not len(self.experts):
            for expert in self.experts:
                expert.pool = nn.Identity().train(self.training)
            self.expert_width = self.num_features // max(len(self.experts), 1)
        elif global_pool != self.global_pool:
            raise ValueError(
                f'The pooling of a backbone is fixed at creation; pass global_pool={global_pool!r} to create_model.'
            )
        self.global_pool = global_pool
        self.head_hidden_size = self.expert_width * max(len(self.experts), 1)

    def forward_trunk(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What every expert takes, of images `x` (B, in_chans, H, W): the tensors that cross the cut."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return _recomputed(self.trunk, x)
        return self.trunk(x)

    def take(self, z: list[torch.Tensor], index: torch.Tensor) -> list[torch.Tensor]:
        """What the trunk put out, for some images alone; what all images share stays.

        Args:
            z: Of `forward_trunk`.
            index: Places of the images in the batch, shape (n,), int64.
        """
        return [value[index] if own else value for value, own in zip(z, self.per_image, strict=True)]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The backbone's groups of parameters, of trunk and experts alike.

        Args:
            coarse: Group by stage instead of by block.
        """
        groups = self._matchers[coarse] or {'trunk': '', 'none': '$'}
        return {
            name: _placed(found) if isinstance(found, str) else found and [(_placed(each), at) for each, at in found]
            for name, found in groups.items()
        }

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The parameters that the backbone keeps from weight decay, of trunk and experts alike."""
        return {name for name, _ in self.named_parameters() if _plain(name) in self._no_decay}

    @torch.jit.ignore
    def as_map(self, x: torch.Tensor, level: int, size: Sequence[int]) -> torch.Tensor:
        """What a module of `feature_info` puts out, as a map (B, C, H, W).

        Args:
            x: The module's output: a map of either layout, or tokens (B, N, C), those of no patch first.
            level: Index into `feature_info`.
            size: Height and width of the images.
        """
        info = self.feature_info[level]
        if x.ndim == 4:
            width = info['num_chs'] // (self.num_experts if info['module'].startswith('experts.') else 1)
            as_is = x.shape[1] == width and (x.shape[3] != width or self.channel_dim == 1)
            return x if as_is else x.permute(0, 3, 1, 2)
        height, width = (math.ceil(side / info['reduction']) for side in size)
        if height * width > x.shape[1]:
            height, width = (side // info['reduction'] for side in size)
        return x[:, x.shape[1] - height * width :].transpose(1, 2).reshape(len(x), -1, height, width)

    def prune_trunk(self, path: str) -> None:
        """Remove what follows the submodule `path` of the trunk."""
        self.trunk = _shortened(self.trunk, path.removeprefix('trunk.'))

    def prune_expert(self, expert: Any, path: str) -> None:
        """Remove what follows the submodule `path` of an expert's body."""
        expert.body = _shortened(expert.body, path.removeprefix('body.'))

    @torch.jit.ignore
    def seeds(self, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the tensors of the plain backbone are in this network; its own heads stay as they are.

        Args:
            state_dict: Of the plain backbone; timm's names.

        Returns:
            Tensors by this network's names; it lacks what the backbone's lacks, but for experts that are made lighter,
            which keep what they have where the shapes differ.
        """
        plain = _filtered(dict(state_dict), self.make_host)
        own = self.state_dict()
        seeded = {name: plain[_plain(name)] for name in own if _plain(name) in plain}
        if self.make_light is not None:
            kept = {name: own[name] for name, value in seeded.items() if own[name].shape != value.shape}
            seeded |= {name: value for name, value in kept.items() if name.startswith('experts.')}
            _tell_seeded([name for name in seeded if name not in kept], own)
        return seeded | {name: value for name, value in own.items() if _plain(name) == name}

    @torch.jit.ignore
    def fitted(self, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors of this network at another image size, as the backbone's own filter resamples them.

        Args:
            state_dict: By this network's names.
        """
        own = self.state_dict()
        if all(name not in own or own[name].shape == value.shape for name, value in state_dict.items()):
            return dict(state_dict)
        fitted = dict(state_dict)
        for k in range(self.num_experts):
            names = {_plain(name): name for name in state_dict if name.startswith(('trunk.', f'experts.{k}.'))}
            names = {plain: name for plain, name in names.items() if plain != name}
            tensors = {plain: state_dict[name] for plain, name in names.items()}
            found = _filtered(tensors, self.make_light or self.make_host)
            fitted |= {names[plain]: value for plain, value in found.items() if plain in names}
        return fitted


def _filtered(plain: dict[str, torch.Tensor], make: Callable[[], nn.Module] | None) -> dict[str, torch.Tensor]:
    return plain if make is None else _compat.filter_checkpoint(plain, make())


def _plain(name: str) -> str:
    """A parameter's name in the backbone; heads and router keep theirs."""
    return re.sub(f'^{_PREFIX}', '', name)


@torch.jit.unused
def _recomputed(module: nn.Module, x: Any) -> Any:
    return checkpoint(module, x, use_reentrant=False)


def _remove_head(host: nn.Module) -> None:
    net: Any = host
    try:
        net.reset_classifier(0)  # some heads are one module with the host's classifier inside
    except Exception as error:
        raise RideError(
            f'{type(host).__name__} has a classifier that cannot be removed ({error}), so it cannot be cut.'
        ) from error


def _cut(host: nn.Module, split: str) -> Cut:
    infos: Any = getattr(host, 'feature_info', None) or ()
    return cut(host, split, [str(info['module']) for info in infos])


def _lighter(pieces: Cut, light: nn.Module, split: str) -> Cut:
    """The trunk of one model and what follows it in another one, which takes the same tensors."""
    theirs = _cut(light, split)
    if theirs.shapes != pieces.shapes:
        raise RideError(
            f'Experts of expert_kwargs take {theirs.shapes} after {split!r}, but the trunk gives {pieces.shapes}; '
            'give arguments that change only what follows the cut, such as the depth or width of the last stage.'
        )
    return theirs._replace(trunk=pieces.trunk)


def _tell_seeded(seeded: Sequence[str], own: Mapping[str, torch.Tensor]) -> None:
    """Log how much of an expert starts from the backbone."""
    names = [name for name in own if re.match(r'experts\.0\.(body|pool)\.', name)]
    if names:
        fits, all_of_it = (sum(own[name].numel() for name in part) for part in (set(names) & set(seeded), names))
        _logger.info(f'{fits / all_of_it:.0%} of the parameters of an expert start from the backbone')


def _expert(host: nn.Module, pieces: Cut) -> BackboneExpert:
    return BackboneExpert(fx.GraphModule(host, pieces.body), fx.GraphModule(host, pieces.pool))


def _shortened(module: fx.GraphModule, path: str) -> fx.GraphModule:
    """The same, ending with the submodule `path`."""
    graph = module.graph
    end = end_at(graph, path)
    if end is None:
        raise RideError(f'There is no call of {path!r} to end with.')
    (result,) = graph.output_node().args
    (x,) = graph.find_nodes(op='placeholder')
    shorter = extract(graph, x, [end] if isinstance(result, (list, tuple)) else end)
    return fx.GraphModule(module, shorter).train(module.training)


def _feature_info(infos: Sequence[Mapping[str, Any]], pieces: Cut, num_experts: int) -> Iterator[dict[str, Any]]:
    """The backbone's feature levels that are calls of the graphs."""
    for info in infos:
        for prefix, graph, times in (('experts.body.', pieces.body, num_experts), ('trunk.', pieces.trunk, 1)):
            end = end_at(graph, str(info['module']))
            if end is not None:
                yield {
                    'num_chs': info['num_chs'] * times,
                    'reduction': info['reduction'],
                    'module': f'{prefix}{end.target}',
                }
                break


def _ask(host: nn.Module, method: str, **kwargs: Any) -> Any:
    try:
        return getattr(host, method)(**kwargs)
    except (AttributeError, AssertionError):  # not every model has it, and some refuse it
        return None


def _placed(pattern: str) -> str:
    """A backbone's regular expression for names of parameters, for those of trunk and experts."""
    return rf'^{_PREFIX.replace("(", "(?:")}(?:' + re.sub(r'(^|[|(])\^', r'\1', pattern) + ')'


def rideify(backbone: str | nn.Module, num_experts: int = 3, split: str | None = None, **kwargs: Any) -> RideBackbone:
    """Turn a timm backbone into a multi-expert network.

    Args:
        backbone: A timm name, like `convnext_tiny.fb_in22k` (with `pretrained=True` its weights start trunk and every
            expert), or a model, which is copied and whose weights do so.
        num_experts: Number K of experts.
        split: Path of the last module of the trunk, like `stages.2.blocks.4` or `blocks.8`. By default the experts own
            the last stage, or the last quarter of the blocks where all have one resolution.
        **kwargs: `num_classes`, `head`, `router`, `router_top_k`, `router_threshold` and `drop_rate` as of
            `RideBackbone`; with a name also the arguments of timm.create_model and of the backbone, and
            `expert_kwargs`, arguments of the backbone that hold in the experts alone, as `{'depths': (2, 2, 8, 1)}`:
            they may change what follows the cut. What then has other shapes than the backbone is drawn.

    Returns:
        The network, images (B, in_chans, H, W) to mean logits (B, C), with new heads, each drawn for itself.

    Raises:
        RideError: It is no plain timm classifier, cannot be cut, or is not there.

    Example:
        >>> import timm, ride_timm as rt
        >>> model = rt.rideify(timm.create_model('test_vit'), num_experts=2, num_classes=5)
        >>> model.split, model.num_experts
        ('blocks.4', 2)
    """
    if isinstance(backbone, str):
        named: Any = timm.create_model('ride', backbone=backbone, num_experts=num_experts, split=split, **kwargs)
        made: RideBackbone = named
        return made
    host: Any = backbone
    if isinstance(host, MultiExpertNet) or not hasattr(host, 'num_classes'):
        raise RideError(
            f'A {type(host).__name__} was given; give the name of a timm model, or a plain timm classifier.'
        )
    kwargs.setdefault('num_classes', host.num_classes)
    net = RideBackbone(copy.deepcopy(host), num_experts, split=split, **kwargs)
    source = getattr(host, 'pretrained_cfg', None) or {}
    cfg: Any = backbone_cfg(source, num_experts) | {'architecture': 'ride'}
    net.pretrained_cfg = net.default_cfg = cfg
    _compat.update_model_args(
        net,
        **{
            **getattr(host, '_model_args', {}),
            'backbone': source.get('architecture'),
            'num_experts': num_experts,
            'split': net.split,
            **kwargs,
        },
    )
    return net


def _build(backbone: str, num_experts: int, seeded: bool, record: bool, **kwargs: Any) -> RideBackbone:
    ours = {key: kwargs.pop(key) for key in _OURS if key in kwargs}
    expert_kwargs = kwargs.pop('expert_kwargs', None)
    make_host = functools.partial(timm.create_model, backbone, num_classes=0, **kwargs)
    host = make_host(pretrained=seeded)
    if expert_kwargs:
        make_light = functools.partial(make_host, **expert_kwargs)
        try:
            light = [make_light() for _ in range(num_experts)]
        except (AssertionError, TypeError, ValueError) as error:
            raise RideError(
                f'{backbone} cannot be built with expert_kwargs={dict(expert_kwargs)} ({error}); give arguments that '
                'it takes, such as the depths of its stages.'
            ) from error
        net = RideBackbone(host, num_experts, light=light, **ours)
        net.make_light = make_light
    else:
        others = None if seeded else [make_host() for _ in range(num_experts - 1)]
        net = RideBackbone(host, num_experts, others, **ours)
    net.make_host = make_host
    if seeded and expert_kwargs:
        net.load_state_dict(net.seeds(host.state_dict()))
    named = {'backbone': backbone, 'num_experts': num_experts} if record else {}
    _compat.update_model_args(net, split=net.split, **named)
    return net


def backbone_cfg(known: PretrainedCfg | Mapping[str, Any] | None, num_experts: int) -> dict[str, Any]:
    """A network's cfg: the backbone's without its weights, with our names of first convolution and heads.

    Args:
        known: The backbone's cfg; None for an empty one.
        num_experts: Number K of experts.
    """
    cfg = known.to_dict() if isinstance(known, PretrainedCfg) else dict(known or {})
    first = cfg.get('first_conv') or ()
    first = tuple(f'trunk.{name}' for name in ((first,) if isinstance(first, str) else first))
    return {key: value for key, value in cfg.items() if key not in _SOURCE} | {
        'url': '',
        'num_classes': cfg.get('num_classes') or 1000,
        'first_conv': first[0] if len(first) == 1 else first,
        'classifier': head_names(num_experts),
    }


def create_on_backbone(variant: str, pretrained: bool, backbone: str, num_experts: int, **kwargs: Any) -> RideBackbone:
    """Build through timm's factory.

    Args:
        variant: `ride`, or an architecture whose name fixes backbone and number of experts.
        pretrained: Load weights of our own; without any, start trunk and every expert from the backbone's.
        backbone: timm's name of the backbone.
        num_experts: Number K of experts.
        **kwargs: Arguments of `RideBackbone`, of the backbone and of timm's factory.

    Raises:
        RideError: The backbone cannot be cut, or not there.
    """
    cfg = resolve_pretrained_cfg(variant, kwargs.get('pretrained_cfg'), kwargs.get('pretrained_cfg_overlay'))
    own = bool(cfg.has_weights or cfg.state_dict or default_tag(variant))
    return build_multi_expert(
        functools.partial(_build, backbone, num_experts, pretrained and not own, variant == 'ride'),
        variant,
        pretrained and own,
        {},
        **kwargs,
    )


def _create_ride(
    variant: str, pretrained: bool, backbone: str | None = None, num_experts: int = 3, **kwargs: Any
) -> RideBackbone:
    if backbone is None or not timm.is_model(backbone):
        found = 'no backbone' if backbone is None else repr(backbone)
        raise RideError(f"{found} was given; pass backbone=, a name of timm.list_models() such as 'convnext_nano'.")
    if not isinstance(kwargs.get('pretrained_cfg'), (Mapping, PretrainedCfg)):
        known = backbone_cfg(get_pretrained_cfg(backbone), num_experts)
        kwargs['pretrained_cfg'] = known | {'architecture': variant}
    return create_on_backbone(variant, pretrained, backbone, num_experts, **kwargs)


default_cfgs = generate_default_cfgs({'ride': backbone_cfg(None, 3)})
register_entry_point(
    __name__, 'ride', 'RIDE on any timm backbone: `backbone=`, `num_experts=`, `split=`; see `rideify`.', _create_ride
)
