"""Routes of the test Hub that look: accounts, cards, repositories, files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hub_card import check_card
from hub_store import Blob, HubError, Repository
from hub_wire import Reply, Request, route

if TYPE_CHECKING:
    from hub_server import HubServer

DATE = '2026-01-01T00:00:00.000Z'


def readable(hub: HubServer, request: Request) -> Repository:
    """The repository that the route's first group names."""
    return hub.store.readable(request.args[0], hub.account(request))


@route('GET', '/api/agent-harnesses')
def agent_harnesses(hub: HubServer, request: Request) -> Reply:
    return Reply.json({'standardEnvVars': [], 'harnesses': {}})


@route('GET', '/api/whoami-v2')
def whoami(hub: HubServer, request: Request) -> Reply:
    account = hub.store.known(hub.account(request))
    token = {'displayName': 'test', 'role': 'write' if account.can_write else 'read'}
    orgs = [{'type': 'org', 'name': name} for name in account.orgs]
    return Reply.json(
        {'type': 'user', 'name': account.user, 'orgs': orgs, 'auth': {'type': 'access_token', 'accessToken': token}}
    )


@route('POST', '/api/validate-yaml')
def validate_yaml(hub: HubServer, request: Request) -> Reply:
    errors, warnings = check_card(request.json()['content'])
    found = {'errors': errors, 'warnings': warnings}
    content = {kind: [{'message': text} for text in texts] for kind, texts in found.items()}
    return Reply.json(content, 400 if errors else 200)


@route('GET', r'/api/models/REPO(?:/revision/([^/]+))?')
def repo_info(hub: HubServer, request: Request) -> Reply:
    repository = readable(hub, request)
    head = repository.head(request.args[1] or 'main')
    siblings = [_sibling(path, blob, request.flag('blobs')) for path, blob in sorted(head.tree.items())]
    return Reply.json(
        {
            '_id': repository.id,
            'id': repository.id,
            'modelId': repository.id,
            'author': repository.namespace,
            'sha': head.sha,
            'private': repository.private,
            'gated': False,
            'disabled': False,
            'tags': [],
            'downloads': 0,
            'likes': 0,
            'createdAt': DATE,
            'lastModified': DATE,
            'siblings': siblings,
        }
    )


def _sibling(path: str, blob: Blob, details: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {'rfilename': path}
    if details:
        entry |= {'size': len(blob.data), 'blobId': blob.git_oid}
        if blob.lfs:
            entry['lfs'] = {'sha256': blob.sha256, 'size': len(blob.data), 'pointerSize': len(blob.pointer)}
    return entry


@route('GET', '/api/models/REPO/refs')
def refs(hub: HubServer, request: Request) -> Reply:
    repository = readable(hub, request)

    def named(prefix: str) -> list[dict[str, str]]:
        found = [(ref, sha) for ref, sha in repository.refs.items() if ref.startswith(prefix)]
        return [{'name': ref.removeprefix(prefix), 'ref': ref, 'targetCommit': sha} for ref, sha in found]

    pulls = named('refs/pr/')
    return Reply.json(
        {'branches': named('refs/heads/'), 'tags': named('refs/tags/'), 'converts': [], 'pullRequests': pulls}
    )


@route('GET', '/api/models/REPO/commits/([^/]+)')
def commits(hub: HubServer, request: Request) -> Reply:
    history = readable(hub, request).history(request.args[1])
    return Reply.json(
        [{'id': c.sha, 'title': c.title, 'message': '', 'date': DATE, 'authors': [{'user': 'test'}]} for c in history]
    )


@route('GET', '/api/models/REPO/tree/([^/]+)(?:/(.+))?')
def tree(hub: HubServer, request: Request) -> Reply:
    head = readable(hub, request).head(request.args[1])
    prefix = f'{request.args[2]}/' if request.args[2] else ''
    entries: dict[str, dict[str, Any]] = {}
    for path, blob in sorted(head.tree.items()):
        if not path.startswith(prefix):
            continue
        folder, slash, _ = path.removeprefix(prefix).partition('/')
        if slash and not request.flag('recursive'):
            entries[prefix + folder] = {'type': 'directory', 'path': prefix + folder, 'oid': '0' * 40}
        else:
            entries[path] = _entry(path, blob)
    if prefix and not entries:
        raise HubError(404, f'{request.args[2]} does not exist on "{request.args[1]}"', 'EntryNotFound')
    return Reply.json(list(entries.values()))


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {'type': 'file', 'path': path, 'size': len(blob.data), 'oid': blob.git_oid}
    if blob.lfs:
        entry['lfs'] = {'oid': blob.sha256, 'size': len(blob.data), 'pointerSize': len(blob.pointer)}
    return entry


@route('GET|HEAD', '/REPO/resolve/([^/]+)/(.+)')
def resolve(hub: HubServer, request: Request) -> Reply:
    """A file. Large ones live at the storage's own origin, where the answer sends the client."""
    repository = readable(hub, request)
    head = repository.head(request.args[1])
    headers = {'X-Repo-Commit': head.sha}
    blob = head.tree.get(request.args[2])
    if blob is None:
        reply = Reply.error(HubError(404, 'Entry not found', 'EntryNotFound'))
        reply.headers |= headers
        return reply
    if blob.lfs:
        headers |= {
            'Location': f'{hub.storage_url}/lfs/{repository.id}/{blob.sha256}',
            'X-Linked-Etag': f'"{blob.sha256}"',
            'X-Linked-Size': str(len(blob.data)),
        }
        return Reply(302, b'', headers)
    headers |= {'ETag': f'"{blob.etag}"', 'Accept-Ranges': 'bytes'}
    return Reply(200, blob.data, headers).part(request.headers.get('Range'))


@route('GET|HEAD', '/lfs/REPO/([0-9a-f]{64})')
def read_large(hub: HubServer, request: Request) -> Reply:
    """A large file. As at the real storage, the address is all that one needs: it holds the hash."""
    repository = hub.store.repositories.get(request.args[0])
    data = None if repository is None else repository.large.get(request.args[1])
    if data is None:
        return Reply(404, b'<Error><Code>NoSuchKey</Code></Error>')
    headers = {'ETag': f'"{request.args[1]}"', 'Accept-Ranges': 'bytes'}
    return Reply(200, data, headers).part(request.headers.get('Range'))
