"""Tensors in several files: `model-00001-of-00002.safetensors` and so on, with `model.safetensors.index.json`."""

import re
import stat
from pathlib import Path

import torch
from safetensors.torch import save_file

from ride_timm.errors import RideError
from ride_timm.records.published import SHARD_INDEX, WEIGHTS, is_sharded
from ride_timm.records.schema import Kind, read_object, shown
from ride_timm.records.tensors import read_safetensors

__all__ = ['is_shard', 'merge_shards', 'read_shards', 'tensors_file']

_PART = r'model-\d{5}-of-\d{5}\.safetensors'
_PLACES = Kind(
    'an object that names parts of this folder, such as model-00001-of-00002.safetensors',
    lambda value: (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(name, str) and re.fullmatch(_PART, name) for name in value.values())
    ),
)


def is_shard(name: str) -> bool:
    """Whether a file belongs to tensors in several files: a part, or their index."""
    return name == SHARD_INDEX or re.fullmatch(_PART, name) is not None


def tensors_file(folder: Path) -> Path:
    """The file in a checkpoint's folder that leads to its tensors: `model.safetensors`, or the index of its parts."""
    return folder / (SHARD_INDEX if is_sharded(folder) else WEIGHTS)


def read_shards(folder: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of all parts.

    Args:
        folder: The folder with the parts and their index.

    Raises:
        RideError: A part is missing or damaged, or index and parts do not hold the same tensors.
    """
    places = read_object(folder / SHARD_INDEX, {'weight_map': _PLACES}, needed=('weight_map',))['weight_map']
    names = sorted(set(places.values()))
    missing = next((name for name in names if not (folder / name).is_file()), None)
    if missing is not None:
        raise RideError(
            f'The parts of the tensors in {folder} are not all there ({missing} is missing, as in a checkout '
            'without large files); get it, or give the name of the checkpoint instead of its folder, to have it from '
            'the Hub.'
        )
    shards = {name: read_safetensors(folder / name) for name in names}
    tensors = {}
    for key, name in places.items():
        if key not in shards[name]:
            raise RideError(
                f'The parts of the tensors in {folder} do not fit {SHARD_INDEX} ({name} lacks {shown(key)}); get them '
                'again.'
            )
        tensors[key] = shards[name].pop(key)
    extra = next((key for shard in shards.values() for key in shard), None)
    if extra is not None:
        raise RideError(
            f'The parts of the tensors in {folder} hold {extra} and {SHARD_INDEX} does not; get them again.'
        )
    return tensors


def merge_shards(folder: Path, target: Path) -> None:
    """Put the tensors of all parts into one file, which is what timm looks for in folders and on the Hub.

    Args:
        folder: The folder with the parts and their index.
        target: The file to write.

    Raises:
        RideError: As `read_shards`.
        OSError: The target cannot be written.
        SafetensorError: Likewise.
    """
    save_file(read_shards(folder), target, metadata={'format': 'pt'})
    target.chmod(stat.S_IMODE((folder / SHARD_INDEX).stat().st_mode))  # safetensors makes its file private
