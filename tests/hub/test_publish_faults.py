"""An upload that fails, at every request and in every way: one commit or none, and no token anywhere."""

import logging
import traceback

import pytest
from fake_hub import httpx, refusal
from published import NAME, UPLOADED, hub_entry, make_weight

from ride_timm.cli import guarded
from ride_timm.commands.publish import main
from ride_timm.errors import RideError
from ride_timm.publishing.staging import stage
from ride_timm.publishing.upload import Target, upload

OLD = {'config.json': b'{}', 'README.md': b'---\ntags: [old]\n---\n'}
both_modes = pytest.mark.parametrize('hub_mode', ['lfs', 'inline'])


def lost(request):
    raise httpx.ReadError('gone', request=request)


@pytest.fixture(scope='module')
def weight(tmp_path_factory):
    return make_weight(tmp_path_factory.mktemp('weights'))


@pytest.fixture(scope='module')
def folder(weight, tmp_path_factory):
    """What is uploaded."""
    return stage(weight, f'me/{NAME}', tmp_path_factory.mktemp('staged')).folder


def is_commit(request):
    return '/commit/' in request.url.path


def upload_each(hub, folder, fail):
    """Upload once for each request, from which on all fail: yields repository, old commit, error, whether it came."""
    failing = True
    while failing:
        n = 0 if failing is True else failing
        repo = f'me/model{n}'
        hub.large.clear()
        old, first = hub.seed(repo, OLD), len(hub.requests)
        reached = []

        def before(request, n=n, first=first, reached=reached):
            if len(hub.requests) > first + n:
                reached.append(request)
                return fail(request)
            return None

        hub.before, error = before, None
        try:
            upload(folder, Target(repo), 'message')
        except RideError as raised:
            error = raised
        hub.before = None
        yield repo, old, error
        failing = n + 1 if reached else 0


@both_modes
@pytest.mark.parametrize('status', [401, 403, 404, 412, 429, 500, 503, None])
def test_failures_at_every_request(hub, hub_login, folder, status, caplog, capfd):
    caplog.set_level(logging.INFO)
    fail = lost if status is None else lambda request: refusal(status, f'no {hub.token}!')
    errors = []
    for repo, old, error in upload_each(hub, folder, fail):
        head = hub.head(repo)
        assert head == old or (head.parent == old.sha and list(hub.files(repo)) == UPLOADED)
        if error is None:
            assert head != old
            continue
        errors.append(str(error))
        assert hub.token not in ''.join(traceback.format_exception(error))
        assert str(status or 'gone') in str(error)
        if 'nothing was published' in str(error):
            assert head == old
    assert len(errors) >= 6
    assert 'does not tell' in errors[-1]
    assert error is None  # the last time, nothing failed
    assert hub.token not in caplog.text + ''.join(capfd.readouterr())


@both_modes
@pytest.mark.parametrize('answer', [lost, lambda _: refusal(500, 'trouble'), lambda _: refusal(412, 'moved')])
def test_a_commit_whose_answer_is_lost_is_found(hub, hub_login, weight, answer, capsys):
    repo = f'me/{NAME}'
    old = hub.seed(repo, OLD)
    hub.after = lambda request, reply: answer(request) if is_commit(request) else reply
    assert main([str(weight), repo]) == 0
    assert hub.head(repo).parent == old.sha
    assert f'{repo}@{hub.head(repo).sha}' in capsys.readouterr().out
    assert hub_entry(weight)['revision'] == hub.head(repo).sha
    hub.after = None
    assert main([str(weight), repo]) == 0
    assert hub.head(repo).parent == old.sha


def test_a_commit_whose_answer_is_lost_and_another_after_it(hub, hub_login, folder):
    def disturb(request, reply):
        if is_commit(request):
            hub.seed('me/model', OLD)
            lost(request)
        return reply

    hub.seed('me/model', OLD)
    hub.after = disturb
    with pytest.raises(RideError, match='changed meanwhile, so look at its commits'):
        upload(folder, Target('me/model'), 'message')


def test_a_file_damaged_on_its_way(hub, hub_login, folder):
    old = hub.seed('me/model', OLD)
    real = hub._store
    hub._store = lambda request, oid: real(request, 'f' * 64)
    with pytest.raises(RideError, match='nothing was published'):
        upload(folder, Target('me/model'), 'message')
    assert hub.head('me/model') == old


def test_a_proposal_whose_answer_is_lost(hub, hub_login, folder):
    old = hub.seed('me/model', OLD)
    hub.after = lambda request, reply: lost(request) if is_commit(request) else reply
    with pytest.raises(RideError, match='/me/model/discussions tells whether it was proposed'):
        upload(folder, Target('me/model', create_pr=True), 'message')
    assert hub.head('me/model') == old


def test_the_command_says_it_in_one_line(hub, weight, capsys):
    """Nobody is logged in."""
    assert guarded('publish', lambda: main([str(weight), f'me/{NAME}'])) == 2
    err = capsys.readouterr().err
    assert '401' in err
    assert 'hf auth login' in err
    assert err.count('\n') == 1
    assert hub.repositories == {}


def test_offline(hub, hub_login, weight, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(RideError, match=r'HF_HUB_OFFLINE.*nothing was published'):
        main([str(weight), f'me/{NAME}'])
