"""`ride-timm publish` to the fake Hub, with the real client: what arrives and what is said."""

import json
import shutil

import pytest
from fake_hub import Response, refusal
from huggingface_hub import ModelCard
from published import ARCHITECTURE, NAME, REPO, THRESHOLD, UPLOADED, hashes, hub_entry, make_weight, split_tensors
from safetensors.torch import load, load_file

from ride_timm.commands.publish import main
from ride_timm.errors import RideError
from ride_timm.records.published import read_index

both_modes = pytest.mark.parametrize('hub_mode', ['lfs', 'inline'])


@pytest.fixture
def weight(tmp_path):
    return make_weight(tmp_path / 'weights')


def publish(folder, repo_id=REPO, *options):
    return main([str(folder), repo_id, *options])


def posted(hub, part):
    return [request for request in hub.requests if request.method == 'POST' and part in request.url.path]


@both_modes
def test_what_arrives(hub, hub_login, weight, capsys):
    assert publish(weight) == 0
    files = hub.files(REPO)
    assert list(files) == UPLOADED
    for name in set(UPLOADED) - {'README.md'}:
        assert files[name] == (weight / name).read_bytes(), name
    first, ours = hub.repositories[REPO].branches['main']
    assert ours.parent == first.sha
    assert NAME in ours.title
    out = capsys.readouterr().out
    assert f"timm.create_model('hf-hub:{REPO}@{ours.sha}', pretrained=True)" in out
    assert 'import ride_timm' in out
    assert hub_entry(weight) == {'repo_id': REPO, 'revision': ours.sha, 'files': hashes(files)}
    assert read_index(weight.parent)[NAME].hub.revision == ours.sha


@both_modes
def test_nothing_changed_no_commit(hub, hub_login, weight, capsys):
    publish(weight)
    before, entry = hub.head(REPO), hub_entry(weight)
    (weight.parent / 'index.json').write_text(json.dumps({'weights': {NAME: {'files': {}, 'hub': None}}}))
    capsys.readouterr()
    del hub.requests[:]
    assert publish(weight) == 0
    assert hub.head(REPO) == before
    assert posted(hub, '/preupload/') == posted(hub, '/commit/') == []
    out = capsys.readouterr().out
    assert 'no commit was made' in out
    assert f'{REPO}@{before.sha}' in out
    assert hub_entry(weight) == entry  # the pin is there again


@both_modes
def test_only_what_changed_is_sent(hub, hub_login, weight):
    publish(weight)
    old = hub.head(REPO)
    results = json.loads((weight / 'results.json').read_text())
    (weight / 'results.json').write_text(json.dumps(results, indent=1))
    del hub.requests[:]
    publish(weight, REPO, '--message', 'better')
    new = hub.head(REPO)
    assert (new.parent, new.title) == (old.sha, 'better')
    assert [name for name in UPLOADED if new.files[name] != old.files[name]] == ['results.json']
    (commit,) = posted(hub, '/commit/')
    assert len(commit.content.splitlines()) == 2  # the header and one file
    assert hub_entry(weight)['revision'] == new.sha


def test_the_card_is_the_hubs(hub, hub_login, weight):
    publish(weight)
    text = hub.files(REPO)['README.md'].decode()
    card = ModelCard(text)
    assert card.data.model_name == NAME
    assert f"timm.create_model('hf-hub:{REPO}', pretrained=True)" in text
    figures = json.loads((weight / 'results.json').read_text())['test']['all_experts']
    stated = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert stated['Accuracy (all 3 experts)'] == round(figures['top1'], 2)
    assert f'hf-hub:{REPO}' not in (weight / 'README.md').read_text()


def test_shards_become_one_file(hub, hub_login, weight, tmp_path):
    whole = load_file(weight / 'model.safetensors')
    split_tensors(weight)
    publish(weight)
    files = hub.files(REPO)
    assert list(files) == UPLOADED
    sent = load(files['model.safetensors'])
    assert sent.keys() == whole.keys()
    assert all((sent[key] == whole[key]).all() for key in whole)
    assert list(hub_entry(weight)['files']) == UPLOADED
    assert len(read_index(weight.parent)[NAME].tensor_files) == 2


def test_a_shard_too_few(hub, hub_login, weight):
    split_tensors(weight)
    (weight.parent / 'index.json').unlink()
    (weight / 'model-00002-of-00002.safetensors').unlink()
    with pytest.raises(RideError, match='parts of the tensors'):
        publish(weight)
    assert hub.requests == []


def test_a_private_repository_stays_hidden(hub, hub_login, weight):
    publish(weight, REPO, '--private')
    assert hub.repositories[REPO].private
    publish(weight, REPO, '--private')


def test_a_public_repository_does_not_become_private(hub, hub_login, weight):
    old = hub.seed(REPO, {'config.json': b'{}'})
    with pytest.raises(RideError, match=r'is public already and nothing was published'):
        publish(weight, REPO, '--private')
    assert hub.head(REPO) == old


