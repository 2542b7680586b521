"""Writing the folder of a checkpoint: its tensors, in one file or several, and the `config.json` that timm reads."""

import contextlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError

from ride_timm._compat import save_config_for_hf
from ride_timm.data.descriptions import label_descriptions
from ride_timm.errors import RideError
from ride_timm.models import count_experts
from ride_timm.publishing.precision import cast_state
from ride_timm.records.published import CONFIG, WEIGHTS
from ride_timm.records.shards import is_shard

__all__ = ['save_folder', 'tensor_bytes']

_OF_OTHER_WEIGHTS = ('tag', 'test_input_size', 'test_pool_size', 'test_crop_pct')
"""What timm's cfg of an architecture says of its first published weights, not of these."""
_OF_TIMMS_TRAINING = ('origin_url', 'paper_ids', 'paper_name', 'notes')


def save_folder(
    model: torch.nn.Module,
    output: Path,
    class_names: Sequence[str] | None = None,
    class_counts: Sequence[int] | None = None,
    training: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_size: int | None = None,
    with_tensors: bool = True,
) -> None:
    """Write `model.safetensors` and then `config.json`, without which timm takes no folder for a whole one.

    Tensors that a folder had before in another number of files are removed.

    Args:
        model: What to save: a RIDE network, or any of timm's.
        output: The folder; it is created where there is none.
        class_names: Names of the classes in label order, if known.
        class_counts: Training images of each class, if known.
        training: What else users need to know of it: `loss`, `loss_kwargs`, `tau`.
        dtype: Type of the large tensors in the file, see `cast_state`.
        max_shard_size: Bytes of tensors a file; more are split by `huggingface_hub` into
            `model-00001-of-00002.safetensors` and so on, with `model.safetensors.index.json`. None: always one file.
        with_tensors: False leaves the tensors out.

    Raises:
        RideError: It cannot be written, or a tensor does not fit the type or a shard.
    """
    partial = output / f'.partial-{uuid.uuid4().hex[:8]}'
    config = partial / CONFIG
    fresh = not output.exists()
    try:
        partial.mkdir(parents=True)
        _write_config(model, config, _about(model, class_names, class_counts, training))
        if with_tensors:
            _write_tensors(cast_state(model.state_dict(), dtype), partial, max_shard_size)
        written = sorted(partial.iterdir(), key=lambda file: file.name == CONFIG)
        for file in written:
            # safetensors makes its file private; the other has the mode that the user's umask asks for
            file.chmod(stat.S_IMODE(config.stat().st_mode))
            with file.open('rb') as stream:
                os.fsync(stream.fileno())
        for file in written:
            file.replace(output / file.name)
        for file in output.iterdir():
            if (file.name == WEIGHTS or is_shard(file.name)) and file.name not in {new.name for new in written}:
                file.unlink()
    except (OSError, SafetensorError) as error:
        raise RideError(f'{output} cannot be written ({error}); choose another folder or free disk space.') from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if fresh:
            with contextlib.suppress(OSError):  # unless something was written into it
                output.rmdir()


def tensor_bytes(folder: Path) -> int:
    """Size in bytes of the files with tensors in a folder."""
    return sum(file.stat().st_size for file in folder.glob('*.safetensors'))


def _about(
    model: torch.nn.Module,
    class_names: Sequence[str] | None,
    class_counts: Sequence[int] | None,
    training: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What `config.json` holds next to timm's own entries."""
    router = getattr(model, 'router', None)
    about: dict[str, Any] = {
        'num_experts': getattr(model, 'num_experts', 1),
        'router': router is not None,
        'router_threshold': getattr(model, 'router_threshold', None),
    }
    if class_counts is not None:
        about['class_counts'] = list(class_counts)
    about.update(training or {})
    if class_names is None:
        return {'ride': about}
    # timm leaves an empty mapping out
    return {'ride': about, 'label_names': list(class_names), 'label_descriptions': label_descriptions(class_names)}


def _write_config(model: torch.nn.Module, path: Path, known: dict[str, Any]) -> None:
    save_config_for_hf(model, str(path), model_config=known)
    content = json.loads(path.read_text())
    # timm reads the number of classes from the root, and transformers passes it next to these arguments
    content['model_args'].pop('num_classes', None)
    if getattr(model, 'router', None) is not None:
        content['model_args']['router_threshold'] = model.router_threshold  # it may have been set after creation
        # transformers passes other numbers of classes next to these arguments, and the router is of these heads
        content['model_args']['router'] = model.num_classes
    cfg = content['pretrained_cfg']
    foreign = _OF_OTHER_WEIGHTS if count_experts(model) else (*_OF_OTHER_WEIGHTS, *_OF_TIMMS_TRAINING)
    stale = ('label_names', 'label_descriptions') if 'label_names' in content else ()  # the root's are these weights'
    for key in (*foreign, *stale):
        cfg.pop(key, None)
    info: Any = getattr(model, 'feature_info', None)
    if isinstance(info, list) and info and 'pool_size' in cfg:  # the architecture's is that of another image size
        cfg['pool_size'] = [-(-side // info[-1]['reduction']) for side in cfg['input_size'][1:]]
    path.write_text(json.dumps(content, indent=2) + '\n')


def _write_tensors(state: dict[str, torch.Tensor], folder: Path, max_shard_size: int | None) -> None:
    sizes = {key: tensor.numel() * tensor.element_size() for key, tensor in state.items()}
    largest = max(sizes, key=lambda key: sizes[key])
    limit = sum(sizes.values()) if max_shard_size is None else max_shard_size
    if sizes[largest] > limit:
        raise RideError(
            f'{largest} alone has {sizes[largest] / 2**20:.3g} MiB and a file may have {limit / 2**20:.3g}; give a '
            'larger --max-shard-size.'
        )
    save_torch_state_dict(state, folder, max_shard_size=limit)
