"""Checkpoints of the RIDE authors' trainer: reading them safely, and their tensors under our names.

The published files (https://github.com/frank-xwang/RIDE-LongTailRecognition) are pickles that hold, next to the
tensors, objects of the authors' own classes. They are read without importing or running anything that they name.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ride_timm.errors import RideError
from ride_timm.records.tensors import check_archive, read_safetensors

__all__ = ['from_official', 'load_official']

StateDict = dict[str, torch.Tensor]

_NORM = r'(?:weight|bias|running_mean|running_var|num_batches_tracked)'
_BLOCK = rf'\d+\.(?:conv[123]\.weight|bn[123]\.{_NORM}|downsample\.0\.weight|downsample\.1\.{_NORM})'
_WANTED = 'give a checkpoint of the RIDE trainer'


class _Inert:
    """Stands for every foreign class and function of a file: takes anything, keeps and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> Any:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _InertDict(_Inert):
    """Stands for a kind of dict: torch sets items on plain dicts alone."""

    def __new__(cls, *args: object, **kwargs: object) -> Any:
        return {}


def load_official(path: str | Path) -> StateDict:
    """Read the state dict of an official checkpoint without running anything of the file.

    Every class and function that the file names, except torch's own for tensors, is replaced by one that does
    nothing. What the calling process itself has allowed (`torch.serialization.add_safe_globals`) stays allowed.

    Args:
        path: A file of `torch.save` (PyTorch 1.6 or newer), or a state dict in safetensors.

    Returns:
        The tensors under the names that the file gives them, on the CPU.

    Raises:
        RideError: The file is missing, damaged, of another kind, or cannot be read without running parts of it.
    """
    path = Path(path)
    if not path.is_file():
        raise RideError(f'{path} {"is a folder" if path.is_dir() else "does not exist"}; {_WANTED}.')
    try:
        with path.open('rb') as file:
            start = file.read(9)
    except OSError as error:
        raise RideError(f'{path} cannot be opened ({error.strerror}); check its permissions.') from error
    if start.startswith(b'PK\x03\x04'):
        return _state_dict(_read_zip(path), path)
    if start[8:] == b'{' or path.suffix == '.safetensors':
        return _state_dict(read_safetensors(path), path)
    raise RideError(
        f'{path} is a file neither of torch.save (PyTorch 1.6 or newer) nor of safetensors; download it again or, if '
        'an older PyTorch wrote it, save it again with a newer one where it was made.'
    )


def _read_zip(path: Path) -> Any:
    try:
        check_archive(path)
        names = get_unsafe_globals_in_checkpoint(path)
    except RideError:
        raise
    except Exception as error:  # a damaged file can fail in any way
        raise RideError(f'{path} is not a complete torch.save file ({_gist(error)}); download it again.') from error
    stand_ins: list[Any] = [(_InertDict if name == 'collections.defaultdict' else _Inert, name) for name in names]
    try:
        with safe_globals(stand_ins):
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # as above; and names that torch refuses whatever stands for them
        raise RideError(
            f'{path} cannot be read without running parts of it ({_gist(error)}); nothing was run; get the '
            'checkpoint from a source that you trust.'
        ) from error


def _gist(error: BaseException) -> str:
    """What torch found, without its advice."""
    if str(error).startswith('Weights only load failed') and error.__context__ is not None:
        return _gist(error.__context__)
    return re.split(r'\s*\n|\.\s', str(error).strip(), maxsplit=1)[0].rstrip('.') or type(error).__name__


def _state_dict(content: Any, path: Path) -> StateDict:
    if isinstance(content, Mapping) and 'state_dict' in content:
        content = content['state_dict']
    if not isinstance(content, Mapping) or not content:
        raise RideError(f'{path} holds no state_dict; {_WANTED}.')
    for key, value in content.items():
        ordinary = isinstance(key, str) and isinstance(value, torch.Tensor)
        if not ordinary or value.layout != torch.strided or value.device.type != 'cpu' or value.is_quantized:
            raise RideError(f'{path} holds something else than an ordinary tensor as {key!r}; {_WANTED}.')
    return {key: value.detach() for key, value in content.items()}


def from_official(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """The tensors of an official state dict under our names.

    A cosine head (one without a bias) is stored as (in_features, C) there and as (C, in_features) here; nothing else
    changes, nor does any type.

    Args:
        state_dict: What `load_official` returns; `module.` and `backbone.` may stand in front of the keys.

    Returns:
        Trunk, experts, heads and router, as a `MultiExpertNet` names them.

    Raises:
        RideError: A key that no official checkpoint has, or a variant of the authors' code that nobody published.
    """
    official = _without_prefixes(state_dict)
    four_stages = any(re.match(r'layer4s?\.', key) for key in official)
    trunk, stages = ('12', '34') if four_stages else ('1', '23')
    _refuse_unpublished(official, stages)
    rules = _rules(trunk, stages)
    converted: StateDict = {}
    for key, value in official.items():
        name = next((match.expand(to) for rule, to in rules if (match := re.fullmatch(rule, key))), None)
        if name is None or name in converted:
            raise RideError(f'The checkpoint has the key {key}, which no official one has; {_WANTED}.')
        is_head = re.fullmatch(r'linear(s\.\d+)?\.weight', key) is not None
        cosine = is_head and key.replace('weight', 'bias') not in official
        converted[name] = value.T.contiguous() if cosine and value.ndim == 2 else value
    if 'experts.0.fc.weight' not in converted:
        raise RideError(f'The checkpoint has no linears.0.weight, the head of its first expert; {_WANTED}.')
    return converted


def _without_prefixes(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    official: StateDict = {}
    for key, value in state_dict.items():
        short = key.removeprefix('module.').removeprefix('backbone.')
        if short in official:
            raise RideError(f'The checkpoint has {short} twice, with and without a prefix; {_WANTED}, unedited.')
        official[short] = value
    return official


def _rules(trunk: str, stages: str) -> list[tuple[str, str]]:
    """Pairs of a pattern for an official key and the template of ours."""
    return [
        (rf'(conv1\.weight|bn1\.{_NORM}|layer[{trunk}]\.{_BLOCK})', r'\1'),
        (rf'(layer[{stages}])s\.(\d+)\.({_BLOCK})', r'experts.\2.\1.\3'),
        (rf'(layer[{stages}]\.{_BLOCK})', r'experts.0.\1'),
        (r'linears\.(\d+)\.(weight|bias)', r'experts.\1.fc.\2'),
        (r'linear\.(weight|bias)', r'experts.0.fc.\1'),
        (r'expert_help_pred_hidden_fcs\.(\d+)\.(weight|bias)', r'router.hidden.\1.\2'),
        (r'expert_help_pred_fc\.(weight|bias)', r'router.out.\1'),
    ]


def _refuse_unpublished(official: StateDict, stages: str) -> None:
    tops = {key.partition('.')[0] for key in official}
    if 'expert_help_pred_fcs' in tops:
        raise RideError(
            'The checkpoint has expert_help_pred_fcs.*, a router with an output of its own after every expert, which '
            'was never published and has no counterpart here; leave these keys out and train a router anew.'
        )
    own = [f'layer{stage}s' for stage in stages if f'layer{stage}s' in tops]
    shared = [f'layer{stage}' for stage in stages if f'layer{stage}' in tops]
    if own and shared:
        raise RideError(
            f'The checkpoint has {shared[0]}.* for all experts next to {own[0]}.* for each, which was never published '
            'and has no counterpart here; train one of the ride_* architectures instead.'
        )