@both_modes
def test_another_branch(hub, hub_login, weight, capsys):
    old = hub.seed(REPO, {'config.json': b'{}'})
    for _ in range(2):  # it is made, and then it is there
        publish(weight, REPO, '--revision', 'next')
        assert hub.head(REPO) == old
        assert list(hub.files(REPO, 'next')) == UPLOADED
        assert f'{REPO}@{hub.head(REPO, "next").sha}' in capsys.readouterr().out
    assert hub.head(REPO, 'next').parent == old.sha
    assert hub_entry(weight) is None


@both_modes
def test_a_proposal(hub, weight, monkeypatch, capsys):
    old = hub.seed(REPO, {'config.json': b'{}'})
    monkeypatch.setenv('HF_TOKEN', hub.reader)
    with pytest.raises(RideError, match=r'403.*nothing was published; .* --create-pr'):
        publish(weight)
    publish(weight, REPO, '--create-pr')
    assert hub.head(REPO) == old
    assert list(hub.files(REPO, 'refs/pr/1')) == UPLOADED
    assert f'{REPO}/discussions/1' in capsys.readouterr().out
    assert hub_entry(weight) is None


def test_a_rehearsal(hub, hub_login, weight, tmp_path, capsys):
    assert publish(weight, REPO, '--dry-run', '--output', str(tmp_path / 'out')) == 0
    assert hub.requests == []
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == UPLOADED
    out = capsys.readouterr().out
    assert (tmp_path / 'out' / 'README.md').read_text() in out
    assert str(tmp_path / 'out') in out
    with pytest.raises(RideError, match='is not an empty folder'):
        publish(weight, REPO, '--dry-run', '--output', str(tmp_path / 'out'))
    publish(weight)
    assert hub.files(REPO) == {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}


def test_a_refused_rehearsal_leaves_nothing(weight, tmp_path, monkeypatch):
    (tmp_path / 'tmp').mkdir()
    (tmp_path / 'mine').mkdir()
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'tmp'))
    before = sorted(tmp_path.rglob('*'))
    (weight / 'model.safetensors').rename(tmp_path / 'weights/away')
    for where in (['--output', str(tmp_path / 'new/deep')], ['--output', str(tmp_path / 'mine')], []):
        with pytest.raises(RideError, match=r'model\.safetensors cannot be read'):
            publish(weight, REPO, '--dry-run', *where)
    (tmp_path / 'weights/away').rename(weight / 'model.safetensors')
    assert sorted(tmp_path.rglob('*')) == before


def test_a_folder_that_is_not_there(tmp_path):
    for command in ([str(tmp_path / 'none'), REPO], [str(tmp_path / 'none'), REPO, '--dry-run']):
        with pytest.raises(RideError, match=r'There is no folder .*none;'):
            main(command)


def test_a_rehearsal_in_a_temporary_folder(hub, weight, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    publish(weight, REPO, '--dry-run')
    folder = next(tmp_path.glob('ride-timm-publish-*'))
    assert f'Nothing was published. {folder} holds' in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == UPLOADED


def test_temporary_folders_go(hub, hub_login, weight, tmp_path, monkeypatch):
    (tmp_path / 'tmp').mkdir()
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'tmp'))
    publish(weight)
    hub.before = lambda request: refusal(500, 'trouble')
    with pytest.raises(RideError):
        publish(weight)
    assert list((tmp_path / 'tmp').iterdir()) == []


def test_never_a_pickle(hub, hub_login, weight):
    for name in ('pytorch_model.bin', 'last.ckpt', 'notes.txt', '.hidden'):
        (weight / name).write_bytes(b'x')
    publish(weight)
    assert list(hub.files(REPO)) == UPLOADED


def test_everything(hub, hub_login, weight, monkeypatch, capsys):
    other = make_weight(weight.parent, f'{ARCHITECTURE}.balpoe_toys', router=False, seed=1)
    monkeypatch.setenv('RIDE_TIMM_WEIGHTS', str(weight.parent))
    assert main(['--all']) == 0
    for folder in (weight, other):
        repo_id = f'ride-timm/{folder.name}'
        assert hub_entry(folder)['repo_id'] == repo_id
        assert hub_entry(folder)['revision'] == hub.head(repo_id).sha
    card = hub.files(f'ride-timm/{NAME}')['README.md'].decode()
    assert other.name.replace('_', r'\_') in card or other.name in card
    heads = {name: hub.head(name) for name in hub.repositories}
    monkeypatch.setenv('RIDE_TIMM_HUB_ORG', 'me')
    main(['--all'])
    assert list(hub.files(REPO)) == UPLOADED
    assert {name: hub.head(name) for name in heads} == heads

    (weight / 'model.safetensors').unlink()
    main(['--all'])
    assert NAME in capsys.readouterr().err


