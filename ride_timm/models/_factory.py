"""What the entry points of both families share."""

import logging
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from timm.models import build_model_with_cfg, register_model, resolve_pretrained_cfg

from ride_timm import _compat
from ride_timm.records.published import PretrainedError, checkpoint_of, default_tag, is_sharded

from .checkpoint import checkpoint_filter_fn
from .multi_expert import MultiExpertNet

__all__ = [
    'build_multi_expert',
    'check_fixed',
    'create_multi_expert',
    'expert_count',
    'head_names',
    'register_entry_point',
]

_logger = logging.getLogger(__name__)
NetT = TypeVar('NetT', bound=MultiExpertNet)


def expert_count(variant: str) -> int:
    """The number of experts that an architecture's name states (`ride_resnet50_4e`: 4)."""
    match = re.search(r'_(\d+)e$', variant)
    if match is None:
        raise ValueError(f'{variant} does not end in the number of its experts, as ride_resnet50_4e does.')
    return int(match.group(1))


def head_names(num_experts: int) -> tuple[str, ...]:
    """State-dict names of the K heads, timm's `classifier`."""
    return tuple(f'experts.{k}.fc' for k in range(num_experts))


def register_entry_point(module: str, name: str, doc: str, create: Callable[..., Any]) -> None:
    """Register an architecture in timm, as a function of a module.

    Args:
        module: `__name__` of the module, which has the architecture's `default_cfgs`.
        name: The architecture.
        doc: Its docstring.
        create: Builds it, from its name, `pretrained` and keyword arguments.
    """

    def entry_point(pretrained: bool = False, **kwargs: Any) -> Any:
        return create(name, pretrained, **kwargs)

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__module__, entry_point.__doc__ = module, doc
    setattr(sys.modules[module], name, register_model(entry_point))


def check_fixed(variant: str, kwargs: Mapping[str, Any], *names: str) -> None:
    """Refuse arguments that an architecture's name fixes.

    Raises:
        TypeError: There is one of these names.
    """
    for fixed in set(names) & kwargs.keys():
        raise TypeError(
            f'{variant} was given {fixed}={kwargs[fixed]!r}, which its name fixes; choose another architecture of '
            "timm.list_models('ride_*')."
        )


def create_multi_expert(
    model_cls: type[NetT], variant: str, pretrained: bool, arch: dict[str, Any], **kwargs: Any
) -> NetT:
    """Build a network through timm's factory.

    Args:
        model_cls: The family's class.
        variant: The architecture's name; its end states the number of experts.
        pretrained: Load weights.
        arch: Arguments that make the architecture; `kwargs` win over them.
        **kwargs: Arguments of the class and of timm's factory.

    Returns:
        The network. With a published checkpoint it has what that was made with: its `channels`, say, and its router
        where the heads are kept, unless `router` is given; timm's `save_for_hf` writes these down. Without heads there
        is no router.

    Raises:
        TypeError: An unknown argument, or one that the name fixes.
        PretrainedError: The weights do not exist, or are not the published ones.
    """
    check_fixed(variant, kwargs, 'num_experts', 'block')
    arch = {**arch, 'num_experts': expert_count(variant)}
    return build_multi_expert(model_cls, variant, pretrained, arch, **kwargs)


def build_multi_expert(
    model_cls: Callable[..., NetT],
    variant: str,
    pretrained: bool,
    arch: Mapping[str, Any],
    **kwargs: Any,
) -> NetT:
    """Build a network of any number of experts through timm's factory.

    Args:
        model_cls: The family's class, or a function that builds one.
        variant: The architecture's name.
        pretrained: Load weights.
        arch: Arguments that make the architecture; those that published weights were made with win over them.
        **kwargs: Arguments of the class and of timm's factory.

    Returns:
        As `create_multi_expert`.

    Raises:
        TypeError: An unknown argument.
        PretrainedError: The weights do not exist, or are not the published ones.
    """
    if _asks_for_heads_not_kept(kwargs):
        kwargs.update(_of_new_heads(kwargs))
    made_with = _use_published(variant, kwargs) if pretrained else None
    net: Any = build_model_with_cfg(
        model_cls,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={'out_indices': None, 'feature_cls': 'getter'},
        **{**arch, **kwargs},
    )
    if made_with is not None:
        for holder in (net, getattr(net, 'model', net)):  # features_only wraps the network and copies its cfg
            holder.pretrained_cfg.pop('state_dict', None)  # the tensors are in the network now
        if not kwargs.get('features_only'):
            _compat.update_model_args(net, **made_with)
    made: NetT = net
    return made


def _use_published(variant: str, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Have timm load the checked tensors of a published checkpoint, if the arguments ask for one.

    Returns:
        The arguments that it was made with, as far as `kwargs` leave them open; None for another source.
    """
    overlay = kwargs.get('pretrained_cfg_overlay') or {}
    cfg = resolve_pretrained_cfg(variant, kwargs.get('pretrained_cfg'), overlay)
    if not (cfg.has_weights or cfg.state_dict or kwargs.get('pretrained_cfg')):
        kwargs['pretrained_cfg'] = default_tag(variant)
        cfg = resolve_pretrained_cfg(variant, kwargs['pretrained_cfg'], overlay)
        if kwargs['pretrained_cfg'] is not None:
            size = 'x'.join(map(str, cfg.input_size[1:]))
            _logger.warning(
                f'{variant}: pretrained=True loads {variant}.{cfg.tag}, {cfg.num_classes} classes at {size} pixels'
            )
    if cfg.source == 'local-dir' and cfg.file and is_sharded(Path(cfg.file)):
        raise PretrainedError(
            f'{cfg.file} holds its tensors in several files, which timm does not read from a folder; load it with '
            f'ride_timm.from_pretrained({str(cfg.file)!r}).'
        )
    checkpoint = checkpoint_of(cfg, variant)
    if checkpoint is None:
        if (overlay.get('hf_hub_id') or overlay.get('url')) and 'file' not in overlay:
            # timm prefers a file, and that of our own weights is in the cfg which the overlay changes
            kwargs['pretrained_cfg_overlay'] = {**overlay, 'file': ''}
        return None
    made_with = checkpoint.model_args
    if kwargs.get('features_only') or kwargs.get('num_classes', cfg.num_classes) != checkpoint.num_classes:
        made_with.update(_of_new_heads(made_with))
    for key, value in made_with.items():
        kwargs.setdefault(key, value)
    taken = {key: kwargs[key] for key in made_with}
    kwargs['pretrained_cfg_overlay'] = {**overlay, 'state_dict': checkpoint.load(kwargs.get('cache_dir'))}
    return taken


def _of_new_heads(made_with: Mapping[str, Any]) -> dict[str, Any]:
    """What other heads have in place of what belonged to the old ones: no router, and no bias next to the cosine."""
    return {'router': False} | ({'head': 'cosine'} if made_with.get('head') == 'biased_cosine' else {})


def _asks_for_heads_not_kept(kwargs: dict[str, Any]) -> bool:
    """Whether a folder's or Hub repository's config.json asks for what belongs to heads that are not kept.

    transformers gives the `model_args` of a config.json as arguments, and no classes for a feature extractor.
    """
    if kwargs.get('router') and kwargs.get('num_classes') == 0:
        return True
    source_args, config = kwargs.get('pretrained_model_args') or {}, kwargs.get('pretrained_cfg')
    if not (source_args.get('router') or source_args.get('head') == 'biased_cosine') or not isinstance(config, dict):
        return False
    wanted = kwargs.get('num_classes')
    return bool(kwargs.get('features_only')) or (wanted is not None and wanted != config.get('num_classes'))
