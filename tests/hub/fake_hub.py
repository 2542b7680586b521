"""A Hugging Face Hub without a network: it answers the real client's requests through `httpx.MockTransport`.

hub.seed('me/model', {'config.json': b'{}'})
hub.before = lambda request: httpx.Response(503) if request.method == 'PUT' else None    # that request fails
hub.after = lambda request, answer: ...                                                  # or only its answer
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled

try:
    import httpx2 as httpx  # of newer clients
except ImportError:
    import httpx

__all__ = ['Commit', 'FakeHub', 'Response', 'httpx', 'refusal']

Response = httpx.Response
_STORAGE = 'https://storage.invalid'


@dataclass(frozen=True)
class Commit:
    """A state of all files, and the hash of the one before."""

    sha: str
    parent: str | None
    title: str
    files: Mapping[str, bytes]


@dataclass
class Repository:
    """Commits by branch, oldest first."""

    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {'main': []})

    def add(self, branch: str, files: Mapping[str, bytes], title: str) -> Commit:
        commits = self.branches[branch]
        parent = commits[-1].sha if commits else None
        number = sum(len(branch) for branch in self.branches.values())  # a repeated commit is a commit more
        seed = repr((number, title, sorted(files.items())))
        commits.append(Commit(hashlib.sha1(seed.encode()).hexdigest(), parent, title, dict(files)))
        return commits[-1]

    def find(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((c for branch in self.branches.values() for c in branch if c.sha == revision), None)


class FakeHub:
    """The Hub. `token` may do everything in `me` and `ride-timm`, `reader` may read public repositories and propose.

    Attributes:
        inline: Take every file into git; else safetensors go to the large file storage.
        requests: What came in.
        before: Called with every request; a response that it returns is the answer, and nothing is done.
        after: Called with every request and its answer, to replace that.
    """

    token = 'hf_' + 'w' * 34
    reader = 'hf_' + 'r' * 34

    def __init__(self, *, inline: bool = False) -> None:
        self.inline = inline
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[Any] = []
        self.before: Callable[[Any], Any] | None = None
        self.after: Callable[[Any, Any], Any] | None = None

    def seed(self, repo_id: str, files: Mapping[str, bytes], *, private: bool = False) -> Commit:
        """Commit files to `main` of a repository, which is made if there is none."""
        repository = self.repositories.setdefault(repo_id, Repository(private))
        self.large |= {hashlib.sha256(data).hexdigest(): data for data in files.values()}
        old = repository.branches['main'][-1].files if repository.branches['main'] else {}
        return repository.add('main', {**old, **files}, 'seed')

    def head(self, repo_id: str, revision: str = 'main') -> Commit:
        commit = self.repositories[repo_id].find(revision)
        assert commit is not None, revision
        return commit

    def files(self, repo_id: str, revision: str = 'main') -> Mapping[str, bytes]:
        return dict(sorted(self.head(repo_id, revision).files.items()))

    def attach(self) -> None:
        """Let the client in this process know this Hub alone."""
        transport = httpx.MockTransport(self.answer)
        set_client_factory(lambda: httpx.Client(transport=transport, follow_redirects=True))

    def run_python(self, code: str, folder: Path, env: Mapping[str, str]) -> str:
        """What a Python process prints that knows this Hub as it is now; its cache is in `folder`."""
        state = folder / 'hub.pickle'
        self.requests.clear()  # their clients cannot be pickled
        state.write_bytes(pickle.dumps(self))
        first = f'import pickle, sys; sys.path[:0] = {sys.path!r}; pickle.load(open({str(state)!r}, "rb")).attach()\n'
        own = {
            'HF_HUB_OFFLINE': '0',
            'HF_HOME': str(folder / 'home'),
            'HF_HUB_DISABLE_XET': '1',
            'HF_HUB_DISABLE_TELEMETRY': '1',
        }
        done = subprocess.run(
            [sys.executable, '-c', first + code], env={**os.environ, **own, **env}, capture_output=True, text=True,
            timeout=280, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def answer(self, request: Any) -> Any:
        """The transport's handler."""
        if constants.HF_HUB_OFFLINE:  # what the client's own factory hooks in
            raise OfflineModeIsEnabled('HF_HUB_OFFLINE is set')
        self.requests.append(request)
        answer = self.before(request) if self.before else None
        if answer is None:
            answer = self._perform(request)
            if self.after:
                answer = self.after(request, answer)
        return answer

    def _perform(self, request: Any) -> Any:
        path = request.url.raw_path.decode().partition('?')[0]  # as sent: refs%2Fpr%2F1 is one segment
        if request.url.host == 'storage.invalid':
            return self._store(request, path.rpartition('/')[2])
        if path == '/':
            return Response(200)
        if path == '/api/validate-yaml':
            return Response(200, json={'errors': [], 'warnings': []})
        if path == '/api/repos/create':
            return self._create(request)
        for pattern, handler in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match:
                return self._on_repository(request, handler, *map(unquote, match.groups()))
        return refusal(404, f'no route for {request.method} {path}')

    def _on_repository(self, request: Any, handler: Callable[..., Any], repo_id: str, *args: str) -> Any:
        repository, user = self.repositories.get(repo_id), self._user(request)
        if repository is None or (repository.private and user != 'me'):
            return refusal(404 if user else 401, 'Repository not found', 'RepoNotFound')
        writes = request.method == 'POST' and 'create_pr' not in str(request.url) and 'lfs' not in str(request.url)
        if writes and user != 'me':
            return refusal(403 if user else 401, f'Forbidden: you have no right to write to {repo_id}')
        return handler(self, request, repo_id, *args)

    def _user(self, request: Any) -> str | None:
        token = request.headers.get('Authorization', '').removeprefix('Bearer ')
        return {self.token: 'me', self.reader: 'you'}.get(token)

    def _create(self, request: Any) -> Any:
        asked = json.loads(request.content)
        if self._user(request) != 'me':
            return refusal(403 if self._user(request) else 401, 'you may not create it')
        repo_id = f'{asked.get("organization") or "me"}/{asked["name"]}'
        content = {'url': f'https://huggingface.co/{repo_id}', 'name': repo_id, 'id': repo_id}
        if repo_id in self.repositories:
            return Response(409, json=content)
        private = bool(asked.get('private')) or asked.get('visibility') == 'private'
        self.repositories[repo_id] = Repository(private)
        self.repositories[repo_id].add('main', {}, 'initial commit')
        return Response(200, json=content)

    def _is_large(self, name: str) -> bool:
        return name.endswith('.safetensors') and not self.inline

    def _info(self, request: Any, repo_id: str, revision: str = 'main') -> Any:
        commit = self.repositories[repo_id].find(revision)
        if commit is None:
            return refusal(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        siblings: list[dict[str, Any]] = []
        for name, data in sorted(commit.files.items()):
            siblings.append({'rfilename': name, 'size': len(data), 'blobId': git_hash(data)})
            if self._is_large(name):
                siblings[-1]['lfs'] = {'sha256': hashlib.sha256(data).hexdigest(), 'size': len(data), 'pointerSize': 1}
        private = self.repositories[repo_id].private
        return Response(200, json={'id': repo_id, 'sha': commit.sha, 'private': private, 'siblings': siblings})

    def _tree(self, request: Any, repo_id: str, revision: str) -> Any:
        files = self.head(repo_id, revision).files
        return Response(
            200,
            json=[{'type': 'file', 'path': n, 'size': len(d), 'oid': git_hash(d)} for n, d in files.items()],
        )

    def _branch(self, request: Any, repo_id: str, name: str) -> Any:
        branches = self.repositories[repo_id].branches
        if name in branches:
            return refusal(409, f'Reference already exists: {name}')
        branches[name] = branches['main'][:]
        return Response(201, json={})

    def _preupload(self, request: Any, repo_id: str, revision: str) -> Any:
        old = self.head(repo_id, revision).files
        answers = []
        for asked in json.loads(request.content)['files']:
            name = asked['path']
            oid = None
            if name in old:
                oid = hashlib.sha256(old[name]).hexdigest() if self._is_large(name) else git_hash(old[name])
            mode = 'lfs' if self._is_large(name) else 'regular'
            answers.append({'path': name, 'uploadMode': mode, 'shouldIgnore': False, 'oid': oid})
        return Response(200, json={'files': answers})

    def _batch(self, request: Any, repo_id: str) -> Any:
        objects: list[dict[str, Any]] = [
            {'oid': asked['oid'], 'size': asked['size']}
            | ({} if asked['oid'] in self.large else {'actions': {'upload': {'href': f'{_STORAGE}/{asked["oid"]}'}}})
            for asked in json.loads(request.content)['objects']
        ]
        return Response(200, json={'transfer': 'basic', 'objects': objects})

    def _store(self, request: Any, oid: str) -> Any:
        if request.method != 'PUT':
            return Response(200, content=self.large[oid])
        if hashlib.sha256(request.content).hexdigest() != oid:
            return Response(400, content=b'<Error><Code>BadDigest</Code></Error>')
        self.large[oid] = request.content
        return Response(200)

    def _commit(self, request: Any, repo_id: str, branch: str) -> Any:
        repository = self.repositories[repo_id]
        old = repository.branches[branch][-1]
        header, *changes = map(json.loads, request.content.splitlines())
        if header['value'].get('parentCommit', old.sha) != old.sha:
            return refusal(412, 'A commit has happened since. Please refresh and try again.')
        files = dict(old.files)
        for change in changes:
            value = change['value']
            large = change['key'] == 'lfsFile'
            files[value['path']] = self.large[value['oid']] if large else base64.b64decode(value['content'])
        content = {'success': True}
        if 'create_pr' in request.url.params:
            branch = f'refs/pr/{len(repository.branches)}'
            repository.branches[branch] = [old]
            content['pullRequestUrl'] = f'https://huggingface.co/{repo_id}/discussions/{branch[8:]}'
        made = repository.add(branch, files, header['value']['summary'])
        url = f'https://huggingface.co/{repo_id}/commit/{made.sha}'
        return Response(200, json={**content, 'commitUrl': url, 'commitOid': made.sha})

    def _resolve(self, request: Any, repo_id: str, revision: str, name: str) -> Any:
        commit = self.repositories[repo_id].find(revision)
        if commit is None:
            return refusal(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        headers, data = {'X-Repo-Commit': commit.sha}, commit.files.get(name)
        if data is None:
            return refusal(404, 'Entry not found', 'EntryNotFound', headers)
        if not self._is_large(name):
            return Response(200, content=data, headers={**headers, 'ETag': f'"{git_hash(data)}"'})
        oid = hashlib.sha256(data).hexdigest()
        headers |= {'Location': f'{_STORAGE}/{oid}', 'X-Linked-Etag': f'"{oid}"', 'X-Linked-Size': str(len(data))}
        return Response(302, headers=headers)


def refusal(status: int, message: str, code: str = '', headers: Mapping[str, str] | None = None) -> Any:
    """An answer that refuses, as the Hub words it."""
    stated = {'X-Error-Message': message, **({'X-Error-Code': code} if code else {}), **(headers or {})}
    return Response(status, json={'error': message}, headers=stated)


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


_REPO = '([^/]+/[^/]+?)'
_ROUTES: list[tuple[str, Callable[..., Any]]] = [
    (rf'/api/models/{_REPO}', FakeHub._info),
    (rf'/api/models/{_REPO}/revision/([^/]+)', FakeHub._info),
    (rf'/api/models/{_REPO}/tree/([^/]+)', FakeHub._tree),
    (rf'/api/models/{_REPO}/branch/([^/]+)', FakeHub._branch),
    (rf'/api/models/{_REPO}/preupload/([^/]+)', FakeHub._preupload),
    (rf'/api/models/{_REPO}/commit/([^/]+)', FakeHub._commit),
    (rf'/{_REPO}\.git/info/lfs/objects/batch', FakeHub._batch),
    (rf'/{_REPO}/resolve/([^/]+)/(.+)', FakeHub._resolve),
]
