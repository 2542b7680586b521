import hashlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import resolve_data_config
from timm.models._hub import save_for_hf

from ride_timm.publishing.folder import save_folder
from ride_timm.records import published
from ride_timm.records.published import PretrainedError, published_weights, read_index

ARCHITECTURE = 'test_ride_resnet_cifar_3e'
NAME = f'{ARCHITECTURE}.toy_digits'
CLASSES = 7


def about(path):
    content = path.read_bytes()
    return {'size': len(content), 'sha256': hashlib.sha256(content).hexdigest()}


def write_index(root, names=(NAME,), hub=None):
    weights = {
        name: {'files': {file.name: about(file) for file in sorted((root / name).iterdir())}, 'hub': hub}
        for name in names
    }
    (root / 'index.json').write_text(json.dumps({'format': 1, 'weights': weights}))


def publish(root, name=NAME, **kwargs):
    torch.manual_seed(len(name))
    net = timm.create_model(ARCHITECTURE, num_classes=CLASSES, **kwargs)
    save_folder(net, root / name, [f'class {i}' for i in range(CLASSES)], [50, 40, 30, 20, 10, 5, 1])
    return net.eval()


@pytest.fixture
def use_root(monkeypatch):
    """Make a folder the one that weights come from, in this process."""

    def use(root):
        monkeypatch.setenv('RIDE_TIMM_WEIGHTS', str(root))
        published_weights.cache_clear()
        return published_weights()

    yield use
    monkeypatch.undo()
    published_weights.cache_clear()


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'weights'


@pytest.fixture
def saved(root, use_root):
    """A published net with a router, and its folder."""
    net = publish(root, router=True, router_threshold=0.65)
    write_index(root)
    use_root(root)
    return net


def registered(name=NAME):
    """The cfg as timm's registry would hold it: `register_published` and `register_model` make it at import."""
    weight = published_weights()[name]
    base = timm.get_pretrained_cfg(ARCHITECTURE, allow_unregistered=False).to_dict()
    return base | weight.cfg() | {'architecture': weight.architecture, 'tag': weight.tag}


def create(name=NAME, **kwargs):
    return timm.create_model(ARCHITECTURE, pretrained=True, pretrained_cfg=registered(name), **kwargs).eval()


def same_outputs(a, b, classes=CLASSES):
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        assert a(images).shape == (4, classes)
        return torch.equal(a(images), b(images))


