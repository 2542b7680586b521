from pathlib import Path

import pytest
from hub_cases import FILES, REPO, push, shapes, write_model
from hub_faults import Fault
from huggingface_hub import constants, hf_hub_download, model_info, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils._http import httpx2

NEW = {**FILES, 'config.json': b'{"architecture": "b"}', 'model.safetensors': bytes(range(255)) * 300}
REQUESTS = {'lfs': 8, 'inline': 4}  # of a push of NEW
COMMIT = r'/api/models/me/model/commit/.*'
WEIGHTS = 'model.safetensors'
both_modes = pytest.mark.parametrize('hub_mode', ['lfs', 'inline'])


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / 'model', NEW)


def fetch(name=WEIGHTS, **options):
    return Path(hf_hub_download(REPO, name, **options)).read_bytes()


def push_each(hub, folder, count, **fault):
    """Push once for every request of a push, failing at that one: yields its number, the old commit, and the error."""
    for n in range(1, count + 1):
        repo_id = f'me/model{n}'  # a storage of its own: nothing is uploaded yet
        old = hub.seed(repo_id, FILES)
        hub.faults.clear()
        armed, error = hub.faults.add(Fault(nth=n, **fault)), None
        try:
            push(hub, folder, repo_id)
        except Exception as raised:
            error = raised
        assert armed.strikes
        yield n, repo_id, old, error


@pytest.mark.parametrize(
    ('hub_mode', 'status'),
    [*(('lfs', status) for status in (401, 403, 404, 409, 412, 500, 503)), ('inline', 403), ('inline', 503)],
)
def test_a_refusal_at_any_request_leaves_the_remote_alone(hub, folder, hub_mode, status):
    for n, repo_id, old, error in push_each(hub, folder, REQUESTS[hub_mode], status=status, times=None):
        assert error is not None, n
        assert hub.head(repo_id) == old, n


@both_modes
@pytest.mark.parametrize('action', ['cut', 'reset'])
def test_a_broken_connection_at_any_request_leaves_old_or_new(hub, folder, hub_mode, action):
    survived = []
    for n, repo_id, old, error in push_each(hub, folder, REQUESTS[hub_mode], action=action, after_bytes=50):
        assert hub.files(repo_id) == (FILES if error else NEW), n
        assert (hub.head(repo_id) == old) == bool(error), n
        survived += [] if error else [n]
    # Creating and checking the card are not tried again, and of the two ways to commit only one.
    assert survived == {'lfs': [4, 5, 6, 7], 'inline': [3, 4]}[hub_mode]


@both_modes
def test_as_many_requests_as_assumed(hub, folder, hub_mode):
    hub.seed(REPO, FILES)
    push(hub, folder)
    assert len(hub.requests) == REQUESTS[hub_mode]


def test_an_upload_is_sent_again_from_its_start(hub, folder, client_naps):
    hub.seed(REPO, FILES)
    faults = [
        hub.faults.add(Fault(method='PUT', path='/lfs/.*', action='cut', after_bytes=40_000)),
        hub.faults.add(Fault(method='PUT', path='/lfs/.*', nth=2, status=503)),
    ]
    push(hub, folder)
    assert [fault.strikes for fault in faults] == [1, 1]
    assert hub.files(REPO) == NEW
    assert [r.status for r in hub.requests if r.method == 'PUT'] == [None, 503, 200]
    assert client_naps == [1, 2]


def test_a_client_gives_up_after_six_tries(hub, folder, client_naps):
    old = hub.seed(REPO, FILES)
    fault = hub.faults.add(Fault(method='PUT', times=None))
    with pytest.raises(RuntimeError, match='Error while uploading'):
        push(hub, folder)
    assert fault.strikes == 6
    assert client_naps == [1, 2, 4, 8, 8]
    assert hub.head(REPO) == old


