"""The Hub's side of `ride-timm publish`: all files in one commit, or nothing."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, ModelInfo

from ride_timm.errors import RideError
from ride_timm.inference.hub import redacted
from ride_timm.version import __version__

__all__ = ['Published', 'Target', 'upload']


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
    """The commit that holds the files, whether it is a new one, and the page of the proposal if there is one."""

    revision: str
    is_new: bool
    pull_request: str | None = None


def upload(folder: Path, target: Target, message: str) -> Published:
    """Publish the files of a folder as one commit; files of the same content are not sent.

    Args:
        folder: The files, none of them in a subfolder.
        target: Where to.
        message: The commit's message.

    Returns:
        The commit, which is the old one where every file is there already.

    Raises:
        RideError: It failed; the sentence says why, and whether anything was published.
    """
    api, repo_id = HfApi(library_name='ride-timm', library_version=__version__), target.repo_id
    try:
        api.create_repo(repo_id, private=target.private or None, exist_ok=True)
        if target.branch != 'main':
            api.create_branch(repo_id, branch=target.branch, exist_ok=True)
        before = api.model_info(repo_id, revision=target.branch, files_metadata=True)
    except Exception as error:  # the client's errors have no common base
        raise _failed(target, error, 'nothing was published') from None  # which may repeat the token
    if target.private and not before.private:
        raise RideError(f'{repo_id} is public already and nothing was published; leave --private out.')
    changed = _differing(folder, before)
    if before.sha is not None and not changed:
        return Published(before.sha, is_new=False)
    failure, revision = None, target.branch
    try:
        done = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=message, revision=target.branch,
            create_pr=target.create_pr, parent_commit=before.sha, allow_patterns=changed,
        )  # fmt: skip
        if target.create_pr:
            return Published(done.oid, is_new=True, pull_request=done.pr_url)
        revision = done.oid
    except Exception as error:
        failure = error
    if target.create_pr and failure is not None:
        page = f'{api.endpoint}/{repo_id}/discussions'
        raise _failed(target, failure, f'{page} tells whether it was proposed') from None
    # The answer alone does not tell: it may be lost although the commit was made, or the commit may lack a file that a
    # .gitignore of the repository leaves out.
    try:
        now = api.model_info(repo_id, revision=revision, files_metadata=True)
    except Exception as error:
        raise _failed(target, failure or error, 'the Hub does not tell whether it was published') from None
    wrong = _differing(folder, now)
    if now.sha is not None and not wrong:
        return Published(now.sha, is_new=True)
    if failure is None:
        raise RideError(f'{repo_id} was published at {revision} without {wrong[0]}; see whether a .gitignore names it.')
    unchanged = now.sha == before.sha
    state = 'nothing was published' if unchanged else 'its files were changed meanwhile, so look at its commits'
    raise _failed(target, failure, state) from None


def _differing(folder: Path, info: ModelInfo) -> list[str]:
    """Names of the local files that a commit has not, or not so; the Hub states git's hash of small files."""
    stated = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings or ()}
    differing = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        git = hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()
        if stated.get(path.name) not in (git, hashlib.sha256(content).hexdigest()):
            differing.append(path.name)
    return differing


def _failed(target: Target, error: Exception, state: str) -> RideError:
    advice = 'run the command again'
    if getattr(getattr(error, 'response', None), 'status_code', None) in (401, 403, 404):
        advice = '`hf auth login` with a token that may write there, or propose the commit with --create-pr'
    return RideError(f'The upload to {target.repo_id} failed ({redacted(error)}): {state}; {advice}.')
