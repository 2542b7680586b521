"""What a network is asked for before it is there, and how its images are prepared."""

from collections.abc import Mapping
from typing import Any

import timm
from timm.data import resolve_data_config
from timm.models import PretrainedCfg
from torch import nn

from ride_timm.errors import RideError, did_you_mean
from ride_timm.inference.hub import UnreachableError
from ride_timm.records.published import published_weights, results_alone

__all__ = ['DATA_CONFIG_KEYS', 'check_architecture', 'data_config', 'is_fetched', 'known_cfg', 'unreachable']

DATA_CONFIG_KEYS = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')


def check_architecture(name: str) -> None:
    """Raise a RideError with the closest name where timm knows no such architecture, or no such weights of it."""
    bare = name.partition('.')[0]
    if ':' in name:
        return
    if timm.is_model(bare):
        _check_tag(name, bare)
        return
    hint = did_you_mean(bare, timm.list_models(), '.', cutoff=0.5)
    raise RideError(f"There is no architecture {name}{hint} timm.list_models('ride_*') lists ours.")


def is_fetched(name: str) -> bool:
    """Whether the weights of a registered name come from the Hub, or its cache."""
    cfg = known_cfg(name)
    return bool(cfg is not None and cfg.hf_hub_id and not cfg.file)


def known_cfg(name: str) -> PretrainedCfg | None:
    """The pretrained cfg of a registered name; None of others, such as `hf-hub:ORG/NAME`."""
    return None if ':' in name else timm.get_pretrained_cfg(name, allow_unregistered=True)


def unreachable(weights: str, model: str) -> UnreachableError:
    """What to tell of weights to initialise from that cannot be fetched.

    Args:
        weights: Their name.
        model: The architecture to train, which a file of them has to be given with.
    """
    return UnreachableError(
        f'The weights {weights} are not in the cache and the Hugging Face Hub cannot be reached; connect once (without '
        'HF_HUB_OFFLINE=1) to fill the cache, or fetch their model.safetensors on another machine and give that file: '
        f'--init FILE --model {model}.'
    )


def data_config(model: nn.Module, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """How a network's images are prepared: timm's data configuration, with the network's own number of channels.

    Args:
        model: Any timm model.
        overrides: Options of a command; `img_size`, `mean`, `std`, `crop_pct` and `interpolation` count where set.
    """
    wanted = {key: (overrides or {}).get(key) for key in ('img_size', 'mean', 'std', 'crop_pct', 'interpolation')}
    channels: Any = getattr(model, 'in_chans', None)
    if channels:
        wanted['in_chans'] = channels
    found: dict[str, Any] = resolve_data_config({k: v for k, v in wanted.items() if v}, model=model)
    channels = channels or found['input_size'][0]
    if found['input_size'][0] != channels:  # timm takes the size of the weights that the architecture is known for
        found['input_size'] = (channels, *found['input_size'][1:])
    for key in ('mean', 'std'):
        if len(found[key]) != channels:  # as timm's loader does it
            found[key] = (sum(found[key]) / len(found[key]),) * channels
    return found


def _check_tag(name: str, architecture: str) -> None:
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:  # how timm says that the part behind the point is none of the architecture's
        checkpoint = published_weights().get(name)
        if checkpoint is not None and not checkpoint.has_tensors:
            raise RideError(results_alone(checkpoint)) from None
        known = ', '.join(timm.list_pretrained(f'{architecture}.*')) or 'none yet'
        raise RideError(
            f'There are no weights {name}; those of {architecture} are: {known}. Name one of them, or a file.'
        ) from None