class TestLoading:
    def test_the_tensors_and_the_router_come_back(self, saved):
        net = create()
        assert same_outputs(net, saved)
        assert net.router is not None
        assert net.router_threshold == 0.65
        images = torch.randn(8, 3, 32, 32)
        with torch.inference_mode():
            for ours, theirs in zip(net.forward_routed(images), saved.forward_routed(images), strict=True):
                assert torch.equal(ours, theirs)

    def test_the_labels_and_the_image_size_come_with_them(self, saved):
        cfg = create().pretrained_cfg
        assert cfg['label_names'] == tuple(f'class {i}' for i in range(CLASSES))
        assert cfg['num_classes'] == CLASSES
        assert 'state_dict' not in cfg
        assert resolve_data_config(model=create())['input_size'] == (3, 32, 32)

    def test_without_the_router(self, saved):
        net = create(router=False)
        assert net.router is None
        assert same_outputs(net, saved)

    def test_without_router_in_the_file(self, root, use_root):
        saved = publish(root)
        write_index(root)
        use_root(root)
        assert create().router is None
        assert same_outputs(create(), saved)
        assert create(router=True).router is not None  # drawn anew, frozen

    def test_other_classes_take_the_bodies_and_drop_heads_and_router(self, saved):
        net = create(num_classes=10)
        assert net.router is None
        assert torch.equal(net.experts[2].layer3[0].conv1.weight, saved.experts[2].layer3[0].conv1.weight)
        assert net.experts[0].fc.weight.shape[0] == 10
        net.train()
        net.set_expert_training(True)
        sum(output.square().mean() for output in net(torch.randn(4, 3, 32, 32))).backward()
        assert all(parameter.grad is not None for parameter in net.parameters())

    def test_features_only(self, saved):
        net = create(features_only=True)
        assert len(net(torch.randn(1, 3, 32, 32))) == 4
        assert 'state_dict' not in {**net.pretrained_cfg, **net.model.pretrained_cfg}  # a second copy of all tensors

    def test_timm_writes_the_router_down(self, saved, tmp_path):
        save_for_hf(create(), tmp_path / 'own', safe_serialization=True)
        net = timm.create_model(f'local-dir:{tmp_path / "own"}', pretrained=True).eval()
        assert net.router_threshold == 0.65
        images = torch.randn(8, 3, 32, 32)
        with torch.inference_mode():
            assert torch.equal(net.forward_routed(images).logits, saved.forward_routed(images).logits)

    @pytest.mark.filterwarnings('ignore:`torch.jit:DeprecationWarning', 'ignore:`torch.jit:FutureWarning')
    def test_torchscript_while_it_is_not_routed(self, saved):
        net = create(scriptable=True)
        assert same_outputs(torch.jit.script(net), saved)
        net.set_routing(0.5)
        with pytest.raises(RuntimeError, match='TorchScript cannot route'):
            torch.jit.script(net)  # the script would answer with all experts

    def test_grey_images(self, saved):
        net = create(in_chans=1)
        assert torch.allclose(net.conv1.weight, saved.conv1.weight.sum(1, keepdim=True))
        assert net.router is not None

    def test_the_width_and_depth_that_the_weights_were_made_with(self, root, use_root):
        saved = publish(root, channels=(8, 16, 24), layers=(2, 1, 1))
        write_index(root)
        use_root(root)
        assert same_outputs(create(), saved)
        plain = timm.create_model(ARCHITECTURE, num_classes=CLASSES)
        assert plain.experts[0].layer3[0].conv1.weight.shape[0] != 24

    def test_a_bias_beside_the_cosine_goes_with_the_heads(self, root, use_root):
        saved = publish(root, head='biased_cosine')
        with torch.no_grad():
            saved.experts[1].fc.bias += torch.arange(CLASSES)
        save_folder(saved, root / NAME, [f'class {i}' for i in range(CLASSES)], [50, 40, 30, 20, 10, 5, 1])
        write_index(root)
        use_root(root)
        assert same_outputs(create(), saved)
        for network in (create(num_classes=10), create(num_classes=0)):
            assert network.head == 'cosine'
            assert network._model_args['head'] == 'cosine'
        assert create(num_classes=10).experts[1].fc.bias is None

    def test_shards(self, root, use_root):
        saved = publish(root, router=True)
        folder = root / NAME
        state = load_file(folder / 'model.safetensors')
        halves = [dict(list(state.items())[::2]), dict(list(state.items())[1::2])]
        for number, half in enumerate(halves, start=1):
            save_file(half, folder / f'model-{number:05d}-of-00002.safetensors')
        (folder / 'model.safetensors').unlink()
        write_index(root)
        use_root(root)
        assert same_outputs(create(), saved)
        shard = folder / 'model-00002-of-00002.safetensors'
        content = bytearray(shard.read_bytes())
        content[-3] ^= 1
        shard.write_bytes(content)
        with pytest.raises(PretrainedError, match=r'model-00002-of-00002\.safetensors is damaged'):
            create()

    def test_a_source_of_the_users_own_is_left_alone(self, saved, root, tmp_path):
        other = timm.create_model(ARCHITECTURE, num_classes=CLASSES).eval()
        save_file(other.state_dict(), tmp_path / 'own.safetensors')
        overlay = {'file': str(tmp_path / 'own.safetensors')}
        (root / NAME / 'model.safetensors').write_bytes(b'')  # would be refused
        assert same_outputs(create(pretrained_cfg_overlay=overlay), other)


