"""What the entry points of both families share."""

import re
from typing import Any, TypeVar

from timm.models import build_model_with_cfg

from .checkpoint import checkpoint_filter_fn
from .multi_expert import MultiExpertNet

__all__ = ['create_multi_expert', 'expert_count', 'head_names']

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


def create_multi_expert(
    model_cls: type[NetT], variant: str, pretrained: bool, arch: dict[str, Any], num_maps: int, **kwargs: Any
) -> NetT:
    """Build a network through timm's factory.

    Args:
        model_cls: The family's class.
        variant: The architecture's name; its end states the number of experts.
        pretrained: Load weights.
        arch: Arguments that make the architecture; `kwargs` win over them.
        num_maps: How many feature maps the family offers.
        **kwargs: Arguments of the class and of timm's factory.

    Raises:
        TypeError: An unknown argument, or one that the name fixes.
    """
    for fixed in {'num_experts', 'block'} & kwargs.keys():
        raise TypeError(
            f'{variant} was given {fixed}={kwargs[fixed]!r}, which its name fixes; choose another architecture of '
            "timm.list_models('ride_*')."
        )
    if _asks_for_a_stale_router(kwargs):
        kwargs['router'] = False
    return build_model_with_cfg(
        model_cls,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={'out_indices': tuple(range(num_maps)), 'feature_cls': 'getter'},
        num_experts=expert_count(variant),
        **(arch | kwargs),
    )


def _asks_for_a_stale_router(kwargs: dict[str, Any]) -> bool:
    """Whether a folder's or Hub repository's config.json asks for a router whose heads are not kept."""
    source_args, config = kwargs.get('pretrained_model_args') or {}, kwargs.get('pretrained_cfg')
    if not source_args.get('router') or not isinstance(config, dict):
        return False
    wanted = kwargs.get('num_classes')
    return bool(kwargs.get('features_only')) or (wanted is not None and wanted != config.get('num_classes'))
