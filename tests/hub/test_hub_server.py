import warnings
from pathlib import Path

import pytest
from hub_cases import FILES, REPO, push, shapes, write_model
from huggingface_hub import HfApi, hf_hub_download, model_info, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

both_modes = pytest.mark.parametrize('hub_mode', ['lfs', 'inline'])


@pytest.fixture
def api(hub):
    return HfApi(token=hub.token)


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / 'model')


def fetch(**options):
    return Path(hf_hub_download(REPO, 'config.json', **options)).read_bytes()


@both_modes
def test_first_push_then_the_same_then_a_changed_one(hub, api, folder, hub_mode):
    first = push(hub, folder)
    assert hub.files(REPO) == FILES
    assert first.oid == hub.head(REPO).sha
    assert hub.head(REPO).tree['model.safetensors'].lfs == (hub_mode == 'lfs')
    assert not hub.head(REPO).tree['config.json'].lfs

    assert push(hub, folder).oid == first.oid
    assert len(hub.history(REPO)) == 2  # the Hub's own, and ours

    (folder / 'model.safetensors').write_bytes(b'new weights')
    second = push(hub, folder, commit_message='better')
    assert hub.files(REPO) == {**FILES, 'model.safetensors': b'new weights'}
    assert [(c.sha, c.title) for c in hub.history(REPO)][:2] == [
        (second.oid, 'better'),
        (first.oid, 'Upload folder using huggingface_hub'),
    ]


def test_requests_of_a_push_with_large_files(hub, api, folder):
    push(hub, folder)
    assert shapes(hub) == [
        'POST /api/repos/create 200',
        'POST /api/validate-yaml 200',
        'POST /api/validate-yaml 200',
        'POST /api/models/R/preupload/main 200',
        'POST /R.git/info/lfs/objects/batch 200',
        'PUT /lfs/R/OID 200',
        'POST /R.git/info/lfs/objects/verify 200',
        'POST /api/models/R/commit/main 200',
    ]


@pytest.mark.parametrize('hub_mode', ['inline'])
def test_requests_of_a_push_within_the_commit(hub, api, folder):
    push(hub, folder)
    assert shapes(hub) == [
        'POST /api/repos/create 200',
        'POST /api/validate-yaml 200',
        'POST /api/models/R/preupload/main 200',
        'POST /api/models/R/commit/main 200',
    ]


@both_modes
def test_a_pinned_revision_stays_what_it_was(hub, api, folder):
    old = push(hub, folder)
    (folder / 'config.json').write_bytes(b'{}')
    push(hub, folder)
    for revision, expected in ((old.oid, FILES['config.json']), ('main', b'{}')):
        assert fetch(revision=revision) == expected
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPO, 'config.json', revision='f' * 40)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, 'absent.json')


@both_modes
def test_snapshot_fetches_everything_once(hub, api, tmp_path):
    commit = hub.seed(REPO, FILES)
    target = Path(snapshot_download(REPO))
    assert target.name == commit.sha
    assert {name: (target / name).read_bytes() for name in FILES} == FILES
    del hub.requests[:]
    assert snapshot_download(REPO) == str(target)
    assert shapes(hub) == ['GET /api/models/R/revision/main 200']


def test_looking_around(hub, api):
    commit = hub.seed(REPO, {**FILES, 'logs/a.txt': b'a'})
    info = model_info(REPO, files_metadata=True)
    assert (info.sha, info.private) == (commit.sha, False)
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    assert sizes['model.safetensors'] == 2304
    assert next(s.lfs.size for s in info.siblings if s.lfs) == 2304
    assert api.whoami()['name'] == 'me'
    assert api.file_exists(REPO, 'config.json')
    assert not api.file_exists(REPO, 'absent.json')
    assert [c.commit_id for c in api.list_repo_commits(REPO)] == [c.sha for c in hub.history(REPO)]
    assert 'logs' in {entry.path for entry in api.list_repo_tree(REPO)}
    assert [entry.path for entry in api.list_repo_tree(REPO, 'logs')] == ['logs/a.txt']
    api.create_branch(REPO, branch='next')
    api.create_tag(REPO, tag='v1')
    api.delete_file('config.json', REPO, revision='next')
    assert 'config.json' in hub.files(REPO)
    assert 'config.json' not in hub.files(REPO, 'next')
    refs = api.list_repo_refs(REPO)
    assert {b.name for b in refs.branches} == {'main', 'next'}
    assert [(t.name, t.target_commit) for t in refs.tags] == [('v1', commit.sha)]
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b'x', path_in_repo='x', repo_id=REPO, revision='v1')


def test_a_private_repository_does_not_exist_for_others(hub, api):
    hub.seed(REPO, FILES, private=True)
    for token, status in ((False, 401), (hub.reader, 404)):
        with pytest.raises(RepositoryNotFoundError) as found:
            model_info(REPO, token=token)
        assert found.value.response.status_code == status
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download(REPO, 'config.json', token=token)
        with pytest.raises(RepositoryNotFoundError):
            snapshot_download(REPO, token=token)
    assert hf_hub_download(REPO, 'config.json', token=hub.token)
    api.update_repo_settings(REPO, private=False)
    assert hf_hub_download(REPO, 'README.md', token=False)


