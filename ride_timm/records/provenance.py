"""Where results come from: the commit of the code, the commands, data and checkpoints on the Hub."""

import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm

from ride_timm.records.published import published_weights

__all__ = ['add_segment', 'base_model', 'hub_datasets', 'source_commit']

_ON_THE_HUB = {'torch/cifar10': 'uoft-cs/cifar10', 'torch/cifar100': 'uoft-cs/cifar100'}


def source_commit(package: Path | None = None) -> str | None:
    """The git commit that the package's source stands at, with `-dirty` behind it where the source was changed since.

    Args:
        package: Folder of the source; this package's by default.

    Returns:
        40 hexadecimal digits, or None for a package that lies in no git checkout of its own.
    """
    folder = package or Path(__file__).resolve().parents[1]
    if not (folder.parent / '.git').exists():
        return None
    commit = _git(folder, 'rev-parse', 'HEAD')
    if commit is None:
        return None
    return f'{commit}-dirty' if _git(folder, 'status', '--porcelain', '--', '.') else commit


def _git(folder: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(
            ['git', *command], cwd=folder, capture_output=True, text=True, timeout=20, check=True
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def add_segment(
    earlier: Sequence[Mapping[str, Any]], epoch: int, command: str | None, environment: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What a run was made of, a segment for each change of command, versions or hardware where it was gone on with.

    Args:
        earlier: The segments that its checkpoint names.
        epoch: Index of the epoch that begins, from 0.
        command: The command line now.
        environment: Of `ride_timm.evaluation.writing.environment`.

    Returns:
        `epoch`, `command` (without --resume) and `environment` of each; segments without an epoch are left out.
    """
    words = [word for word in shlex.split(command or '') if not word.startswith('--resume=')]
    while '--resume' in words:
        at = words.index('--resume')
        del words[at : at + 2]
    now = {'epoch': epoch, 'command': shlex.join(words) if command else None, 'environment': dict(environment)}
    segments = [dict(segment) for segment in earlier if segment['epoch'] < epoch]
    same = segments and all(segments[-1][key] == now[key] for key in ('command', 'environment'))
    return segments if same else [*segments, now]


def hub_datasets(args: Mapping[str, Any]) -> list[str] | None:
    """The data sets of the Hugging Face Hub that a run was trained on, for the card; None if it was none of them."""
    dataset = args.get('dataset') or ''
    name = _ON_THE_HUB.get(dataset, dataset.partition('hfds/')[2])
    return [name] if re.fullmatch(r'[\w.-]+/[\w.-]+', name) and not Path(name).exists() else None


def base_model(args: Mapping[str, Any]) -> str | None:
    """The repository of the Hub whose weights a run began with, for the card; None if it was none.

    Args:
        args: The run's arguments; `init` is a repository, one of our published names, or a name of timm's.
    """
    name = str(args.get('init') or '')
    if name.startswith('hf-hub:'):
        return name.removeprefix('hf-hub:').partition('@')[0]
    checkpoint = published_weights().get(name)
    if checkpoint is not None:
        return None if checkpoint.hub is None else checkpoint.hub.repo_id
    if Path(name).exists() or not timm.is_model(name.partition('.')[0]):
        return None
    cfg = timm.get_pretrained_cfg(name)
    repository = cfg.hf_hub_id if cfg is not None else None
    return None if repository is None else str(repository).partition('@')[0]
