"""What was published comes back, bit for bit, through timm, transformers and us; what is said where it does not."""

import json
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import timm
import torch
from hub_faults import Fault
from PIL import Image
from published import (
    ARCHITECTURE,
    CLASS_NAMES,
    NAME,
    REPO,
    THRESHOLD,
    hub_entry,
    images,
    logits,
    make_weight,
    split_tensors,
)

from ride_timm import RideError, from_pretrained
from ride_timm.download import download
from ride_timm.download import main as download_main
from ride_timm.engine.loading import load_model
from ride_timm.publish import main as publish_main
from ride_timm.published import published_weights

both_modes = pytest.mark.parametrize('hub_mode', ['lfs', 'inline'])


@pytest.fixture
def weight(tmp_path):
    return make_weight(tmp_path / 'weights')


@pytest.fixture
def published(hub, hub_login, weight):
    """The commit of the published weight."""
    publish_main([str(weight), REPO])
    del hub.requests[:]
    return hub.head(REPO)


@pytest.fixture
def expected(weight):
    return logits(timm.create_model(f'local-dir:{weight}', pretrained=True))


@pytest.fixture
def use_root(monkeypatch):
    """Make a folder the one that weights come from."""

    def use(root):
        monkeypatch.setenv('RIDE_TIMM_WEIGHTS', str(root))
        published_weights.cache_clear()

    yield use
    monkeypatch.undo()
    published_weights.cache_clear()


def go_offline(monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)


@both_modes
@pytest.mark.parametrize('pinned', [False, True])
def test_timm(published, expected, pinned):
    net = timm.create_model(f'hf-hub:{REPO}@{published.sha}' if pinned else f'hf-hub:{REPO}', pretrained=True)
    assert torch.equal(logits(net), expected)
    assert list(net.pretrained_cfg['label_names']) == CLASS_NAMES


def test_a_pinned_revision_is_not_the_newest(hub, published, expected, tmp_path):
    newer = make_weight(tmp_path / 'newer', seed=7)
    publish_main([str(newer), REPO])
    assert torch.equal(logits(from_pretrained(f'hf-hub:{REPO}@{published.sha}')), expected)
    assert not torch.equal(logits(from_pretrained(f'hf-hub:{REPO}')), expected)


@both_modes
@pytest.mark.parametrize('pinned', [False, True])
def test_ours(published, expected, pinned):
    net = from_pretrained(f'hf-hub:{REPO}@{published.sha}' if pinned else f'hf-hub:{REPO}')
    assert not net.training
    assert torch.equal(logits(net), expected)


@both_modes
def test_the_routed_settings_survive(published, weight):
    trained = load_model(f'hf-hub:{REPO}')
    counts = [row['train_images'] for row in json.loads((weight / 'results.json').read_text())['test']['per_class']]
    assert trained.class_names == tuple(CLASS_NAMES)
    assert trained.class_counts == tuple(counts)
    assert trained.about['router_threshold'] == THRESHOLD
    local = timm.create_model(f'local-dir:{weight}', pretrained=True).eval()
    for net in (trained.model, timm.create_model(f'hf-hub:{REPO}', pretrained=True).eval()):
        assert net.router_threshold == THRESHOLD
        with torch.inference_mode():
            for threshold in (None, 0.4, 0.6):
                ours, own = net.forward_routed(images(), threshold), local.forward_routed(images(), threshold)
                assert torch.equal(ours.logits, own.logits)
                assert torch.equal(ours.num_experts, own.num_experts)
    assert from_pretrained(f'hf-hub:{REPO}', num_classes=3, router=False).num_classes == 3


@both_modes
def test_transformers(published, expected, monkeypatch):
    transformers = pytest.importorskip('transformers')
    net = transformers.AutoModelForImageClassification.from_pretrained(REPO).eval()
    with torch.inference_mode():
        assert torch.equal(net(images()).logits, expected)
    assert net.config.id2label == dict(enumerate(CLASS_NAMES))
    assert net.config.label2id == {name: label for label, name in enumerate(CLASS_NAMES)}
    assert net.config.ride['router_threshold'] == THRESHOLD
    assert net.timm_model.router_threshold == THRESHOLD

    picture = Image.effect_noise((40, 40), 80).convert('RGB')
    processor = transformers.AutoImageProcessor.from_pretrained(REPO)
    pixels = processor(picture, return_tensors='pt')['pixel_values']
    config = timm.data.resolve_model_data_config(from_pretrained(f'hf-hub:{REPO}'))
    assert torch.equal(pixels[0], timm.data.create_transform(**config)(picture))
    with torch.inference_mode():
        shares = net(pixels).logits.softmax(-1)[0]
    found = transformers.pipeline('image-classification', model=REPO)(picture)
    assert {row['label']: row['score'] for row in found} == pytest.approx(
        dict(zip(CLASS_NAMES, shares.tolist(), strict=True)), abs=1e-6
    )
    go_offline(monkeypatch)
    again = transformers.AutoModelForImageClassification.from_pretrained(REPO).eval()
    with torch.inference_mode():
        assert torch.equal(again(images()).logits, expected)


