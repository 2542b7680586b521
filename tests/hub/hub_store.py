"""What the test Hub holds: accounts, repositories with their whole history, and who may do what. No HTTP here."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

GITATTRIBUTES = b'*.safetensors filter=lfs diff=lfs merge=lfs -text\n'
_LARGE = ('.safetensors', '.bin', '.pt', '.pth', '.onnx', '.ckpt', '.tar', '.npz')
_SHA = re.compile(r'[0-9a-f]{40}')
_BRANCH, _TAG, _PULL = 'refs/heads/', 'refs/tags/', 'refs/pr/'


class HubError(Exception):
    """An answer that refuses: HTTP status, message, and the Hub's `X-Error-Code` where it sends one."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


def is_large(path: str, size: int) -> bool:
    """Whether the Hub wants a file in its large file storage: by name, and whatever is above 10 MB."""
    return path.endswith(_LARGE) or size > 10_000_000


@dataclass(frozen=True)
class Blob:
    """The content of a file, kept in git or, with a pointer in git, in the large file storage."""

    data: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git holds of a large file."""
        lines = ('version https://git-lfs.github.com/spec/v1', f'oid sha256:{self.sha256}', f'size {len(self.data)}')
        return ''.join(f'{line}\n' for line in lines).encode()

    @cached_property
    def git_oid(self) -> str:
        """Hash of the git object: of the pointer for a large file."""
        content = self.pointer if self.lfs else self.data
        return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        """What the Hub tells clients apart by: sha256 of large files, the git hash of all others."""
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    """A state of all files, `path -> blob`, and the state before it."""

    sha: str
    parent: str | None
    title: str
    tree: Mapping[str, Blob]


@dataclass(frozen=True)
class PullRequest:
    """A proposal; its commits are on `refs/pr/<number>`."""

    number: int
    title: str
    author: str

    @property
    def ref(self) -> str:
        return f'{_PULL}{self.number}'


@dataclass
class Repository:
    """A model repository; `refs` maps full names (`refs/heads/main`) to commits."""

    id: str
    private: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    pulls: list[PullRequest] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)  # uploaded large files by sha256, committed or not

    @property
    def namespace(self) -> str:
        return self.id.partition('/')[0]

    def find_ref(self, revision: str) -> str | None:
        """Full name of a branch, tag or pull request; None for anything else."""
        names = (f'{_BRANCH}{revision}', f'{_TAG}{revision}', revision)
        return next((name for name in names if name in self.refs), None)

    def head(self, revision: str = 'main') -> Commit:
        """The commit that a branch, tag, pull request or hash names.

        Raises:
            HubError: 404 for a revision that does not exist.
        """
        sha = self.refs.get(self.find_ref(revision) or '', revision)
        if not _SHA.fullmatch(sha) or sha not in self.commits:
            raise HubError(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return self.commits[sha]

    def history(self, revision: str = 'main') -> Iterator[Commit]:
        """The commits of a revision, newest first."""
        sha: str | None = self.head(revision).sha
        while sha is not None:
            yield self.commits[sha]
            sha = self.commits[sha].parent

    def commit(self, revision: str, tree: Mapping[str, Blob], title: str, parent: str | None = None) -> Commit:
        """Add a commit to a branch or pull request.

        Args:
            revision: Name of the branch or pull request.
            tree: All files after the commit.
            title: First line of the message.
            parent: Hash that the branch must still stand at; None takes any.

        Raises:
            HubError: 412 if the branch has moved since `parent`, 404 if there is no such branch.
        """
        ref = self.find_ref(revision)
        if ref is None or ref.startswith(_TAG):
            raise HubError(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        if parent is not None and not self.refs[ref].startswith(parent):
            raise HubError(412, 'A commit has happened since. Please refresh and try again.')
        return self._append(ref, self.refs[ref], tree, title)

    def start(self) -> Commit:
        """The first commit, which the Hub makes itself."""
        return self._append(f'{_BRANCH}main', None, {'.gitattributes': Blob(GITATTRIBUTES)}, 'initial commit')

    def branch(self, name: str, at: str = 'main', *, tag: bool = False) -> None:
        """Create a branch or tag; 409 if it exists."""
        ref = f'{_TAG if tag else _BRANCH}{name}'
        if ref in self.refs:
            raise HubError(409, f'Reference already exists: {ref}')
        self.refs[ref] = self.head(at).sha

    def open_pull(self, title: str, author: str, base: str = 'main') -> PullRequest:
        pull = PullRequest(len(self.pulls) + 1, title, author)
        self.refs[pull.ref] = self.head(base).sha
        self.pulls.append(pull)
        return pull

    def _append(self, ref: str, parent: str | None, tree: Mapping[str, Blob], title: str) -> Commit:
        # The number keeps two equal commits apart, as git's date does: a repeated commit is a commit more.
        seed = [
            self.id,
            str(len(self.commits)),
            str(parent),
            title,
            *(f'{p} {b.etag}' for p, b in sorted(tree.items())),
        ]
        commit = Commit(hashlib.sha1('\n'.join(seed).encode()).hexdigest(), parent, title, dict(tree))
        self.commits[commit.sha] = commit
        self.refs[ref] = commit.sha
        return commit


@dataclass(frozen=True)
class Account:
    """Who a token stands for. `orgs` are the organisations that the account may read, and write if it may write."""

    user: str
    orgs: tuple[str, ...] = ()
    can_write: bool = True

    def belongs_to(self, namespace: str) -> bool:
        return namespace == self.user or namespace in self.orgs


class Store:
    """Accounts by token and repositories by id. Take `lock` for whatever reads and then changes."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.repositories: dict[str, Repository] = {}
        self.lock = threading.RLock()

    def create(self, repo_id: str, *, private: bool = False) -> Repository:
        """An empty repository, which has the Hub's initial commit."""
        repository = Repository(repo_id, private)
        repository.start()
        self.repositories[repo_id] = repository
        return repository

    def account(self, authorization: str | None) -> Account | None:
        """The account of an `Authorization` header; None without one. 401 for a token that nobody was given."""
        if authorization is None:
            return None
        account = self.accounts.get(authorization.removeprefix('Bearer '))
        if account is None:
            raise HubError(401, 'Invalid credentials in Authorization header')
        return account

    def readable(self, repo_id: str, account: Account | None) -> Repository:
        """A repository that the account may see.

        The Hub does not tell a missing repository from a private one of others: 401 to the anonymous, 404 to the rest.
        """
        repository = self.repositories.get(repo_id)
        if repository is not None and not repository.private:
            return repository
        if account is None:
            raise HubError(401, 'Invalid username or password.', 'RepoNotFound')
        if repository is None or not account.belongs_to(repository.namespace):
            raise HubError(404, 'Repository not found', 'RepoNotFound')
        return repository

    def writable(self, repo_id: str, account: Account | None) -> Repository:
        """A repository that the account may change: 401 to the anonymous, 403 to those without the right."""
        repository = self.readable(repo_id, account)
        # The client takes a 401 for a missing repository by itself at https addresses only; ours are http.
        known = self.known(account, 'RepoNotFound')
        if not known.belongs_to(repository.namespace) or not known.can_write:
            raise HubError(403, f'Forbidden: you have no right to write to {repo_id}')
        return repository

    def known(self, account: Account | None, code: str | None = None) -> Account:
        """The account, or 401 for the anonymous."""
        if account is None:
            raise HubError(401, 'Invalid username or password.', code)
        return account
