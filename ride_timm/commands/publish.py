"""`ride-timm publish`: a packaged folder or a finished run becomes a repository on the Hugging Face Hub.

All files are uploaded in one commit, or none is. Commit and hashes are then written into the `index.json` next to an
packaged folder, which `pretrained=True` reads.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ride_timm.commands.parser import Parser
from ride_timm.commands.weights import weights_root
from ride_timm.errors import RideError, reason_of
from ride_timm.inference.hub import hub_org, split_revision
from ride_timm.logs import setup_logging
from ride_timm.publishing.index import hash_folder, pin_copy
from ride_timm.publishing.staging import Staged, stage
from ride_timm.publishing.upload import Published, Target, upload
from ride_timm.records.published import PublishedCheckpoint
from ride_timm.version import __version__

__all__ = ['build_parser', 'main', 'publish']


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm publish`."""
    parser = Parser(
        prog='ride-timm publish',
        description='Publish a packaged folder or a finished run on the Hugging Face Hub: safetensors, configuration, '
        'results and model card, in one commit. Log in first, with `hf auth login`.',
    )
    parser.add_argument('source', nargs='?', metavar='DIR', help='packaged folder or finished run')
    parser.add_argument('repo_id', nargs='?', metavar='ORG/NAME', help='the repository; created if it does not exist')
    parser.add_argument('--all', action='store_true', help=f'publish everything in the index, to {hub_org()}/<name>')
    parser.add_argument('--private', action='store_true', help='make a new repository private')
    parser.add_argument(
        '--revision', metavar='BRANCH', help='branch to commit to, created if it does not exist (default: main)'
    )
    parser.add_argument('--create-pr', action='store_true', help='propose the commit as a pull request')
    parser.add_argument(
        '--dry-run', action='store_true', help='write the folder and print the card, but upload nothing'
    )
    parser.add_argument('--output', metavar='DIR', help='folder for --dry-run (default: a temporary one)')
    parser.add_argument('--message', metavar='TEXT', help='commit message')
    parser.add_argument('--data-name', metavar='NAME', help="name of the data in a run's card (default: the folder's)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Publish from a command line."""
    args = build_parser().parse_args(argv)
    _check(args)
    setup_logging()
    if args.dry_run:
        for source, repo_id in _jobs(args):
            _rehearse(args, source, repo_id)
        return 0
    target = {'branch': args.revision or 'main', 'create_pr': args.create_pr, 'private': args.private}
    done = 0
    for source, repo_id in _jobs(args):
        try:
            publish(source, Target(repo_id, **target), message=args.message, data_name=args.data_name)
        except RideError as error:
            before = f' (of --all, {done} before it are done)' if done else ''
            failure = f'{source}: {reason_of(error)}{before}.' if args.all else str(error)
        else:
            done += 1
            continue
        raise RideError(failure)
    return 0


def publish(source: Path, target: Target, *, message: str | None = None, data_name: str | None = None) -> Published:
    """Publish one folder or run, and print how to load it.

    Args:
        source: A packaged folder or a finished run.
        target: Where to.
        message: The commit's message; by default it gives name and version.
        data_name: What the card of a run calls the data.

    Returns:
        The commit.

    Raises:
        RideError: The source is not whole, or the Hub did not take it; the sentence says what was published.
    """
    with tempfile.TemporaryDirectory(prefix='ride-timm-publish-') as temporary:
        staged = stage(source, target.repo_id, Path(temporary), data_name)
        done = upload(staged.folder, target, message or f'Publish {staged.name} with ride-timm {__version__}')
        files = hash_folder(staged.folder)
    print(_report(staged, target, done))
    if target.branch == 'main' and not target.create_pr:
        _pin(source.resolve(), target.repo_id, done.revision, files)
    return done


def _check(args: argparse.Namespace) -> None:
    if args.all == bool(args.source) or bool(args.source) != bool(args.repo_id):
        raise RideError('Name the folder and the repository ORG/NAME, or give --all and neither of them.')
    if args.repo_id and split_revision(args.repo_id)[1] is not None:
        raise RideError(f'{args.repo_id} names a revision; give the branch to commit to as --revision.')
    if args.create_pr and args.revision not in (None, 'main'):
        raise RideError('--create-pr proposes a change of main; leave --revision out.')
    if args.output and not args.dry_run:
        raise RideError('--output is the folder that --dry-run writes; add --dry-run, or leave it out.')


def _jobs(args: argparse.Namespace) -> list[tuple[Path, str]]:
    """Folders and their repositories."""
    if not args.all:
        return [(Path(args.source), args.repo_id.removeprefix('hf-hub:'))]
    root, weights = weights_root()
    here = [checkpoint for checkpoint in weights.values() if checkpoint.is_local]
    for checkpoint in weights.values():
        if not checkpoint.has_tensors:
            print(f'{checkpoint.name}: only its results are published, skipped', file=sys.stderr)
        elif not checkpoint.is_local:
            _check_absent(checkpoint)
            print(f'{checkpoint.name}: its tensors are already on the Hub and not here, skipped', file=sys.stderr)
    if not here:
        raise RideError(f'{root} holds nothing to publish; name the folder of the weights in RIDE_TIMM_WEIGHTS.')
    return [(checkpoint.folder, f'{hub_org()}/{checkpoint.name}') for checkpoint in here]


def _check_absent(checkpoint: PublishedCheckpoint) -> None:
    if checkpoint.hub is None:
        raise RideError(
            f'The tensors of {checkpoint.name} are neither in {checkpoint.folder} nor on the Hub, so nothing was '
            'published; fetch them first.'
        )


def _rehearse(args: argparse.Namespace, source: Path, repo_id: str) -> None:
    """Write the folder that would be uploaded; no request is made."""
    if args.output:
        folder = Path(args.output) / repo_id.partition('/')[2] if args.all else Path(args.output)
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise RideError(f'{folder} exists and is not an empty folder; remove it or choose another one.')
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RideError(f'{folder} cannot be created ({error.strerror}); choose another --output.') from error
    else:
        folder = Path(tempfile.mkdtemp(prefix='ride-timm-publish-'))
        made = [folder]
    try:
        staged = stage(source, repo_id, folder, args.data_name)
    except BaseException:
        _remove(folder, made)
        raise
    print(staged.card)
    names = ', '.join(f'{path.name} ({path.stat().st_size / 1e6:.2f} MB)' for path in sorted(folder.iterdir()))
    print(f'Nothing was published. {folder} holds what would go to {repo_id}: {names}')


def _remove(folder: Path, made: Sequence[Path]) -> None:
    """Leave no trace of a folder that did not become whole: neither its files nor the folders made for it."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with contextlib.suppress(OSError):  # another's files are in it by now
        for place in made:
            place.rmdir()


def _report(staged: Staged, target: Target, done: Published) -> str:
    if not done.is_new:
        first = f'{target.repo_id} holds all files of {staged.name} already, so no commit was made.'
    elif done.pull_request:
        first = f'{staged.name} is proposed to {target.repo_id}: {done.pull_request}'
    else:
        branch = '' if target.branch == 'main' else f', branch {target.branch}'
        first = f'{staged.name} is published as {target.repo_id}{branch}.'
    line = f"timm.create_model('hf-hub:{target.repo_id}@{done.revision}', pretrained=True)"
    return f'{first}\n  import ride_timm\n  {line}'


def _pin(folder: Path, repo_id: str, revision: str, files: dict[str, dict[str, object]]) -> None:
    """Write the commit into the index next to the folder, if the folder is in one."""
    try:
        if pin_copy(folder, repo_id, revision, files):
            print(f'Entered into {folder.parent / "index.json"}')
    except (OSError, RideError) as error:
        raise RideError(
            f'{repo_id} is published at {revision}, which is not in the index ({reason_of(error)}); publish it again.'
        ) from None
