"""An upload that fails, at every request and in every way: the remote's state, the sentence, and no token anywhere."""

import logging
import traceback

import pytest
from hub_faults import Fault
from huggingface_hub import HfApi
from published import NAME, UPLOADED, hub_entry, make_weight

from ride_timm.cli import guarded
from ride_timm.errors import RideError
from ride_timm.publish import main
from ride_timm.publishing.staging import stage
from ride_timm.publishing.upload import Target, upload

both_modes = pytest.mark.parametrize('hub_mode', ['lfs', 'inline'])
OLD = {'config.json': b'{}', 'README.md': b'---\ntags: [old]\n---\n'}
COMMIT = r'/api/models/.*/commit/.*'
SENT = [[name] * (4 if name == 'model.safetensors' else 1) for name in UPLOADED]
SENTENCES = {  # how the sentence begins, for each request
    'lfs': [
        '{repo} cannot be created or opened',
        'The files of {repo} cannot be listed',
        *(f'{name} cannot be uploaded to {{repo}}' for names in SENT for name in names),
        'README.md is not taken by {repo}',
        'The commit to {repo} failed',
    ],
    'inline': [
        '{repo} cannot be created or opened',
        'The files of {repo} cannot be listed',
        *(f'{name} cannot be uploaded to {{repo}}' for name in UPLOADED),
        'README.md is not taken by {repo}',
        'The commit to {repo} failed',
    ],
}
WHY = {
    401: 'the token is missing or not valid (401',
    403: 'the token may not do this (403',
    404: 'it is not there, or the token may not see it (404',
    409: 'the Hub is busy with another change of it (409',
    412: 'someone else published meanwhile (412',
    429: 'there were too many requests (429',
    500: 'the Hub has trouble (500',
    503: 'the Hub has trouble (503',
}


@pytest.fixture(scope='module')
def weight(tmp_path_factory):
    return make_weight(tmp_path_factory.mktemp('weights'))


@pytest.fixture(scope='module')
def folder(weight, tmp_path_factory):
    """What is uploaded."""
    return stage(weight, f'me/{NAME}', tmp_path_factory.mktemp('staged')).folder


def chain(error):
    """An error with all that it came from, and its traceback, as text."""
    texts = []
    while error is not None:
        texts += [str(error), repr(error), *traceback.format_exception(error, chain=False)]
        error = error.__cause__ or error.__context__
    return '\n'.join(texts)


def upload_each(hub, folder, **fault):
    """Upload once for each request, which fails: yields its number from 0, repository, old commit, and the error."""
    n = 0
    while True:
        repo = f'me/model{n}'  # a storage of its own: nothing is uploaded yet
        old = hub.seed(repo, OLD)
        hub.faults.clear()
        armed, error = hub.faults.add(Fault(nth=n + 1, **fault)), None
        try:
            upload(folder, Target(repo), 'message')
        except RideError as raised:
            error = raised
        if not armed.strikes:
            assert error is None
            return
        yield n, repo, old, error
        n += 1


def check_sentence(error, beginning, repo):
    text = str(error)
    assert text.startswith(beginning.format(repo=repo)), text
    assert text.count('. ') == 0, text
    assert text.endswith('.'), text
    assert error.__cause__ is None
    assert error.__context__ is None


@both_modes
@pytest.mark.parametrize('status', [401, 403, 404, 409, 412, 429, 500, 503])
def test_a_refusal_at_every_request(hub, hub_login, hub_mode, folder, status, caplog, capfd):
    caplog.set_level(logging.INFO)
    beginnings, reached = SENTENCES[hub_mode], 0
    for n, repo, old, error in upload_each(hub, folder, status=status, times=None, message=f'no {hub.token}!'):
        reached += 1
        if n == len(beginnings):  # it was asked what has arrived
            assert error is None
            assert list(hub.files(repo)) == UPLOADED
            continue
        assert hub.head(repo) == old, n
        check_sentence(error, beginnings[n], repo)
        if status == 409 and not n:  # it means that the repository is there, and then has its address in the answer
            assert 'because KeyError' in str(error)
        else:
            assert WHY[status] in str(error), n
        lost = n + 1 == len(beginnings) and status in (412, 500, 503)  # the Hub does not answer any more
        assert ('which finds out' if lost else 'nothing was published') in str(error), n
        assert hub.token not in chain(error)
    assert reached == len(beginnings) + 1
    assert hub.token not in caplog.text
    assert hub.token not in ''.join(capfd.readouterr())