def test_everything_until_one_fails(hub, hub_login, weight, monkeypatch):
    other = make_weight(weight.parent, f'{ARCHITECTURE}.balpoe_toys', router=False, seed=1)
    monkeypatch.setenv('RIDE_TIMM_WEIGHTS', str(weight.parent))
    hub.before = lambda r: refusal(403, 'no') if f'{other.name}/commit/' in r.url.path else None
    with pytest.raises(RideError, match=rf'{other.name}: .*nothing was published.*\(of --all, 1 before it'):
        main(['--all'])
    assert hub_entry(weight) is not None
    assert hub_entry(other) is None


class TestRefusals:
    @pytest.mark.parametrize(
        'arguments',
        [[], ['x'], ['x', 'y'], ['x', 'me/y', '--all'], ['x', 'me/y@main'], ['x', 'me/y', '--output', 'z']],
    )
    def test_arguments(self, arguments):
        with pytest.raises(RideError):
            main(arguments)

    def test_a_proposal_for_another_branch(self, weight):
        with pytest.raises(RideError, match='--create-pr proposes a change of main'):
            publish(weight, REPO, '--create-pr', '--revision', 'next')

    def test_neither_weight_nor_run(self, tmp_path):
        with pytest.raises(RideError, match='neither the folder of a checkpoint'):
            publish(tmp_path)

    def test_a_damaged_file(self, hub, hub_login, weight):
        content = bytearray((weight / 'model.safetensors').read_bytes())
        content[-1] ^= 1
        (weight / 'model.safetensors').write_bytes(content)
        with pytest.raises(RideError, match='is damaged or a different file'):
            publish(weight)
        assert hub.requests == []

    @pytest.mark.parametrize(
        ('key', 'value', 'message'),
        [
            ('num_classes', 7, r'does not match the config.json next to it at experts.0.fc.weight'),
            ('model_args', {}, r'does not match the config.json next to it at router'),
            ('model_args', {'num_classes': 5}, 'multiple values'),
            ('architecture', 'ride_nothing', 'No network can be made'),
        ],
    )
    @pytest.mark.filterwarnings('ignore:The router belongs')
    def test_a_configuration_that_does_not_load(self, weight, key, value, message):
        (weight.parent / 'index.json').unlink()
        config = json.loads((weight / 'config.json').read_text())
        assert config['model_args']['router_threshold'] == THRESHOLD
        (weight / 'config.json').write_text(json.dumps(config | {key: value}))
        with pytest.raises(RideError, match=message):
            publish(weight, REPO, '--dry-run')

    def test_a_token_in_the_card(self, hub, hub_login, weight):
        results = json.loads((weight / 'results.json').read_text())
        results['training'][0]['command'] += f' --secret {hub.token}'
        (weight / 'results.json').write_text(json.dumps(results))
        with pytest.raises(RideError, match='would show an access token') as refused:
            publish(weight)
        assert hub.token not in str(refused.value)
        assert hub.requests == []

    def test_a_full_disk(self, hub, hub_login, weight, monkeypatch):
        def full(source, target):
            raise OSError(28, 'No space left on device')

        monkeypatch.setattr(shutil, 'copyfile', full)
        with pytest.raises(RideError, match=r'written \(No space left on device\), so nothing was published'):
            publish(weight)
        assert hub.requests == []

    def test_an_index_that_cannot_be_written(self, hub, hub_login, weight, monkeypatch):
        def full(*args):
            raise OSError(28, 'No space left on device')

        monkeypatch.setattr('ride_timm.publishing.index.write_whole', full)
        with pytest.raises(RideError, match=r'is published at .* which is not in the index .*No space left'):
            publish(weight)
        assert list(hub.files(REPO)) == UPLOADED

    def test_a_bad_card(self, hub, hub_login, weight):
        answer = Response(400, json={'errors': [{'message': '"tags" must be an array'}], 'warnings': []})
        hub.before = lambda request: answer if request.url.path == '/api/validate-yaml' else None
        with pytest.raises(RideError, match=r'must be an array.*nothing was published'):
            publish(weight)
        assert hub.files(REPO) == {}

    def test_a_gitignore_that_leaves_files_out(self, hub, hub_login, weight):
        def ignore(request, answer):
            if '/preupload/' not in request.url.path:
                return answer
            content = answer.json()
            for file in content['files']:
                file['shouldIgnore'] = file['path'] == 'tail.png'
            return Response(200, json=content)

        hub.after = ignore
        with pytest.raises(RideError, match=r'was published at .* without tail\.png'):
            publish(weight)
        assert hub_entry(weight) is None


def test_someone_else_published_meanwhile(hub, hub_login, weight):
    hub.seed(REPO, {'config.json': b'{}'})

    def disturb(request):
        if '/commit/' in request.url.path:
            hub.seed(REPO, {'config.json': b'{"a": 1}'})

    hub.before = disturb
    with pytest.raises(RideError, match=r'412.*changed meanwhile'):
        publish(weight)
    assert hub.files(REPO) == {'config.json': b'{"a": 1}'}