@both_modes
def test_offline_from_the_cache(hub, published, expected, monkeypatch):
    from_pretrained(f'hf-hub:{REPO}')
    asked = len(hub.requests)
    go_offline(monkeypatch)
    for source in (f'hf-hub:{REPO}', f'hf-hub:{REPO}@{published.sha}'):
        assert torch.equal(logits(timm.create_model(source, pretrained=True)), expected)
        assert torch.equal(logits(from_pretrained(source)), expected)
    assert len(hub.requests) == asked


def run_python(code, env):
    env = {**os.environ, **env}
    done = subprocess.run(
        [sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=280, check=False
    )
    return done.stdout, done.stderr


def test_by_name_from_the_pinned_copy(hub, hub_env, published, expected, weight, tmp_path):
    """The tensors are not in the checkout: they come from the commit in the index, and are compared with its hashes."""
    (weight / 'model.safetensors').unlink()
    hub.seed(REPO, {'config.json': b'{}'})  # what main is now does not matter
    del hub.requests[:]
    code = (
        f'import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]}\n'
        'import torch, ride_timm\n'
        'from published import logits\n'
        f'net = ride_timm.from_pretrained({NAME!r}, cache_dir={str(tmp_path / "cache")!r})\n'
        f'torch.save(logits(net), {str(tmp_path / "logits.pt")!r})\n'
        'print(net.router_threshold)\n'
    )
    out, err = run_python(code, {**hub_env, 'RIDE_TIMM_WEIGHTS': str(weight.parent)})
    assert out == f'{THRESHOLD}\n', err
    assert torch.equal(torch.load(tmp_path / 'logits.pt', weights_only=True), expected)
    assert {request.path.split('/')[4] for request in hub.requests if '/resolve/' in request.path} == {published.sha}
    assert len(list((tmp_path / 'cache').rglob('model.safetensors'))) == 1


def test_by_name_another_file_than_the_index_says(hub, hub_env, published, weight):
    entry = hub_entry(weight)
    entry['files']['model.safetensors']['sha256'] = 'b' * 64
    content = json.loads((weight.parent / 'index.json').read_text())
    content['weights'][NAME]['hub'] = entry
    (weight.parent / 'index.json').write_text(json.dumps(content))
    (weight / 'model.safetensors').unlink()
    code = f'import ride_timm\ntry: ride_timm.from_pretrained({NAME!r})\nexcept ride_timm.RideError as e: print(e)'
    out, err = run_python(code, {**hub_env, 'RIDE_TIMM_WEIGHTS': str(weight.parent)})
    assert 'is damaged or another file: its SHA-256 is' in out, err
    assert 'the index says bbbbbbbbbbbb...' in out


@both_modes
def test_download_to_the_cache(hub, published, weight, use_root, capsys):
    (weight / 'model.safetensors').unlink()
    use_root(weight.parent)
    folder = download(NAME)
    assert folder.name == published.sha
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == hub.files(REPO)
    assert download_main([NAME]) == 0
    assert f'timm.create_model({NAME!r}, pretrained=True)' in capsys.readouterr().out


def test_the_snippets_of_the_card(published, hub):
    pytest.importorskip('transformers')
    blocks = re.findall(r'```python\n(.*?)```', hub.files(REPO)['README.md'].decode(), re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        torch.manual_seed(0)
        exec(compile(block, 'README.md', 'exec'), {})
    assert {request.status for request in hub.requests} <= {200, 302, 404}  # 404: what timm and transformers try


class TestDownload:
    @both_modes
    def test_into_a_folder(self, hub, published, expected, weight, use_root, tmp_path, capsys):
        (weight / 'model.safetensors').unlink()
        use_root(weight.parent)
        target = tmp_path / 'target'
        assert download_main([ARCHITECTURE, '--output', str(target)]) == 0  # its first weight
        assert {path.name: path.read_bytes() for path in target.iterdir()} == hub.files(REPO)
        assert torch.equal(logits(timm.create_model(f'local-dir:{target}', pretrained=True)), expected)
        assert f'local-dir:{target}' in capsys.readouterr().out
        with pytest.raises(RideError, match='is not an empty folder'):
            download(NAME, target)

    def test_what_is_here(self, hub, weight, use_root, expected, tmp_path):
        use_root(weight.parent)
        assert download(NAME) == weight
        split_tensors(weight)
        use_root(weight.parent)
        download(NAME, tmp_path / 'target')
        assert torch.equal(logits(timm.create_model(f'local-dir:{tmp_path / "target"}', pretrained=True)), expected)
        assert not list((tmp_path / 'target').glob('model-*'))
        assert hub.requests == []

    def test_any_repository(self, published, expected, tmp_path):
        download(f'hf-hub:{REPO}@{published.sha}', tmp_path / 'target')
        assert torch.equal(logits(from_pretrained(tmp_path / 'target')), expected)

    @pytest.mark.parametrize(('name', 'hint'), [(f'{NAME}s', f'did you mean {NAME}'), ('nothing', 'lists them')])
    def test_an_unknown_name(self, weight, use_root, name, hint):
        use_root(weight.parent)
        with pytest.raises(RideError, match=hint):
            download(name)

    def test_nowhere(self, weight, use_root):
        (weight / 'model.safetensors').unlink()
        use_root(weight.parent)
        with pytest.raises(RideError, match='index pins no copy'):
            download(NAME)

    @both_modes
    def test_a_damaged_answer(self, hub, published, weight, use_root, tmp_path):
        (weight / 'model.safetensors').unlink()
        use_root(weight.parent)
        hub.faults.add(Fault(method='GET', path='.*(model.safetensors|/lfs/.*)', action='flip', after_bytes=9000))
        with pytest.raises(RideError, match='is damaged or another file'):
            download(NAME, tmp_path / 'target')
        assert not (tmp_path / 'target').exists()

    def test_a_damaged_file_here(self, weight, use_root):
        use_root(weight.parent)
        (weight / 'model.safetensors').write_bytes(b'other')
        with pytest.raises(RideError, match='the index says'):
            download(NAME)


class TestErrors:
    def refused(self, source=f'hf-hub:{REPO}', **kwargs):
        with pytest.raises(RideError) as refused:
            from_pretrained(source, **kwargs)
        text = str(refused.value)
        assert text.endswith('.')
        assert '\n' not in text
        return text

    def test_an_architecture_that_is_not_registered(self, hub, published):
        files = hub.files(REPO)
        config = json.loads(files['config.json']) | {'architecture': 'ride_resnet99_9e'}
        hub.seed('me/other', files | {'config.json': json.dumps(config).encode()})
        text = self.refused('hf-hub:me/other')
        assert 'ride_resnet99_9e, which neither timm nor this version of ride-timm has' in text
        assert 'pip install -U ride-timm timm' in text

    def test_an_unknown_revision(self, published):
        assert 'has no revision v9; leave @v9 out' in self.refused(f'hf-hub:{REPO}@v9')

    @pytest.mark.parametrize('reader', [False, True])
    def test_a_private_repository(self, hub, hub_login, weight, reader):
        publish_main([str(weight), REPO, '--private'])
        token = hub.reader if reader else False
        assert '`hf auth login` with a token that may read it' in self.refused(token=token)
        assert from_pretrained(f'hf-hub:{REPO}', token=hub.token).num_classes == len(CLASS_NAMES)

    def test_no_such_repository(self, hub):
        assert 'There is no repository me/nothing' in self.refused('hf-hub:me/nothing')

    def test_offline(self, hub, published, monkeypatch):
        go_offline(monkeypatch)
        assert 'is not in the cache and the Hub cannot be reached; connect once' in self.refused()

    @pytest.mark.parametrize('status', [403, 503])
    def test_a_hub_with_trouble(self, hub, published, status):
        hub.faults.add(Fault(status=status, times=None))
        assert f'the Hub answered {status}; try again later' in self.refused()

    @both_modes
    def test_a_hash_that_is_not_the_promised_one(self, published):
        text = self.refused(sha256={'model.safetensors': 'a' * 64})
        assert 'is damaged or another file' in text
        assert 'aaaaaaaaaaaa... was promised' in text

    def test_a_hash_that_is_not_the_hubs(self, hub, published):
        """The storage sends other bytes than the Hub names."""
        hub.faults.add(Fault(method='GET', path='/lfs/.*', action='flip', after_bytes=9000))
        assert 'is damaged or another file' in self.refused()

    @pytest.mark.parametrize('revision', ['main', 'abc', 'A' * 40])
    def test_an_index_without_a_commit_is_not_fetched_from(self, hub, published, weight, use_root, revision):
        content = json.loads((weight.parent / 'index.json').read_text())
        content['weights'][NAME]['hub']['revision'] = revision
        (weight.parent / 'index.json').write_text(json.dumps(content))
        (weight / 'model.safetensors').unlink()
        use_root(weight.parent)
        with (
            pytest.warns(UserWarning, match='a commit of 40 hexadecimal digits'),
            pytest.raises(RideError, match='no published weight'),
        ):
            download(NAME)
        assert hub.requests == []

    @both_modes
    def test_no_token_at_any_request(self, hub, published, tmp_path, capfd):
        """Whatever fails while loading: one sentence, and no token in it, even where the server repeats it."""
        for n in range(1, 20):
            for fault in ({'status': 500}, {'status': 403}, {'status': 404}, {'action': 'reset'}):
                hub.faults.clear()
                armed = hub.faults.add(Fault(nth=n, message=f'no {hub.token}', times=None, **fault))
                try:
                    from_pretrained(f'hf-hub:{REPO}', cache_dir=tmp_path / f'{n}{fault}')
                except RideError as error:
                    seen = traceback.format_exc() + str(error.__context__) + str(error.__cause__)
                    assert hub.token not in seen
            if not armed.seen >= n:
                break
        else:
            pytest.fail('it never ended')
        assert n > 2
        assert hub.token not in ''.join(capfd.readouterr())