@both_modes
@pytest.mark.parametrize('action', ['cut', 'reset'])
@pytest.mark.parametrize('times', [1, None])
def test_a_broken_connection_at_every_request(hub, hub_login, hub_mode, folder, action, times, client_naps):
    beginnings, reached, failed = SENTENCES[hub_mode], 0, []
    for n, repo, old, error in upload_each(hub, folder, action=action, times=times, after_bytes=50):
        reached += 1
        if error is None:  # it was asked again, or the commit was made
            assert {**OLD, **hub.files(repo)} == {path.name: path.read_bytes() for path in folder.iterdir()}, n
            continue
        failed.append(n)
        assert hub.head(repo) == old, n
        check_sentence(error, beginnings[n], repo)
        assert 'there is no connection to the Hub or it was lost' in str(error)
        lost = n + 1 == len(beginnings) and times is None
        assert ('which finds out' if lost else 'nothing was published') in str(error), n
    assert reached == len(beginnings) + 1
    assert len(beginnings) - 1 in failed
    if times is None:
        assert failed == list(range(len(beginnings)))


@both_modes
@pytest.mark.parametrize('fault', [{'action': 'cut'}, {'action': 'reset'}, {'status': 500}, {'status': 412}])
def test_a_commit_whose_answer_is_lost_is_found(hub, hub_login, weight, fault, capsys):
    repo = f'me/{NAME}'
    old = hub.seed(repo, OLD)
    hub.faults.add(Fault(path=COMMIT, performed=True, **fault))
    assert main([str(weight), repo]) == 0
    assert hub.head(repo).parent == old.sha
    assert f'{repo}@{hub.head(repo).sha}' in capsys.readouterr().out
    assert hub_entry(weight)['revision'] == hub.head(repo).sha
    assert main([str(weight), repo]) == 0
    assert len(hub.history(repo)) == 3


def test_a_commit_whose_answer_is_lost_and_another_after_it(hub, hub_login, folder, monkeypatch):
    """Nobody can say then whether it was made, unless by the history."""
    real = HfApi.create_commit

    def late(self, *args, **kwargs):
        try:
            return real(self, *args, **kwargs)
        finally:
            hub.seed('me/model', OLD)

    monkeypatch.setattr(HfApi, 'create_commit', late)
    hub.seed('me/model', OLD)
    hub.faults.add(Fault(path=COMMIT, action='reset', performed=True))
    with pytest.raises(RideError, match='me/model has changed meanwhile; look at its commits'):
        upload(folder, Target('me/model'), 'message')


def test_a_commit_that_is_no_commit(hub, hub_login, folder, monkeypatch):
    """What comes back goes into the index, so it has to be a hash."""
    real = hub.perform

    def odd(request):
        reply = real(request)
        if '/commit/' in request.path:
            reply.body = reply.body.replace(hub.head('me/odd').sha.encode(), b'main')
        return reply

    monkeypatch.setattr(hub, 'perform', odd)
    hub.seed('me/odd', OLD)
    assert upload(folder, Target('me/odd'), 'message').revision == hub.head('me/odd').sha


def test_a_file_damaged_on_its_way(hub, hub_login, folder, client_naps):
    old = hub.seed('me/model', OLD)
    hub.faults.add(Fault(method='PUT', action='flip', after_bytes=10_000))
    with pytest.raises(RideError, match=r'model\.safetensors cannot be uploaded to me/model, because .*400.*BadDigest'):
        upload(folder, Target('me/model'), 'message')
    assert hub.head('me/model') == old


def test_a_proposal_whose_answer_is_lost(hub, hub_login, folder):
    old = hub.seed('me/model', OLD)
    hub.faults.add(Fault(path=COMMIT, action='reset', performed=True))
    with pytest.raises(RideError, match=r'nothing was published, and .*/me/model/discussions tells whether'):
        upload(folder, Target('me/model', create_pr=True), 'message')
    assert hub.head('me/model') == old


def test_a_branch_that_cannot_be_made(hub, hub_login, folder):
    hub.seed('me/model', OLD)
    hub.faults.add(Fault(path='/api/models/me/model/branch/next', status=403))
    with pytest.raises(RideError, match='The branch next of me/model cannot be created, because the token may not'):
        upload(folder, Target('me/model', branch='next'), 'message')


def test_the_command_says_it_in_one_line(hub, weight, capsys):
    """Nobody is logged in."""
    (weight.parent / 'index.json').write_text('{"weights": {}}')
    assert guarded('publish', lambda: main([str(weight), f'me/{NAME}'])) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        f'ride-timm publish: error: me/{NAME} cannot be created or opened, because the token is missing'
    )
    assert err.count('\n') == 1
    assert hub.store.repositories == {}


def test_offline(hub, hub_login, weight, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(RideError, match='because HF_HUB_OFFLINE is set; nothing was published, so unset it'):
        main([str(weight), f'me/{NAME}'])
