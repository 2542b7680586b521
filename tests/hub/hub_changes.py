"""Routes of the test Hub that change: repositories, uploads, commits, pull requests."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

from hub_card import check_card
from hub_routes import DATE, readable
from hub_store import Blob, Commit, HubError, PullRequest, Repository, is_large
from hub_wire import Reply, Request, route

if TYPE_CHECKING:
    from hub_server import HubServer


def _writable(hub: HubServer, request: Request) -> Repository:
    return hub.store.writable(request.args[0], hub.account(request))


def _proposable(hub: HubServer, request: Request) -> Repository:
    """A repository for a change that everybody may propose who has an account and sees it."""
    account = hub.account(request)
    repository = hub.store.readable(request.args[0], account)
    hub.store.known(account, 'RepoNotFound')
    return repository


@route('POST', '/api/repos/create')
def create_repo(hub: HubServer, request: Request) -> Reply:
    asked = request.json()
    account = hub.store.known(hub.account(request))
    namespace = asked.get('organization') or account.user
    if not account.belongs_to(namespace) or not account.can_write:
        raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
    repo_id = f'{namespace}/{asked["name"]}'
    answer = {'url': f'{hub.url}/{repo_id}', 'name': repo_id, 'id': repo_id}
    if repo_id in hub.store.repositories:
        reply = Reply.error(HubError(409, 'You already created this model repo'))
        reply.body = json.dumps({'error': 'You already created this model repo', **answer}).encode()
        return reply
    hub.store.create(repo_id, private=asked.get('visibility') == 'private' or bool(asked.get('private')))
    return Reply.json(answer)


@route('PUT', '/api/models/REPO/settings')
def change_settings(hub: HubServer, request: Request) -> Reply:
    repository, asked = _writable(hub, request), request.json()
    if 'visibility' in asked:
        repository.private = asked['visibility'] == 'private'
    return Reply.json({'private': repository.private})


@route('POST', '/api/models/REPO/(branch|tag)/([^/]+)')
def create_ref(hub: HubServer, request: Request) -> Reply:
    """`branch/<new>` with a `startingPoint` in the body, or `tag/<revision>` with the new name there."""
    repository, (_, kind, name) = _writable(hub, request), request.args
    asked = request.json() if request.body else {}
    if kind == 'branch':
        repository.branch(name, asked.get('startingPoint', 'main'))
    else:
        repository.branch(asked['tag'], name, tag=True)
    return Reply.json({}, 201)


@route('POST', '/api/models/REPO/preupload/([^/]+)')
def preupload(hub: HubServer, request: Request) -> Reply:
    proposal = request.flag('create_pr') or request.args[1].startswith('refs/pr/')
    repository = (_proposable if proposal else _writable)(hub, request)
    tree = repository.head(request.args[1]).tree
    files = []
    for asked in request.json()['files']:
        path, old = asked['path'], tree.get(asked['path'])
        mode = 'lfs' if not hub.inline and is_large(path, asked['size']) else 'regular'
        files.append({'path': path, 'uploadMode': mode, 'shouldIgnore': False, 'oid': old and old.etag})
    return Reply.json({'files': files})


@route('POST', r'/REPO\.git/info/lfs/objects/batch')
def lfs_batch(hub: HubServer, request: Request) -> Reply:
    asked = request.json()
    branch = asked.get('ref', {}).get('name')
    proposal = branch is None or branch.startswith('refs/pr/')  # pull requests to be opened have no name yet
    repository = (_proposable if proposal else _writable)(hub, request)
    verify = f'{hub.url}/{repository.id}.git/info/lfs/objects/verify'
    objects: list[dict[str, Any]] = []
    for wanted in asked['objects']:
        answer = {'oid': wanted['oid'], 'size': wanted['size']}
        if wanted['oid'] not in repository.large:
            upload = f'{hub.storage_url}/lfs/{repository.id}/{wanted["oid"]}'
            answer['actions'] = {'upload': {'href': upload}, 'verify': {'href': verify}}
        objects.append(answer)
    return Reply.json({'transfer': 'basic', 'objects': objects})


@route('PUT', '/lfs/REPO/([0-9a-f]{64})')
def lfs_upload(hub: HubServer, request: Request) -> Reply:
    """The storage takes what has the hash of its address, and nothing else."""
    if hashlib.sha256(request.body).hexdigest() != request.args[1]:
        return Reply(400, b'<Error><Code>BadDigest</Code></Error>', {'Content-Type': 'application/xml'})
    hub.store.repositories[request.args[0]].large[request.args[1]] = request.body
    return Reply(200, b'', {'ETag': f'"{request.args[1]}"'})


@route('POST', r'/REPO\.git/info/lfs/objects/verify')
def lfs_verify(hub: HubServer, request: Request) -> Reply:
    repository, asked = _proposable(hub, request), request.json()
    if len(repository.large.get(asked['oid'], b'')) != asked['size']:
        raise HubError(404, 'The object was not uploaded')
    return Reply.json({})


@route('POST', '/api/models/REPO/commit/([^/]+)')
def commit(hub: HubServer, request: Request) -> Reply:
    revision = request.args[1]
    proposal = request.flag('create_pr') or revision.startswith('refs/pr/')
    repository = (_proposable if proposal else _writable)(hub, request)
    base = repository.head(revision)
    lines = request.ndjson()
    header = next(line['value'] for line in lines if line['key'] == 'header')
    tree = _changed_tree(repository, base, [line for line in lines if line['key'] != 'header'])
    answer: dict[str, Any] = {'success': True, 'hookOutput': ''}
    if request.flag('create_pr'):
        account = hub.store.known(hub.account(request))
        pull = repository.open_pull(header['summary'], account.user, revision)
        revision, answer['pullRequestUrl'] = pull.ref, f'{hub.url}/{repository.id}/discussions/{pull.number}'
    made = repository.commit(revision, tree, header['summary'], header.get('parentCommit'))
    return Reply.json(answer | {'commitUrl': f'{hub.url}/{repository.id}/commit/{made.sha}', 'commitOid': made.sha})


def _changed_tree(repository: Repository, base: Commit, changes: list[dict[str, Any]]) -> dict[str, Blob]:
    tree = dict(base.tree)
    for change in changes:
        kind, value = change['key'], change['value']
        path = value['path']
        if kind == 'file':
            tree[path] = Blob(base64.b64decode(value['content'], validate=True))
        elif kind == 'lfsFile':
            if value['oid'] not in repository.large:
                raise HubError(400, f'LFS pointer pointed to a file that does not exist: {path}')
            tree[path] = Blob(repository.large[value['oid']], lfs=True)
        elif kind in ('deletedFile', 'deletedFolder'):
            gone = [p for p in tree if p == path or (kind == 'deletedFolder' and p.startswith(f'{path.rstrip("/")}/'))]
            if not gone:
                raise HubError(404, "A file with this name doesn't exist", 'EntryNotFound')
            for name in gone:
                del tree[name]
        else:
            raise HubError(400, f'unknown operation {kind}')
        if path == 'README.md' and path in tree:
            _demand_card(tree[path])
    return tree


def _demand_card(blob: Blob) -> None:
    errors, _ = check_card(blob.data.decode())
    if errors:
        raise HubError(400, f'Invalid metadata in README.md: {"; ".join(errors)}')


@route('POST', '/api/models/REPO/discussions')
def open_pull(hub: HubServer, request: Request) -> Reply:
    repository, asked = _proposable(hub, request), request.json()
    if not asked.get('pullRequest'):
        raise HubError(400, 'the test Hub knows pull requests only')
    pull = repository.open_pull(asked['title'], hub.store.known(hub.account(request)).user)
    return Reply.json(_details(repository, pull))


@route('GET', '/api/models/REPO/discussions')
def list_pulls(hub: HubServer, request: Request) -> Reply:
    repository = readable(hub, request)
    pulls = [_details(repository, pull) for pull in repository.pulls]
    return Reply.json({'discussions': pulls, 'count': len(pulls), 'start': 0})


@route('GET', r'/api/models/REPO/discussions/(\d+)')
def pull_details(hub: HubServer, request: Request) -> Reply:
    repository = readable(hub, request)
    for pull in repository.pulls:
        if pull.number == int(request.args[1]):
            return Reply.json(_details(repository, pull))
    raise HubError(404, 'Discussion not found')


def _details(repository: Repository, pull: PullRequest) -> dict[str, Any]:
    return {
        'num': pull.number,
        'title': pull.title,
        'author': {'name': pull.author},
        'status': 'draft',
        'createdAt': DATE,
        'repo': {'name': repository.id, 'type': 'model'},
        'isPullRequest': True,
        'changes': {'base': 'refs/heads/main'},
        'filesWithConflicts': [],
        'events': [],
        'diff': '',
    }