class TestRefusals:
    def test_another_source_than_the_package(self, saved, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
        with pytest.raises(huggingface_hub.errors.LocalEntryNotFoundError):
            create(pretrained_cfg_overlay={'hf_hub_id': 'nobody/none'})

    """Nothing that differs from the index gets as far as the tensors."""

    @pytest.fixture(autouse=True)
    def no_reading(self, monkeypatch):
        def read(content):
            raise AssertionError('tensors were read')

        monkeypatch.setattr('safetensors.torch.load', read)

    def test_an_untouched_file_is_read(self, saved):
        with pytest.raises(AssertionError, match='tensors were read'):
            create()

    @pytest.mark.parametrize('place', [0, 7, 8, 100, -1])
    def test_a_flipped_bit(self, saved, root, place):
        path = root / NAME / 'model.safetensors'
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(PretrainedError, match='is damaged or a different file'):
            create()

    @pytest.mark.parametrize('length', [0, 4, 8, 1000, -1])
    def test_a_truncated_file(self, saved, root, length):
        path = root / NAME / 'model.safetensors'
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(PretrainedError, match=r'has \d+ bytes and the index says'):
            create()

    def test_a_longer_file(self, saved, root):
        with (root / NAME / 'model.safetensors').open('ab') as file:
            file.write(b'\0')
        with pytest.raises(PretrainedError, match='bytes and the index says'):
            create()

    def test_another_config(self, saved, root):
        path = root / NAME / 'config.json'
        path.write_text(path.read_text().replace('class 1', 'class X'))
        with pytest.raises(PretrainedError, match=r'config\.json is damaged'):
            create()

    def test_a_wrong_hash_in_the_index(self, saved, root, use_root):
        path = root / 'index.json'
        digest = about(root / NAME / 'model.safetensors')['sha256']
        path.write_text(path.read_text().replace(digest, '0' * 64))
        use_root(root)
        with pytest.raises(PretrainedError, match='the index says 000000000000'):
            create()

    def test_no_file_and_no_copy_on_the_hub(self, saved, root):
        cfg = registered()
        (root / NAME / 'model.safetensors').unlink()
        cfg.pop('file')
        with pytest.raises(PretrainedError, match='RIDE_TIMM_WEIGHTS') as error:
            timm.create_model(ARCHITECTURE, pretrained=True, pretrained_cfg=cfg)
        assert str(root / NAME) in str(error.value)

    def test_an_architecture_without_weights_says_how_to_get_some(self, saved):
        with pytest.raises(PretrainedError, match='ride_resnet152_4e has no published weights') as error:
            timm.create_model('ride_resnet152_4e', pretrained=True, device='meta')
        for text in (NAME, 'ride-timm train', 'ride-timm recipes', 'ride-timm convert'):
            assert text in str(error.value)


class TestIndex:
    @pytest.fixture(autouse=True)
    def one_weight(self, root):
        publish(root)
        write_index(root)

    def change(self, root, edit):
        path = root / 'index.json'
        content = json.loads(path.read_text())
        edit(content['weights'])
        path.write_text(json.dumps(content))

    def test_reading(self, root):
        weight = read_index(root)[NAME]
        assert (weight.architecture, weight.tag, weight.num_classes) == (ARCHITECTURE, 'toy_digits', CLASSES)
        assert weight.source == {'file': str(root / NAME / 'model.safetensors')}
        assert weight.config['ride']['class_counts'] == [50, 40, 30, 20, 10, 5, 1]

    @pytest.mark.parametrize('revision', ['main', '', 'a' * 39, 'A' * 40, None])
    def test_a_revision_that_is_no_commit_is_refused(self, root, revision):
        hub = {'repo_id': 'org/name', 'revision': revision, 'files': {}}
        self.change(root, lambda weights: weights[NAME].update(hub=hub))
        with pytest.raises(PretrainedError, match='cannot be understood'):
            read_index(root)

    @pytest.mark.parametrize('file', ['../evil.safetensors', '/evil', '.hidden', 'a/b'])
    def test_a_file_outside_the_folder_is_refused(self, root, file):
        self.change(root, lambda weights: weights[NAME]['files'].update({file: {'size': 1, 'sha256': '0' * 64}}))
        with pytest.raises(PretrainedError, match='has no proper name'):
            read_index(root)

    def test_a_short_hash_is_refused(self, root):
        self.change(root, lambda weights: weights[NAME]['files'].update(x={'size': 1, 'sha256': 'abc'}))
        with pytest.raises(PretrainedError, match="'x' has no proper name or SHA-256"):
            read_index(root)

    @pytest.mark.parametrize('content', ['', '{', '[]', '{}', '{"weights": 3}', '{"weights": {"x.y": {}}}'])
    def test_a_damaged_index_warns_and_gives_nothing(self, root, use_root, content):
        (root / 'index.json').write_text(content)
        with pytest.warns(UserWarning, match='No weights are taken from .*RIDE_TIMM_WEIGHTS'):
            assert NAME not in use_root(root)

    def test_a_folder_that_is_not_there_warns(self, tmp_path, use_root):
        with pytest.warns(UserWarning, match=r'no-such-folder.*No such file'):
            use_root(tmp_path / 'no-such-folder')

    def test_a_hub_copy_is_the_source_where_the_file_is_missing(self, root, use_root):
        hub = {'repo_id': 'org/name', 'revision': 'a' * 40, 'files': {'model.safetensors': about(root / 'index.json')}}
        write_index(root, hub=hub)
        (root / NAME / 'model.safetensors').unlink()
        assert use_root(root)[NAME].source == {'hf_hub_id': f'org/name@{"a" * 40}'}

    def test_the_packages_own_index_is_sound(self):
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            published_weights.cache_clear()
            available = {name for name, weight in published_weights().items() if weight.source}
            assert available <= set(timm.list_pretrained('*ride_*'))  # of large ones a checkout may lack the tensors


def run_python(code, cwd=None, **env):
    return subprocess.run(
        [sys.executable, '-W', 'error', '-c', code], cwd=cwd,
        env={**os.environ, 'OMP_NUM_THREADS': '1', **env}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_registry_of_a_fresh_process(root):
    second = f'{ARCHITECTURE}.other_digits'
    publish(root, router=True)
    publish(root, second)
    write_index(root, (second, NAME))
    child = run_python(
        'import timm, ride_timm\n'
        "print(*timm.list_pretrained('test_ride_*'))\n"
        f'net = timm.create_model({ARCHITECTURE!r}, pretrained=True)\n'
        'print(net.pretrained_cfg["tag"], net.num_classes, net.router is None)\n'
        f'net = timm.create_model({NAME!r}, pretrained=True)\n'
        'print(net.pretrained_cfg["tag"], net.router is None)\n'
        f'print(timm.create_model({ARCHITECTURE!r}).num_classes)\n',
        RIDE_TIMM_WEIGHTS=str(root),
    )
    (said,) = child.stderr.splitlines()  # its classes are not the architecture's own
    assert f'loads {second}, {CLASSES} classes' in said
    assert child.stdout.splitlines() == [
        f'{second} {NAME}',  # the index's first is the default
        f'other_digits {CLASSES} True',
        'toy_digits False',
        '100',  # the architecture's own
    ]


def test_a_relative_folder_of_weights_outlives_a_change_of_the_working_directory(root):
    publish(root)
    write_index(root)
    child = run_python(
        'import os, timm, ride_timm\n'
        "os.chdir('/')\n"
        f'print(timm.create_model({NAME!r}, pretrained=True).num_classes)\n',
        cwd=root.parent, RIDE_TIMM_WEIGHTS=root.name,
    )  # fmt: skip
    assert (child.stdout, child.stderr) == (f'{CLASSES}\n', '')


def test_the_weights_of_a_checkout():
    assert published.package_root() == Path(__file__).resolve().parents[2] / 'weights'
