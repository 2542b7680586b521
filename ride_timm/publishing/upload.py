"""The Hub's side of `ride-timm publish`: all files in one commit, or nothing.

The client's own errors are never raised on, nor kept as the context of ours: what a server answers may repeat the
access token, and no message is to hold one.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import OfflineModeIsEnabled, RevisionNotFoundError

from ride_timm.errors import RideError
from ride_timm.hub import redacted
from ride_timm.version import __version__

__all__ = ['Published', 'Target', 'upload']

_logger = logging.getLogger(__name__)

_NOTHING = 'nothing was published'
_ANSWERS = {
    400: ('it refuses what was sent', 'run the command again'),
    401: ('the token is missing or not valid', '`hf auth login` with a token that may write, and run it again'),
    402: ('the account would have to pay for it', 'see its billing page'),
    403: ('the token may not do this', '`hf auth login` with one that may write there, or propose it with --create-pr'),
    404: ('it is not there, or the token may not see it', 'check the names and the token (`hf auth whoami`)'),
    409: ('the Hub is busy with another change of it', 'run the command again'),
    412: ('someone else published meanwhile', 'look at what they changed and run the command again'),
    413: ('it is too large', 'leave large files out'),
    429: ('there were too many requests', 'wait, and run the command again'),
}

T = TypeVar('T')


@dataclass(frozen=True)
class Target:
    """Where to publish.

    Attributes:
        repo_id: `org/name`.
        branch: The branch to commit to; one that does not exist begins at `main`.
        create_pr: Propose the commit instead.
        private: A new repository is to be private.
    """

    repo_id: str
    branch: str = 'main'
    create_pr: bool = False
    private: bool = False


class Published(NamedTuple):
    """What came of it: the commit that holds the files, the names that it changed, and the proposal's page if any."""

    revision: str
    changed: tuple[str, ...]
    pull_request: str | None = None


class _Remote(NamedTuple):
    """A branch on the Hub: its commit, the hash of each file (SHA-256 of large ones, else git's), its visibility."""

    revision: str
    hashes: Mapping[str, str]
    private: bool

    def differing(self, files: Mapping[str, Path]) -> tuple[str, ...]:
        """Names of the local files that it has not, or not so."""
        return tuple(name for name, path in files.items() if self.hashes.get(name) not in _hashes(path))


class _Failure(NamedTuple):
    """Why a request failed and what helps; `status` is the answer's, `path` the request's, None without one."""

    why: str
    advice: str
    status: int | None
    path: str | None


def upload(folder: Path, target: Target, message: str) -> Published:
    """Publish the files of a folder as one commit; files of the same content are not sent.

    Args:
        folder: The files, none of them in a subfolder.
        target: Where to.
        message: The commit's message.

    Returns:
        The commit, which is the old one where every file is there already.

    Raises:
        RideError: It failed; the sentence names the file or step and says whether anything was published.
    """
    files = {path.name: path for path in sorted(folder.iterdir())}
    api, repo_id = HfApi(library_name='ride-timm', library_version=__version__), target.repo_id
    _attempt(
        f'{repo_id} cannot be created or opened',
        lambda: api.create_repo(repo_id, private=target.private or None, exist_ok=True),
    )
    before = _open_branch(api, target)
    if target.private and not before.private:
        raise RideError(f'{repo_id} is public already and {_NOTHING}; leave --private out, or hide it in its settings.')
    changed = before.differing(files)
    if not changed:
        return Published(before.revision, ())
    operations = [CommitOperationAdd(name, str(files[name])) for name in changed]
    options: dict[str, Any] = {'revision': target.branch, 'create_pr': target.create_pr}
    for operation in operations:  # one by one, to know which one failed
        _attempt(
            f'{operation.path_in_repo} cannot be uploaded to {repo_id}',
            partial(api.preupload_lfs_files, repo_id, [operation], free_memory=False, **options),
        )
    published = _commit(api, target, files, before, operations, message)
    if not target.create_pr:
        _check_arrived(api, target, files, published)
    return published._replace(changed=changed)


def _open_branch(api: HfApi, target: Target) -> _Remote:
    """The branch as it stands, after it was made if there is none."""
    what = f'The files of {target.repo_id} cannot be listed'

    def look() -> _Remote | None:
        try:
            return _look(api, target.repo_id, target.branch)
        except RevisionNotFoundError:
            return None

    found = _attempt(what, look)
    if found is not None:
        return found
    _attempt(
        f'The branch {target.branch} of {target.repo_id} cannot be created',
        lambda: api.create_branch(target.repo_id, branch=target.branch, exist_ok=True),
    )
    return _attempt(what, lambda: _look(api, target.repo_id, target.branch))


def _look(api: HfApi, repo_id: str, revision: str) -> _Remote:
    info = api.model_info(repo_id, revision=revision, files_metadata=True)
    if info.sha is None:
        raise ValueError('the answer names no commit')
    hashes = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id or '' for file in info.siblings or ()}
    return _Remote(info.sha, hashes, bool(info.private))


def _hashes(path: Path) -> tuple[str, str]:
    """SHA-256 of a file, and the hash that git gives it."""
    content = path.read_bytes()
    return hashlib.sha256(content).hexdigest(), hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