def test_the_storage_refuses_what_was_damaged_on_the_way(hub, folder):
    old = hub.seed(REPO, FILES)
    hub.faults.add(Fault(method='PUT', action='flip', after_bytes=70_000))
    with pytest.raises(RuntimeError, match='Error while uploading') as failed:
        push(hub, folder)
    assert 'BadDigest' in str(failed.value.__cause__)
    assert hub.head(REPO) == old
    push(hub, folder)
    assert hub.files(REPO) == NEW


def test_a_commit_whose_answer_is_lost_has_happened(hub, folder):
    """The client does not ask again, and raises."""
    old = hub.seed(REPO, FILES)
    hub.faults.add(Fault(path=COMMIT, action='reset', performed=True))
    with pytest.raises(httpx2.NetworkError):
        push(hub, folder)
    assert hub.files(REPO) == NEW
    assert hub.head(REPO).parent == old.sha
    assert push(hub, folder).oid == hub.head(REPO).sha
    assert len(hub.history(REPO)) == 3


@pytest.mark.parametrize('hub_mode', ['inline'])
@pytest.mark.parametrize('fault', [{'action': 'cut'}, {'status': 500}])
def test_a_commit_whose_answer_is_lost_is_made_twice(hub, folder, fault):
    """The other way to commit asks again: twice the same commit, or 412 where the parent was named."""
    old = hub.seed(REPO, FILES)
    hub.faults.add(Fault(path=COMMIT, performed=True, **fault))
    push(hub, folder)
    first, second = hub.history(REPO)[1::-1]
    assert (first.parent, second.parent) == (old.sha, first.sha)
    assert first.tree == second.tree

    (folder / 'config.json').write_bytes(b'{}')
    hub.faults.add(Fault(path=COMMIT, performed=True, **fault))
    with pytest.raises(HfHubHTTPError, match='412'):
        push(hub, folder, parent_commit=second.sha)
    assert hub.files(REPO)['config.json'] == b'{}'


@both_modes
def test_a_cut_download_goes_on_where_it_ended(hub, monkeypatch, client_naps):
    monkeypatch.setattr(constants, 'DOWNLOAD_CHUNK_SIZE', 1000)  # what the client keeps of a broken answer
    hub.seed(REPO, NEW)
    hub.faults.add(Fault(method='GET', action='cut', after_bytes=30_500))
    assert fetch() == NEW[WEIGHTS]
    assert [r.headers.get('Range') for r in hub.requests if r.method == 'GET'] == [None, 'bytes=30000-']
    assert client_naps == [1]


def test_a_reset_download_fails(hub, client_naps):
    """The client takes a reset for final, unlike an orderly close."""
    hub.seed(REPO, NEW)
    hub.faults.add(Fault(method='GET', action='reset', after_bytes=100))
    with pytest.raises(httpx2.ReadError):
        fetch()
    assert client_naps == []
    assert fetch() == NEW[WEIGHTS]


@both_modes
def test_the_client_does_not_notice_a_damaged_download(hub):
    hub.seed(REPO, NEW)
    hub.faults.add(Fault(method='GET', action='flip', after_bytes=5))
    data = fetch()
    assert [i for i, (a, b) in enumerate(zip(data, NEW[WEIGHTS], strict=True)) if a != b] == [5]
    assert fetch() == data  # from its cache


@both_modes
def test_the_client_notices_a_short_download(hub):
    hub.seed(REPO, NEW)
    hub.faults.add(Fault(method='GET', action='short', after_bytes=5))
    with pytest.raises(OSError, match='should be of size 76500 but has size 5'):
        fetch()
    assert fetch() == NEW[WEIGHTS]


@both_modes
def test_a_wrong_hash_names_the_file_in_the_cache(hub):
    commit = hub.seed(REPO, NEW)
    hub.faults.add(Fault(method='HEAD', action='etag'))
    path = Path(hf_hub_download(REPO, WEIGHTS))
    assert path.read_bytes() == NEW[WEIGHTS]
    assert path.resolve().name == commit.tree[WEIGHTS].etag[::-1]


