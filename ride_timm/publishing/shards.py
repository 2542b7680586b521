"""Tensors in several files: `model-00001-of-00002.safetensors` and so on, with `model.safetensors.index.json`."""

import json
import stat
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ride_timm.errors import RideError
from ride_timm.models.pretrained import SHARD_INDEX

__all__ = ['is_shard', 'merge_shards']


def is_shard(name: str) -> bool:
    """Whether a file belongs to tensors in several files: a part, or their index."""
    return name == SHARD_INDEX or (name.startswith('model-') and name.endswith('.safetensors'))


def merge_shards(folder: Path, target: Path) -> None:
    """Put the tensors of all parts into one file, which is what timm looks for in folders and on the Hub.

    Args:
        folder: The folder with the parts and their index.
        target: The file to write.

    Raises:
        RideError: A part is missing or damaged, or index and parts do not hold the same tensors.
        OSError: The target cannot be written.
        SafetensorError: Likewise.
    """
    try:
        index = folder / SHARD_INDEX
        places: dict[str, str] = json.loads(index.read_text(encoding='utf-8'))['weight_map']
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
    save_file(tensors, target, metadata={'format': 'pt'})
    target.chmod(stat.S_IMODE(index.stat().st_mode))  # safetensors makes its file private