def _commit(
    api: HfApi,
    target: Target,
    files: Mapping[str, Path],
    before: _Remote,
    operations: list[CommitOperationAdd],
    message: str,
) -> Published:
    """Send the commit; where its answer is lost, it is found out whether it was made."""

    def send() -> Published:
        info = api.create_commit(
            target.repo_id, operations, commit_message=message, revision=target.branch, create_pr=target.create_pr,
            parent_commit=before.revision,
        )  # fmt: skip
        if not re.fullmatch('[0-9a-f]{40}', info.oid):
            raise ValueError(f'the answer names {info.oid!r} as the commit')
        return Published(info.oid, (), info.pr_url)

    done, failure = _try(send)
    if failure is None:
        assert done is not None
        return done
    return _settle(api, target, files, before, failure)


def _settle(api: HfApi, target: Target, files: Mapping[str, Path], before: _Remote, failure: _Failure) -> Published:
    """What became of a commit that failed: made all the same, or an error that says so."""
    if failure.path is not None and failure.path.endswith('/validate-yaml'):
        raise _failed(f'README.md is not taken by {target.repo_id}', failure)
    refused = failure.status is not None and failure.status < 500 and failure.status not in (408, 412)
    what = f'The commit to {target.repo_id} failed'
    if refused:
        raise _failed(what, failure)
    if target.create_pr:
        page = f'{api.endpoint}/{target.repo_id}/discussions'
        raise RideError(
            f'{what}, because {failure.why}; nothing was published, and {page} tells whether it was proposed.'
        )
    now, _ = _try(lambda: _look(api, target.repo_id, target.branch))
    if now is None:
        raise RideError(
            f'{what}, because {failure.why}, and the Hub does not tell whether it was made; run the command again, '
            'which finds out.'
        )
    if not now.differing(files):
        _logger.info(f'the answer to the commit was lost ({failure.why}), and {target.repo_id} has it')
        return Published(now.revision, ())
    if now.revision != before.revision and failure.status != 412:
        raise RideError(
            f'{what}, because {failure.why}, and {target.repo_id} has changed meanwhile; look at its commits and run '
            'the command again.'
        )
    raise _failed(what, failure)


def _check_arrived(api: HfApi, target: Target, files: Mapping[str, Path], published: Published) -> None:
    """Compare what the commit holds with what was sent."""
    now, failure = _try(lambda: _look(api, target.repo_id, published.revision))
    if now is None:
        assert failure is not None
        _logger.warning(f'{target.repo_id} has the commit and could not be asked for its files, because {failure.why}')
        return
    wrong = now.differing(files)
    if wrong:
        raise RideError(
            f'{target.repo_id} was published at {published.revision} and its {wrong[0]} is not the file that was sent; '
            'see whether a .gitignore there leaves it out, and publish again.'
        )


def _attempt(what: str, call: Callable[[], T]) -> T:
    """Run a step before the commit; `what` begins the sentence of its failure."""
    done, failure = _try(call)
    if failure is not None:
        raise _failed(what, failure)
    return done  # type: ignore[return-value]


def _try(call: Callable[[], T]) -> tuple[T | None, _Failure | None]:
    """The result, or the failure; raising outside of `except` keeps the client's error out of the new one's context."""
    try:
        return call(), None
    except Exception as error:  # the client's errors have no common base
        return None, _explained(error)


def _failed(what: str, failure: _Failure) -> RideError:
    return RideError(f'{what}, because {failure.why}; {_NOTHING}, so {failure.advice}.')


def _explained(error: BaseException) -> _Failure:
    root = _root(error)
    response = getattr(root, 'response', None)
    text = _short(getattr(root, 'server_message', None) or str(root))
    if response is not None:
        why, advice = _ANSWERS.get(response.status_code, ('the Hub has trouble', 'run the command again later'))
        why = f'{why} ({response.status_code}: {text})' if text else f'{why} ({response.status_code})'
        return _Failure(why, advice, response.status_code, response.request.url.path)
    if isinstance(root, OfflineModeIsEnabled):
        return _Failure('HF_HUB_OFFLINE is set', 'unset it and run the command again', None, None)
    if _is_of_the_network(root):
        request = getattr(root, '_request', None)  # asking for the public one raises where there is none
        why = f'there is no connection to the Hub or it was lost ({type(root).__name__}: {text})'
        return _Failure(why, 'run the command again', None, None if request is None else request.url.path)
    if isinstance(root, OSError) and root.strerror:
        return _Failure(f'of this machine: {root.strerror}', 'put that right and run the command again', None, None)
    if str(root).startswith('Invalid metadata in README.md'):
        return _Failure(text, 'put the card right and run the command again', None, '/api/validate-yaml')
    return _Failure(f'{type(root).__name__}: {text}', 'run the command again', None, None)


def _root(error: BaseException) -> BaseException:
    """The error that says most: that with the Hub's answer, that of the network, or the one it all began with."""
    chain = [error]
    while chain[-1].__cause__ is not None:  # an upload's error names the file and has the reason as its cause
        chain.append(chain[-1].__cause__)
    answered = (item for item in chain if getattr(item, 'response', None) is not None)
    return next(answered, None) or next((item for item in chain if _is_of_the_network(item)), chain[-1])


def _is_of_the_network(error: BaseException) -> bool:
    """Whether it is of the client's HTTP library, whose name differs between its versions."""
    return type(error).__module__.startswith('httpx') or isinstance(error, (ConnectionError, TimeoutError))


def _short(text: str) -> str:
    return redacted(' '.join(text.split()))[:200].rstrip('. ')
