"""What was published comes back, bit for bit, through timm, transformers and us; what is said where it does not."""

import json
import re
import traceback

import pytest
import timm
import torch
from fake_hub import httpx, refusal
from PIL import Image
from published import (
    CLASS_NAMES,
    NAME,
    REPO,
    THRESHOLD,
    images,
    logits,
    make_weight,
)

from ride_timm import RideError, from_pretrained
from ride_timm.commands.publish import main as publish_main
from ride_timm.inference.load import load

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
    trained = load(f'hf-hub:{REPO}')
    counts = [row['train_images'] for row in json.loads((weight / 'results.json').read_text())['test']['per_class']]
    assert trained.class_names == tuple(CLASS_NAMES)
    assert trained.class_counts == tuple(counts)
    assert trained.record.router_threshold == THRESHOLD
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


def test_by_name_from_the_pinned_copy(hub, published, expected, weight, tmp_path):
    """The tensors are not in the checkout: they come from the commit in the index, and are compared with its hashes."""
    (weight / 'model.safetensors').unlink()
    hub.seed(REPO, {'model.safetensors': b'newer'})  # what main is now does not matter
    code = (
        'import torch, ride_timm\n'
        'from published import logits\n'
        f'net = ride_timm.from_pretrained({NAME!r}, cache_dir={str(tmp_path / "cache")!r})\n'
        f'torch.save(logits(net), {str(tmp_path / "logits.pt")!r})\n'
        'print(net.router_threshold)\n'
    )
    assert hub.run_python(code, tmp_path, {'RIDE_TIMM_WEIGHTS': str(weight.parent)}) == f'{THRESHOLD}\n'
    assert torch.equal(torch.load(tmp_path / 'logits.pt', weights_only=True), expected)
    (found,) = (tmp_path / 'cache').rglob('model.safetensors')
    assert found.parent.name == published.sha


@pytest.mark.parametrize(
    ('key', 'value', 'said'),
    [('sha256', 'b' * 64, 'the index says bbbbbbbbbbbb...'), ('revision', 'main', 'a commit of 40 hexadecimal digits')],
)
def test_an_index_that_names_another_file_or_no_commit(hub, published, weight, tmp_path, key, value, said):
    content = json.loads((weight.parent / 'index.json').read_text())
    pinned = content['weights'][NAME]['hub']
    (pinned if key in pinned else pinned['files']['model.safetensors'])[key] = value
    (weight.parent / 'index.json').write_text(json.dumps(content))
    (weight / 'model.safetensors').unlink()
    code = (
        'import warnings; warnings.simplefilter("error")\n'
        f'try:\n import ride_timm; ride_timm.from_pretrained({NAME!r})\nexcept Exception as e: print(e)'
    )
    assert said in hub.run_python(code, tmp_path, {'RIDE_TIMM_WEIGHTS': str(weight.parent)})


def test_the_snippets_of_the_card(hub, published):
    pytest.importorskip('transformers')
    blocks = re.findall(r'```python\n(.*?)```', hub.files(REPO)['README.md'].decode(), re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        torch.manual_seed(0)
        exec(compile(block, 'README.md', 'exec'), {})


def damage(request, answer):
    """The storage sends other bytes than the Hub names."""
    if request.url.host == 'storage.invalid' and request.method == 'GET':
        return httpx.Response(200, content=answer.content[:-1] + bytes([answer.content[-1] ^ 1]))
    return answer


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
        assert '`hf auth login`' in self.refused(token=token)
        assert from_pretrained(f'hf-hub:{REPO}', token=hub.token).num_classes == len(CLASS_NAMES)

    def test_no_such_repository(self, hub):
        assert 'There is no repository me/nothing' in self.refused('hf-hub:me/nothing')

    def test_offline(self, hub, published, monkeypatch):
        go_offline(monkeypatch)
        assert 'is not in the cache and the Hub cannot be reached; connect once' in self.refused()

    def test_a_hub_that_refuses(self, hub, published):
        hub.before = lambda request: refusal(403, 'trouble')
        text = self.refused()
        assert 'cannot be fetched' in text
        assert '403' in text

    def test_a_hub_that_is_overloaded(self, hub, published):
        hub.before = lambda request: refusal(503, 'trouble')
        assert 'the Hub cannot be reached' in self.refused()

    @both_modes
    def test_a_hash_that_is_not_the_promised_one(self, published):
        text = self.refused(sha256={'model.safetensors': 'a' * 64})
        assert 'is damaged or a different file' in text
        assert 'not aaaaaaaaaaaa...' in text

    def test_a_hash_that_is_not_the_hubs(self, hub, published):
        hub.after = damage
        assert 'is damaged or a different file' in self.refused()

    @both_modes
    @pytest.mark.parametrize('status', [500, 403, 404, None])
    def test_no_token_at_any_request(self, hub, published, tmp_path, capfd, status):
        """Whatever fails while loading: one sentence, and no token in it, even where the server repeats it."""
        for n in range(20):
            first = len(hub.requests)

            def fail(request, n=n, first=first):
                if len(hub.requests) <= first + n:
                    return None
                if status is None:
                    raise httpx.ReadError(hub.token, request=request)
                return refusal(status, f'no {hub.token}')

            hub.before = fail
            try:
                from_pretrained(f'hf-hub:{REPO}', cache_dir=tmp_path / str(n))
            except RideError:
                assert hub.token not in traceback.format_exc()
            if len(hub.requests) <= first + n:
                break
        assert 2 < n < 19
        assert hub.token not in ''.join(capfd.readouterr())
