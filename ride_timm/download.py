"""`ride-timm download`: get a published weight, checked against its hashes, into the Hub's cache or a folder."""

import argparse
import difflib
import shutil
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError

from ride_timm.engine.files import check_folder
from ride_timm.errors import RideError
from ride_timm.hub import fetch, split_revision
from ride_timm.parser import Parser
from ride_timm.published import (
    CONFIG,
    SHARD_INDEX,
    WEIGHTS,
    PretrainedError,
    Weight,
    check_bytes,
    figures_alone,
    published_weights,
)
from ride_timm.publishing.shards import is_shard, merge_shards

__all__ = ['build_parser', 'download', 'main']


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm download`."""
    parser = Parser(
        prog='ride-timm download',
        description='Get a published weight and compare it with its hashes. It is then there without a connection.',
    )
    parser.add_argument('name', metavar='NAME', help='of `ride-timm weights`, or hf-hub:ORG/NAME[@REVISION]')
    parser.add_argument('--output', metavar='DIR', help="folder to write (default: the Hub's cache)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Download from a command line.

    Args:
        argv: The arguments; None means those of the process.

    Returns:
        The exit status, 0.

    Raises:
        RideError: As `download`.
    """
    args = build_parser().parse_args(argv)
    folder = download(args.name, args.output)
    source = args.name if args.output is None else f'local-dir:{folder}'
    print(f'{folder}\n  import ride_timm\n  timm.create_model({source!r}, pretrained=True)')
    return 0


def download(name: str, output: str | Path | None = None) -> Path:
    """Get the files of a published weight.

    Args:
        name: Of the index, an architecture (then its first weight), or `hf-hub:ORG/NAME[@REVISION]`.
        output: A folder to write, new or empty; by default the files stay where they are: in the installed weights, or
            in the Hub's cache.

    Returns:
        The folder that holds them; `output` is one for `timm.create_model('local-dir:FOLDER', pretrained=True)`, with
        all tensors in one file.

    Raises:
        RideError: There is no such weight, it cannot be fetched, it is not the published one, or the folder cannot be
            written.
    """
    target = None if output is None else Path(output)
    if target is not None and (target.is_file() or (target.is_dir() and any(target.iterdir()))):
        raise RideError(f'{target} exists and is not an empty folder; remove it or choose another one.')
    if target is not None:
        check_folder(target, '--output')
    if name.startswith('hf-hub:'):
        folder = fetch(*split_revision(name))
        names: Sequence[str] = (CONFIG, WEIGHTS)
    else:
        folder, names = _get(_find(name))
    return folder if target is None else _copy(folder, names, target)


def _find(name: str) -> Weight:
    weights = published_weights()
    if name in weights:
        return weights[name]
    first = next((weight for weight in weights.values() if weight.architecture == name), None)
    if first is not None:
        return first
    close = difflib.get_close_matches(name, weights, n=1, cutoff=0.5)
    hint = f', did you mean {close[0]}?' if close else ';'
    raise RideError(f'There is no published weight {name}{hint} `ride-timm weights` lists them.')


def _get(weight: Weight) -> tuple[Path, list[str]]:
    """The folder with the files of a weight, compared with their hashes, and their names."""
    if weight.is_local:
        names = [name for name in weight.files if (weight.folder / name).is_file()]
        try:
            for name in names:
                check_bytes(weight.folder / name, weight.files[name])
        except PretrainedError as error:
            raise RideError(str(error)) from None
        return weight.folder, names
    if not weight.has_tensors:
        raise RideError(figures_alone(weight))
    if weight.hub is None:
        raise RideError(
            f'The tensors of {weight.name} are not in {weight.folder} and the index pins no copy on the Hugging Face '
            'Hub; take the folder weights/ of a checkout of the project and name it in RIDE_TIMM_WEIGHTS.'
        )
    hub = weight.hub
    hashes = {name: about.sha256 for name, about in hub.files.items()}
    return fetch(hub.repo_id, hub.revision, sha256=hashes, names=list(hashes)), list(hashes)


def _copy(folder: Path, names: Sequence[str], target: Path) -> Path:
    """Copy all files, `config.json` last: without it timm takes no folder for a whole one."""
    partial = target / f'.partial-{uuid.uuid4().hex[:8]}'
    try:
        partial.mkdir(parents=True)
        for name in names:
            if not is_shard(name):
                shutil.copyfile(folder / name, partial / name)
        if SHARD_INDEX in names:
            merge_shards(folder, partial / WEIGHTS)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == CONFIG):
            path.replace(target / path.name)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise RideError(f'{target} cannot be written ({reason}); choose another folder or make room.') from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


if __name__ == '__main__':
    from ride_timm.cli import guarded

    sys.exit(guarded('download', main))
