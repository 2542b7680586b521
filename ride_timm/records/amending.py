"""Adding to a network's record in its file: the entry `ride` of a checkpoint, or of a folder's `config.json`."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ride_timm.errors import RideError
from ride_timm.files import check_writable, write_whole
from ride_timm.records.checkpoint import read_checkpoint
from ride_timm.records.kinds import CONFIG_SCHEMA
from ride_timm.records.schema import read_object

__all__ = ['amend_record', 'record_file']


def record_file(source: str) -> Path:
    """The file with the record of a network, which can be written.

    Args:
        source: As `ride_timm.load` takes it.

    Raises:
        RideError: It is no file or folder of the user's, or it cannot be written.
    """
    path = Path(source.removeprefix('local-dir:'))
    if path.is_dir():
        path = next((path / name for name in ('last.pth.tar', 'config.json') if (path / name).is_file()), path)
    elif path.suffix == '.safetensors':
        path = path.with_name('config.json')
    if not path.is_file():
        raise RideError(
            f'{source} is no local checkpoint or folder, so nothing can be noted in it; add --output DIR, which '
            'writes the network to a new folder.'
        )
    check_writable(path, 'MODEL')
    return path


def amend_record(path: Path, entries: Mapping[str, Any], model_args: Mapping[str, Any] | None = None) -> None:
    """Add entries to the record of a network, or replace them; the file's other content stays, and so it is whole.

    Args:
        path: Of `record_file`.
        entries: In the form of `TrainingRecord.to_json`.
        model_args: Arguments that the network is to be created with from now on.

    Raises:
        RideError: The file cannot be read.
    """
    if path.name == 'config.json':
        config = read_object(path, CONFIG_SCHEMA)
        config['ride'] = {**config.get('ride', {}), **entries}
        if model_args:
            config['model_args'] = {**config.get('model_args', {}), **model_args}
        write_whole(path, json.dumps(config, indent=2) + '\n')
        return
    checkpoint = read_checkpoint(path)
    checkpoint['ride'] = {**(checkpoint.get('ride') or {}), **entries}
    if model_args:
        args = checkpoint.get('args') or {}
        checkpoint['args'] = {**args, 'model_kwargs': {**(args.get('model_kwargs') or {}), **model_args}}
    file = io.BytesIO()
    torch.save(checkpoint, file)
    write_whole(path, file.getvalue())
