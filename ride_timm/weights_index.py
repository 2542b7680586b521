"""Keeping `index.json`, the list of published weights with the hash of every file."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ride_timm.engine.files import write_whole
from ride_timm.errors import RideError
from ride_timm.models.pretrained import INDEX, PretrainedError, read_index

__all__ = ['hash_folder', 'renew_entry']


def hash_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file of a weight's folder; hidden files are left out.

    Args:
        folder: The folder.

    Returns:
        By file name, sorted: `size` in bytes and `sha256` in hexadecimal digits.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith('.'))
    return {path.name: _about(path) for path in files}


def renew_entry(folder: Path) -> bool:
    """Bring a weight's entry in the index beside its folder up to date; a new one goes to the end.

    The pinned copy on the Hub is kept while the tensors are the same as there.

    Args:
        folder: The weight's folder, named `<architecture>.<tag>`.

    Returns:
        Whether there is an index beside the folder.

    Raises:
        RideError: The index cannot be understood, or the entry would not be a proper one.
    """
    path = folder.parent / INDEX
    if not path.is_file():
        return False
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        before = content['weights'].get(folder.name, {})
        files = hash_folder(folder)
        content['weights'][folder.name] = {'files': files, 'hub': _kept(before, files)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RideError(f'{path} cannot be understood ({error!r}); restore it first.') from error
    old = path.read_text(encoding='utf-8')
    write_whole(path, json.dumps(content, indent=2) + '\n')
    try:
        read_index(folder.parent)
    except PretrainedError as error:
        write_whole(path, old)
        raise RideError(f'{folder} does not make an entry of {path}: {error}') from error
    return True


def _about(path: Path) -> dict[str, Any]:
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256') if hasattr(hashlib, 'file_digest') else None
        if digest is None:  # Python 3.10
            digest = hashlib.sha256(file.read())
    return {'size': path.stat().st_size, 'sha256': digest.hexdigest()}


def _kept(before: dict[str, Any], files: dict[str, Any]) -> Any:
    old = before.get('files', {})
    names = {name for name in (*old, *files) if name.endswith('.safetensors')}
    return before.get('hub') if all(old.get(name) == files.get(name) for name in names) else None
