"""Keeping `index.json`, the list of published weights with the hash of every file."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ride_timm.errors import RideError, reason_of
from ride_timm.files import write_whole
from ride_timm.records.published import INDEX, SHARD_INDEX, PretrainedError, read_index
from ride_timm.records.schema import parse_object, read_text
from ride_timm.records.shards import is_shard

__all__ = ['hash_folder', 'pin_copy', 'renew_entry']


def hash_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file of a checkpoint's folder; hidden files are left out.

    Returns:
        By file name, sorted: `size` in bytes and `sha256` in hexadecimal digits.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith('.'))
    return {path.name: _about(path) for path in files}


def renew_entry(folder: Path) -> bool:
    """Bring a checkpoint's entry in the index next to its folder up to date; a new one goes to the end.

    The pinned copy on the Hub is kept while the tensors are the same as there. Parts of the tensors that are not in the
    folder, as in a checkout without large files, keep their entries while the list of the parts is the same.

    Args:
        folder: The checkpoint's folder, named `<architecture>.<tag>`.

    Returns:
        Whether there is an index next to the folder.

    Raises:
        RideError: The index cannot be understood, or the entry would not be a proper one.
    """

    def renew(weights: dict[str, Any]) -> bool:
        before = weights.get(folder.name, {})
        files = _with_absent(hash_folder(folder), before.get('files', {}))
        weights[folder.name] = {'files': files, 'hub': _kept(before, files)}
        return True

    return _change(folder, renew)


def pin_copy(folder: Path, repo_id: str, revision: str, files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Enter where a checkpoint lies on the Hub into the index next to its folder.

    Args:
        folder: The checkpoint's folder.
        repo_id: `org/name`.
        revision: The commit, 40 hexadecimal digits.
        files: Size and SHA-256 of every file there, as `hash_folder` gives them.

    Returns:
        Whether there is an index next to the folder that has the checkpoint.

    Raises:
        RideError: The index cannot be understood, or the entry would not be a proper one.
    """

    def pin(weights: dict[str, Any]) -> bool:
        if folder.name in weights:
            weights[folder.name]['hub'] = {'repo_id': repo_id, 'revision': revision, 'files': dict(files)}
        return folder.name in weights

    return _change(folder, pin)


def _change(folder: Path, change: Callable[[dict[str, Any]], bool]) -> bool:
    """Change the index next to a folder, to one that can be read, or not at all; `change` says whether there is one."""
    path = folder.parent / INDEX
    if not path.is_file():
        return False
    old = read_text(path)
    content = parse_object(old, str(path))
    try:
        if not change(content['weights']):
            return False
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RideError(f'{path} cannot be understood ({error!r}); restore it first.') from error
    write_whole(path, json.dumps(content, indent=2) + '\n')
    try:
        read_index(folder.parent)
    except PretrainedError as error:
        write_whole(path, old)
        raise RideError(f'{folder} does not make an entry of {path}: {reason_of(error)}.') from error
    return True


def _about(path: Path) -> dict[str, Any]:
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256') if hasattr(hashlib, 'file_digest') else None
        if digest is None:  # Python 3.10
            digest = hashlib.sha256(file.read())
    return {'size': path.stat().st_size, 'sha256': digest.hexdigest()}


def _with_absent(files: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The files, with the entries of the parts that are left out here."""
    if SHARD_INDEX not in files or files[SHARD_INDEX] != before.get(SHARD_INDEX):
        return files
    return dict(sorted((files | {name: about for name, about in before.items() if is_shard(name)} | files).items()))


def _kept(before: dict[str, Any], files: dict[str, Any]) -> Any:
    old = before.get('files', {})
    names = {name for name in (*old, *files) if name.endswith('.safetensors')}
    return before.get('hub') if all(old.get(name) == files.get(name) for name in names) else None
