"""Tensors in several files: `model-00001-of-00002.safetensors` and so on, with `model.safetensors.index.json`."""

import json
import stat
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ride_timm.errors import RideError
from ride_timm.models.pretrained import SHARD_INDEX, WEIGHTS, is_sharded

__all__ = ['is_shard', 'merge_shards', 'read_shards', 'tensors_file']


def is_shard(name: str) -> bool:
    """Whether a file belongs to tensors in several files: a part, or their index."""
    return name == SHARD_INDEX or (name.startswith('model-') and name.endswith('.safetensors'))


def tensors_file(folder: Path) -> Path:
    """The file in the folder of a weight that leads to its tensors: `model.safetensors`, or the index of its parts."""
    return folder / (SHARD_INDEX if is_sharded(folder) else WEIGHTS)


def read_shards(folder: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of all parts.

    Args:
        folder: The folder with the parts and their index.

    Raises:
        RideError: A part is missing or damaged, or index and parts do not hold the same tensors.
    """
    try:
        places: dict[str, str] = json.loads((folder / SHARD_INDEX).read_text(encoding='utf-8'))['weight_map']
        missing = [name for name in sorted(set(places.values())) if not (folder / name).is_file()]
        if missing:
            raise RideError(
                f'The parts of the tensors in {folder} are not all there ({missing[0]} is missing, as in a checkout '
                'without large files); get it, or give the name of the weight instead of its folder, to have it from '
                'the Hub.'
            )
        shards = {name: load_file(folder / name) for name in sorted(set(places.values()))}
        tensors = {key: shards[name].pop(key) for key, name in places.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise RideError(
            f'The parts of the tensors in {folder} do not fit {SHARD_INDEX} ({error!r}); get them again.'
        ) from None
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