def test_a_wrong_token_is_refused_everywhere(hub):
    hub.seed(REPO, FILES)
    for call in (model_info, HfApi(token='hf_wrong').list_repo_files):
        with pytest.raises(HfHubHTTPError, match='Invalid credentials') as refused:
            call(REPO, token='hf_wrong')
        assert refused.value.response.status_code == 401


@both_modes
def test_writing_takes_the_right(hub, folder):
    old = hub.seed(REPO, FILES)
    (folder / 'config.json').write_bytes(b'{}')
    with pytest.raises(RepositoryNotFoundError):  # how the client words every 401
        HfApi(token=False).upload_folder(repo_id=REPO, folder_path=folder)
    reader = HfApi(token=hub.reader)
    with pytest.raises(HfHubHTTPError, match='403 Forbidden'):
        reader.upload_folder(repo_id=REPO, folder_path=folder)
    with pytest.raises(HfHubHTTPError, match='rights to create'):
        reader.create_repo('ride-timm/model')
    assert hub.head(REPO) == old
    assert list(hub.store.repositories) == [REPO]


def test_a_repository_is_created_once(hub, api):
    assert api.create_repo('model', private=True).repo_id == REPO
    assert hub.store.repositories[REPO].private
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_repo(REPO)
    assert refused.value.response.status_code == 409
    assert api.create_repo(REPO, exist_ok=True) == f'{hub.url}/{REPO}'
    assert len(hub.history(REPO)) == 1


@both_modes
def test_a_push_onto_a_moved_branch_is_refused(hub, api, folder):
    old = hub.seed(REPO, {'config.json': b'old'})
    assert push(hub, folder, parent_commit=old.sha)
    moved = hub.head(REPO)
    (folder / 'config.json').write_bytes(b'{}')
    with pytest.raises(HfHubHTTPError, match='A commit has happened since') as refused:
        push(hub, folder, parent_commit=old.sha)
    assert refused.value.response.status_code == 412
    assert hub.head(REPO) == moved


@both_modes
def test_a_pull_request_leaves_main_alone(hub, folder):
    old = hub.seed(REPO, {'config.json': b'old'})
    outsider = HfApi(token=hub.reader)
    proposed = outsider.upload_folder(repo_id=REPO, folder_path=folder, create_pr=True)
    assert (proposed.pr_num, proposed.pr_revision) == (1, 'refs/pr/1')
    assert hub.head(REPO) == old
    assert hub.files(REPO, 'refs/pr/1') == FILES
    again = outsider.upload_file(
        path_or_fileobj=b'{}', path_in_repo='config.json', repo_id=REPO, revision=proposed.pr_revision
    )
    assert hub.head(REPO, 'refs/pr/1').sha == again.oid
    assert fetch(revision='refs/pr/1') == b'{}'
    assert [pull.title for pull in outsider.get_repo_discussions(REPO)] == ['Upload folder using huggingface_hub']


@pytest.mark.parametrize(
    ('metadata', 'complaint'),
    [
        ('tags: [a', 'YAML Metadata Error'),
        ('tags: a', '"tags" must be an array'),
        ('license: [mit]', '"license" must be a string'),
        ('model-index: {}', '"model-index" must be an array'),
        ('model-index: [{name: a}]', '"model-index[0].results" must be an array'),
        ('model-index: [{name: a, results: [{task: {type: t}, metrics: []}]}]', 'results[0].dataset" is required'),
        (
            'model-index: [{name: a, results: [{task: {type: t}, dataset: {type: d, name: D}, metrics: [{type: m}]}]}]',
            'metrics[0].value" is required',
        ),
    ],
)
def test_a_bad_card_is_refused_before_anything_is_sent(hub, api, folder, metadata, complaint):
    api.create_repo(REPO)
    (folder / 'README.md').write_text(f'---\n{metadata}\n---\n')
    with pytest.raises(ValueError, match='Invalid metadata in README') as refused:
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert complaint in str(refused.value)
    assert hub.files(REPO) == {}
    assert hub.requests[-1].path == '/api/validate-yaml'


def test_a_card_without_metadata_is_warned_about(hub, api, folder):
    (folder / 'README.md').write_text('# A model\n')
    with pytest.warns(UserWarning, match='empty or missing yaml metadata'):
        push(hub, folder)
    (folder / 'README.md').write_text(
        '---\nmodel-index: [{name: a, results: [{task: {type: t}, dataset: {type: d, name: D},'
        ' metrics: [{type: m, value: 1.5}]}]}]\n---\n'
    )
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        push(hub, folder)


def test_the_storage_never_sees_the_token(hub, api, folder):
    push(hub, folder)
    hf_hub_download(REPO, 'model.safetensors', token=hub.token)
    storage = [request for request in hub.requests if request.host == 'storage']
    assert [request.method for request in storage] == ['PUT', 'GET']
    assert all('Authorization' not in request.headers for request in storage)
    assert all('Authorization' in request.headers for request in hub.requests if request.host == 'hub')


@both_modes
def test_timm_pushes_and_loads(hub, hub_login):
    import timm
    import torch

    import ride_timm  # noqa: F401 - registers the models

    model = timm.create_model('test_ride_resnet_cifar_3e', num_classes=5).eval()
    timm.models.push_to_hf_hub(model, 'me/tiny', safe_serialization=True, model_config={'label_names': list('abcde')})
    assert set(hub.files('me/tiny')) == {'README.md', 'config.json', 'model.safetensors'}
    loaded = timm.create_model(f'hf-hub:me/tiny@{hub.head("me/tiny").sha}', pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
