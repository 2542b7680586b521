"""Fitting a checkpoint to a multi-expert network before it is loaded."""

import re
from typing import Any

import torch

from .multi_expert import MultiExpertNet

__all__ = ['checkpoint_filter_fn']

StateDict = dict[str, torch.Tensor]


def checkpoint_filter_fn(state_dict: StateDict, model: MultiExpertNet) -> StateDict:
    """What timm's loader calls on a state dict before it loads it.

    Our own checkpoints pass through, without their router where the network has none. A checkpoint of the plain
    timm backbone seeds the trunk and every expert (`MultiExpertNet.seeds`); heads are always drawn anew, each
    expert its own, because experts with equal bodies and equal heads would never part.

    timm drops the heads when the number of classes differs and then ignores every other mismatch as well, so this
    function refuses what does not fit.

    Args:
        state_dict: The tensors of the file.
        model: The network they are meant for.

    Returns:
        The tensors to load.

    Raises:
        RuntimeError: Another number of experts, other shapes, or not a checkpoint of this family.
    """
    if not any(key.startswith('experts.') for key in state_dict):
        state_dict = _seed_from_plain(state_dict, model)
    found = len({key.split('.')[1] for key in state_dict if key.startswith('experts.')})
    if found != model.num_experts:
        raise RuntimeError(
            f'The checkpoint has {found} experts and the network {model.num_experts}; create the architecture whose '
            f'name ends in _{found}e.'
        )
    state_dict = _fit_router(model.fitted(state_dict), model)
    _check_bodies(state_dict, model)
    return state_dict


def _is_head(key: str) -> bool:
    return re.match(r'experts\.\d+\.fc\.', key) is not None


def _seed_from_plain(state_dict: StateDict, model: MultiExpertNet) -> StateDict:
    seeded = model.seeds(state_dict)
    if not any(key.startswith('experts.') and not _is_head(key) for key in seeded):
        some = ', '.join(list(state_dict)[:3])
        raise RuntimeError(
            f'The checkpoint (keys {some}, ...) is neither of this package nor of the plain backbone; convert an '
            'official RIDE file with `ride-timm convert` first.'
        )
    return seeded


def _fit_router(state_dict: StateDict, model: MultiExpertNet) -> StateDict:
    own = {key: value for key, value in model.state_dict().items() if key.startswith('router.')}
    theirs = {key: value for key, value in state_dict.items() if key.startswith('router.')}
    rest = {key: value for key, value in state_dict.items() if not key.startswith('router.')}
    same = own.keys() == theirs.keys() and all(own[key].shape == theirs[key].shape for key in own)
    config = getattr(model, 'pretrained_cfg', {})
    same = same and config.get('num_classes', model.num_classes) == model.num_classes  # else its heads are not kept
    # a router that is asked for and not in the file, or sized for other heads, stays as it was drawn
    return rest | (theirs if same else own)


def _check_bodies(state_dict: StateDict, model: MultiExpertNet) -> None:
    own = model.state_dict()
    config: Any = getattr(model, 'pretrained_cfg', {})
    first: Any = config.get('first_conv') or ()
    adapted = {f'{name}.weight' for name in ((first,) if isinstance(first, str) else first)}  # timm fits the channels
    for key in state_dict:
        if key not in own and not _is_head(key):
            raise RuntimeError(
                f'The checkpoint has {key}, which the network does not have; it is of another architecture.'
            )
    for key, value in own.items():
        if _is_head(key):
            continue  # timm drops those of other classes
        if key not in state_dict:
            if key.endswith('.num_batches_tracked'):
                continue  # files from before PyTorch 0.4.1 have none, and load_state_dict knows
            raise RuntimeError(f'The checkpoint lacks {key}; it is of another architecture.')
        if state_dict[key].shape != value.shape and key not in adapted:
            raise RuntimeError(
                f'{key} has shape {tuple(state_dict[key].shape)} in the checkpoint and {tuple(value.shape)} in the '
                'network; pass the channels= that the checkpoint was made with (a plain ResNet has the full width).'
            )
