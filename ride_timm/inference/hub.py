"""Fetching published networks from the Hugging Face Hub, with a sentence for whatever goes wrong.

Only `config.json` and safetensors are ever fetched, never a pickle.
"""

import contextlib
import hashlib
import os
import re
import threading
import urllib.error
from collections.abc import Iterator, Mapping
from pathlib import Path

from ride_timm.errors import RideError

__all__ = [
    'HUB_ORG', 'UnreachableError', 'fetch', 'hub_org', 'is_unreachable', 'redacted', 'split_revision',
    'without_retries',
]  # fmt: skip

HUB_ORG = 'ride-timm'
"""Organisation of our repositories on the Hub; `RIDE_TIMM_HUB_ORG` names another."""

_PATIENCE = 3.0  # seconds for a connection


class UnreachableError(RideError):
    """Weights that are not in the cache, while the Hub cannot be reached."""


def hub_org() -> str:
    """The organisation that our repositories belong to."""
    return os.environ.get('RIDE_TIMM_HUB_ORG') or HUB_ORG


def split_revision(source: str) -> tuple[str, str | None]:
    """Split `[hf-hub:]org/name[@revision]`.

    Returns:
        Repository, and revision or None.

    Raises:
        RideError: It is no repository's name.
    """
    repo_id, _, revision = source.removeprefix('hf-hub:').partition('@')
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', repo_id) or (_ and not revision):
        raise RideError(f'{source} names no repository on the Hugging Face Hub; write hf-hub:ORG/NAME[@REVISION].')
    return repo_id, revision or None


@contextlib.contextmanager
def without_retries() -> Iterator[None]:
    """Have the client look into its cache alone while the Hub cannot be reached; else it asks six times a file."""
    from huggingface_hub import constants

    known = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = known or not _is_reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = known


def _is_reachable(url: str) -> bool:
    """Whether a server answers that is able to, on whatever way the client takes to it."""
    from huggingface_hub import get_session

    found = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):  # the client's errors have no common base
            if get_session().head(url, timeout=_PATIENCE).status_code < 500:  # else the client asks again and again
                found.set()

    # a thread, since looking up a name cannot be given a time
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PATIENCE)
    return found.is_set()


def is_unreachable(error: BaseException) -> bool:
    """Whether an error of the Hub's client or of timm says that there is no way to the weights.

    Args:
        error: What was raised.
    """
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):  # the client says so too where the Hub answered with an error
        return getattr(error.__cause__, 'response', None) is None
    if isinstance(error, urllib.error.URLError):
        return not isinstance(error, urllib.error.HTTPError)
    return isinstance(error, (errors.OfflineModeIsEnabled, ConnectionError))


@without_retries()
def fetch(
    repo_id: str,
    revision: str | None = None,
    *,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    sha256: Mapping[str, str] | None = None,
) -> Path:
    """Get `config.json` and `model.safetensors` of a repository, from the cache where they are there.

    Every file is compared with the hash that the Hub states for it, and with `sha256` if given.

    Args:
        repo_id: `org/name`.
        revision: Branch, tag or commit; the default branch by default.
        cache_dir: Folder of the Hub's cache, by default the client's.
        token: For private repositories; by default the one of `hf auth login`.
        sha256: Hash by file name, which the files must have.

    Returns:
        The folder with the files; its name is the commit.

    Raises:
        RideError: It cannot be had; the sentence says why and what to do.
    """
    from huggingface_hub import hf_hub_download

    paths = []
    for name in ('config.json', 'model.safetensors'):
        try:
            path = Path(hf_hub_download(repo_id, name, revision=revision, cache_dir=cache_dir, token=token))
        except Exception as error:  # the client's errors have no common base
            raise RideError(_explained(error, repo_id, name, revision)) from None  # which may repeat the token
        _check_hash(path, (sha256 or {}).get(name))
        paths.append(path)
    return paths[-1].parent


def _check_hash(path: Path, expected: str | None) -> None:
    """Compare a file with the expected hash, and with the Hub's own, which its cache names files by.

    The Hub states the SHA-256 of large files and git's SHA-1 of all others.
    """
    stated = path.resolve().name
    content = path.read_bytes()
    for wanted in {expected, stated}:
        if wanted and re.fullmatch('[0-9a-f]{64}', wanted):
            kind, found = 'SHA-256', hashlib.sha256(content).hexdigest()
        elif wanted and re.fullmatch('[0-9a-f]{40}', wanted):
            kind, found = 'git SHA-1', hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()
        else:
            continue
        if found != wanted:
            raise RideError(
                f'{path} is damaged or a different file: its {kind} is {found[:12]}..., not {wanted[:12]}...; '
                'delete it from the cache (`hf cache`) and try again.'
            )


def _explained(error: Exception, repo_id: str, name: str, revision: str | None) -> str:
    from huggingface_hub import errors

    where = f'{repo_id}@{revision}' if revision else repo_id
    if isinstance(error, errors.RevisionNotFoundError):
        return f'{repo_id} has no revision {revision}; leave @{revision} out, or look up the commits on its page.'
    if isinstance(error, errors.RepositoryNotFoundError):  # a gated one too
        return f'There is no repository {repo_id} that you may read; check the name, or log in with `hf auth login`.'
    if is_unreachable(error):
        return (
            f'{name} of {where} is not in the cache and the Hub cannot be reached; connect once (without '
            'HF_HUB_OFFLINE=1) to fill the cache, or name a folder with local-dir:DIR.'
        )
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return f'{where} holds no {name}; name a repository that ride-timm or timm published.'
    reason = redacted(error.__cause__ or error)  # the client says of every failure that it has no connection
    return f'{name} of {where} cannot be fetched ({reason}); try again, or log in with `hf auth login`.'


def redacted(error: BaseException) -> str:
    """The message of an error in one line, without access tokens, which a server's answer may repeat."""
    from huggingface_hub import get_token

    parts = [str(error) or type(error).__name__]
    while error.__cause__ is not None:
        error = error.__cause__
        parts.append(str(error))
    text = ' '.join(': '.join(parts).split())
    token = get_token()
    if token:
        text = text.replace(token, '***')
    return re.sub(r'\bhf_\w{8,}', '***', text)[:300].rstrip('. ')