@pytest.mark.parametrize(('status', 'tries'), [(403, 1), (404, 1), (500, 7), (503, 7)])
def test_a_failing_first_question_ends_the_download(hub, status, tries, client_naps):
    """Servers in trouble are asked once, and where no file is in the cache up to six times more."""
    hub.seed(REPO, NEW)
    hub.faults.add(Fault(method='HEAD', status=status, times=None))
    with pytest.raises(LocalEntryNotFoundError):
        fetch('config.json')
    assert shapes(hub) == [f'HEAD /R/resolve/main/config.json {status}'] * tries
    assert client_naps == [1, 2, 4, 8, 8][: tries - 2] * (tries > 1)


@pytest.mark.parametrize('status', [401, 403, 404, 500, 503])
def test_the_cache_answers_for_a_failing_hub(hub, status, client_naps):
    commit = hub.seed(REPO, NEW)
    fetch('config.json')
    del hub.requests[:]
    hub.faults.add(Fault(times=None, status=status))
    assert fetch('config.json') == NEW['config.json']
    assert (len(hub.requests), client_naps) == (1, [])
    assert fetch('config.json', revision=commit.sha) == NEW['config.json']
    assert len(hub.requests) == 1  # a pinned revision that is there is not asked for at all


@pytest.mark.parametrize(('action', 'error'), [('cut', httpx2.RemoteProtocolError), ('reset', httpx2.ReadError)])
def test_the_cache_does_not_answer_for_a_broken_connection(hub, action, error):
    """The client passes this error on, neither asking again nor looking into its cache."""
    hub.seed(REPO, NEW)
    fetch('config.json')
    hub.faults.add(Fault(method='HEAD', action=action))
    with pytest.raises(error):
        fetch('config.json')


def test_codes_of_the_hub_become_errors_of_the_client(hub):
    hub.seed(REPO, NEW)
    hub.faults.add(Fault(path='/api/models/.*', status=404, code='RepoNotFound'))
    with pytest.raises(RepositoryNotFoundError):
        model_info(REPO)
    hub.faults.add(Fault(path='/api/models/.*', status=403, message='not for you'))
    with pytest.raises(HfHubHTTPError, match='403 Forbidden: not for you'):
        model_info(REPO)


def test_a_busy_hub_says_when_to_come_again(hub, client_naps):
    hub.seed(REPO, NEW)
    hub.faults.add(Fault(path='.*/tree/.*', status=429, headers={'Retry-After': '30'}))
    snapshot_download(REPO)
    assert client_naps == [31]


def test_slow_answers_are_asked_for_again(hub, client_naps, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_DOWNLOAD_TIMEOUT', 0.2)
    hub.seed(REPO, NEW)
    hub.faults.add(Fault(method='HEAD', action='slow', seconds=20))
    hub.faults.add(Fault(method='GET', action='slow', seconds=20))
    assert fetch('config.json', etag_timeout=0.2) == NEW['config.json']
    assert [request.method for request in hub.requests] == ['HEAD', 'HEAD', 'GET', 'GET']
    assert client_naps == [1]


@both_modes
def test_a_snapshot_that_failed_anywhere_is_completed_later(hub, hub_mode):
    for n in range(1, 3 + 2 * len(NEW)):  # what revision it is, its files, and for each what and the content
        repo_id = f'me/model{n}'
        hub.seed(repo_id, NEW)
        fault = hub.faults.add(Fault(nth=n, status=404, times=None))
        with pytest.raises((LocalEntryNotFoundError, HfHubHTTPError)):
            snapshot_download(repo_id)
        assert fault.strikes
        hub.faults.clear()
        folder = Path(snapshot_download(repo_id))
        assert {name: (folder / name).read_bytes() for name in NEW} == NEW
