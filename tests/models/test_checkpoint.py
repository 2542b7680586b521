import json
import re

import pytest
import timm
import torch
from routed_nets import routed_net
from safetensors.torch import save_file
from timm.models import load_checkpoint, save_for_hf
from torch.testing import assert_close

from ride_timm.records.published import PretrainedError

ARCHITECTURES = {'test_ride_resnet_3e': 64, 'test_ride_resnet_cifar_3e': 32}
CIFAR = 'test_ride_resnet_cifar_3e'
FULL_WIDTH = (64, 128, 256, 512)
every_architecture = pytest.mark.parametrize('architecture, size', ARCHITECTURES.items())


def load(architecture, path, **kwargs):
    return timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay={'file': str(path)}, **kwargs).eval()


def save(model, folder):
    path = folder / 'model.safetensors'
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


def bodies(model):
    return {
        key: value for key, value in model.state_dict().items() if '.fc.' not in key and not key.startswith('router.')
    }


def heads_differ(model):
    weights = [head.weight for head in model.get_classifier()]
    return not any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


@pytest.fixture
def plain_resnet18(tmp_path):
    """A plain ResNet-18 with running statistics of its own, and its file."""
    model = timm.create_model('resnet18', num_classes=1000)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    return model, save(model, tmp_path)


# its own weights


@every_architecture
def test_own_weights(architecture, size, tmp_path):
    default = timm.create_model(architecture).eval()
    x = torch.randn(2, 3, size, size)
    assert torch.equal(load(architecture, save(default, tmp_path))(x), default(x))


@every_architecture
def test_other_number_of_classes(architecture, size, tmp_path):
    default = timm.create_model(architecture)
    path = save(default, tmp_path)
    found = load(architecture, path, num_classes=7)
    assert found(torch.randn(2, 3, size, size)).shape == (2, 7)
    assert_close(bodies(found), bodies(default), rtol=0, atol=0)
    assert heads_differ(found)
    features = load(architecture, path, num_classes=0)
    assert_close(features.state_dict(), bodies(default), rtol=0, atol=0)


@every_architecture
@pytest.mark.parametrize('num_classes', [None, 7])
def test_other_number_of_channels(architecture, size, num_classes, tmp_path):
    default = timm.create_model(architecture)
    found = load(architecture, save(default, tmp_path), in_chans=1, num_classes=num_classes)
    assert_close(found.conv1.weight, default.conv1.weight.sum(dim=1, keepdim=True))
    assert found(torch.randn(2, 1, size, size)).isfinite().all()


@every_architecture
def test_features_only(architecture, size, tmp_path):
    default = timm.create_model(architecture).eval()
    x = torch.randn(2, 3, size, size)
    maps = load(architecture, save(default, tmp_path), features_only=True)(x)
    assert_close(maps, default.forward_intermediates(x, intermediates_only=True))


# a plain ResNet


def test_seeding_from_a_plain_resnet(plain_resnet18):
    plain, path = plain_resnet18
    model = load('ride_resnet18_3e', path, channels=FULL_WIDTH)
    own = model.state_dict()
    seen = set()
    for key, value in plain.state_dict().items():
        if key.startswith(('layer3.', 'layer4.')):
            copies = [f'experts.{k}.{key}' for k in range(3)]
        else:
            copies = [] if key.startswith('fc.') else [key]
        assert all(torch.equal(own[copy], value) for copy in copies)
        seen |= set(copies)
    assert own.keys() - seen == {f'experts.{k}.fc.weight' for k in range(3)}
    assert heads_differ(model)
    x = torch.randn(2, 3, 64, 64)
    features = model.forward_features(x).chunk(3, dim=1)
    for part in features:
        assert_close(part, plain.eval().forward_features(x))


@pytest.mark.parametrize('arguments', [{'num_classes': 10}, {'num_classes': 10, 'in_chans': 1}, {'head': 'linear'}])
def test_seeding_another_head(plain_resnet18, arguments):
    plain, path = plain_resnet18
    model = load('ride_resnet18_3e', path, channels=FULL_WIDTH, **arguments)
    assert torch.equal(model.experts[2].layer4[1].conv2.weight, plain.layer4[1].conv2.weight)
    assert heads_differ(model)
    assert model(torch.randn(2, arguments.get('in_chans', 3), 64, 64)).shape == (2, arguments.get('num_classes', 1000))


def test_seeding_with_a_router(plain_resnet18):
    model = load('ride_resnet18_3e', plain_resnet18[1], channels=FULL_WIDTH, router=True)
    assert model.forward_routed(torch.randn(2, 3, 64, 64)).logits.shape == (2, 1000)


def test_seeding_from_a_file_without_batch_counts(plain_resnet18, tmp_path):
    """Checkpoints from before PyTorch 0.4.1 have no `num_batches_tracked`."""
    plain, _ = plain_resnet18
    path = tmp_path / 'old.pth'
    torch.save({k: v for k, v in plain.state_dict().items() if not k.endswith('num_batches_tracked')}, path)
    for num_classes in (1000, 10):
        model = load('ride_resnet18_3e', path, channels=FULL_WIDTH, num_classes=num_classes)
        assert torch.equal(model.bn1.running_mean, plain.bn1.running_mean)


# what does not fit: timm alone would let it pass where the number of classes differs as well


@pytest.mark.parametrize('num_classes', [None, 7])
class TestRefusals:
    def refuse(self, architecture, state_dict, sentence, tmp_path, **kwargs):
        path = tmp_path / 'other.pth'
        torch.save(state_dict, path)
        with pytest.raises(RuntimeError, match=sentence) as caught:
            load(architecture, path, **kwargs)
        message = str(caught.value)
        assert message.endswith('.')
        assert '\n' not in message

    def test_number_of_experts(self, num_classes, tmp_path):
        other = timm.create_model('ride_resnet32_4e').state_dict()
        sentence = 'has 4 experts and the network 3; create the architecture whose name ends in _4e'
        self.refuse('ride_resnet32_3e', other, sentence, tmp_path, num_classes=num_classes)

    def test_width(self, num_classes, tmp_path):
        other = timm.create_model(CIFAR, channels=(16, 32, 64)).state_dict()
        sentence = re.escape(
            'shape (32, 16, 3, 3) in the checkpoint and (24, 16, 3, 3) in the network; pass the channels='
        )
        self.refuse(CIFAR, other, sentence, tmp_path, num_classes=num_classes)

    def test_width_of_a_plain_network(self, num_classes, tmp_path):
        other = timm.create_model('resnet18').state_dict()
        sentence = 'a plain ResNet has the full width'
        wider = {'channels': (64, 128, 320, 512)}  # a narrower one takes the best channels
        self.refuse('ride_resnet18_3e', other, sentence, tmp_path, num_classes=num_classes, **wider)

    def test_shallower(self, num_classes, tmp_path):
        other = timm.create_model(CIFAR).state_dict()
        sentence = r'lacks layer1\.1\.\S+; it is of another architecture'
        self.refuse(CIFAR, other, sentence, tmp_path, num_classes=num_classes, layers=(2, 2, 2))

    def test_without_stem(self, num_classes, tmp_path):
        other = timm.create_model(CIFAR).state_dict()
        del other['conv1.weight']
        self.refuse(CIFAR, other, r'lacks conv1\.weight', tmp_path, num_classes=num_classes)

    def test_deeper(self, num_classes, tmp_path):
        other = timm.create_model(CIFAR, layers=(2, 2, 2)).state_dict()
        sentence = r'has layer1\.1\.\S+, which the network does not have; it is of another architecture'
        self.refuse(CIFAR, other, sentence, tmp_path, num_classes=num_classes)

    def test_deeper_plain_network(self, num_classes, tmp_path):
        other = timm.create_model('resnet34').state_dict()
        kwargs = {'num_classes': num_classes, 'channels': FULL_WIDTH}
        self.refuse('ride_resnet18_3e', other, 'it is of another architecture', tmp_path, **kwargs)

    @pytest.mark.parametrize('junk', [{}, {'some.weight': torch.zeros(3)}])
    def test_junk(self, num_classes, junk, tmp_path):
        sentence = 'neither of this package nor of the plain backbone; convert an official RIDE file'
        self.refuse(CIFAR, junk, sentence, tmp_path, num_classes=num_classes)


# routers


def test_router_in_the_file_alone(tmp_path):
    model, x, _ = routed_net(CIFAR, num_classes=100)
    found = load(CIFAR, save(model, tmp_path))
    assert found.router is None
    assert torch.equal(found(x), model(x))


def test_router_in_the_network_alone(tmp_path):
    plain = timm.create_model(CIFAR).eval()
    found = load(CIFAR, save(plain, tmp_path), router=True)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(found(x), plain(x))
    assert found.router.out.weight.std() > 0
    assert found.forward_routed(x, 0.0).num_experts.tolist() == [3, 3]


def test_router_in_both(tmp_path):
    model, x, router_logits = routed_net(CIFAR, num_classes=100)
    found = load(CIFAR, save(model, tmp_path), router=True)
    assert torch.equal(found.forward_router(x).router_logits, router_logits)
    assert found.routing_threshold is None
    assert not any(p.requires_grad for p in found.router.parameters())


def test_router_of_another_size_is_drawn_anew(tmp_path):
    model, x, _ = routed_net(CIFAR, num_classes=100)
    found = load(CIFAR, save(model, tmp_path), router=True, router_top_k=5)
    assert found.router.out.in_features == 5 + 16
    assert torch.equal(found(x), model(x))


# timm's export


@pytest.fixture
def exported(tmp_path):
    """A routed network that timm exported, its images and the source to load it from."""
    model = timm.create_model(CIFAR, num_classes=9, router=True, router_threshold=0.375, channels=(8, 16, 24)).eval()
    for parameter in model.router.parameters():
        torch.nn.init.normal_(parameter)
    save_for_hf(model, tmp_path / 'exported', safe_serialization=True)
    return model, torch.randn(8, 3, 32, 32), f'local-dir:{tmp_path / "exported"}'


def test_export_keeps_the_router(exported, tmp_path):
    model, x, source = exported
    for _ in range(2):  # exported, and exported again from what was loaded
        found = timm.create_model(source, pretrained=True).eval()
        assert torch.equal(found(x), model(x))
        assert torch.equal(found.forward_router(x).router_logits, model.forward_router(x).router_logits)
        assert (found.router_threshold, found.routing_threshold) == (0.375, None)
        assert torch.equal(found.forward_routed(x).num_experts, model.forward_routed(x).num_experts)
        save_for_hf(found, tmp_path / 'again', safe_serialization=True)
        source = f'local-dir:{tmp_path / "again"}'


def test_export_without_weights(exported):
    assert timm.create_model(exported[2], pretrained=False).router is not None


@pytest.mark.parametrize('pretrained', [True, False])
@pytest.mark.parametrize('num_classes', [5, 0])
def test_export_with_other_classes_comes_without_router(exported, num_classes, pretrained):
    model, x, source = exported
    found = timm.create_model(source, pretrained=pretrained, num_classes=num_classes).eval()
    assert found.router is None
    assert found(x).shape == (8, num_classes or model.head_hidden_size)
    if pretrained:
        assert_close(bodies(found), bodies(model), rtol=0, atol=0)


def test_export_as_features_comes_without_router(exported):
    model, x, source = exported
    found = timm.create_model(source, pretrained=True, features_only=True).eval()
    assert not [name for name, _ in found.named_parameters() if 'router' in name]
    assert_close(found(x), model.forward_intermediates(x, intermediates_only=True))


def test_export_with_other_channels_keeps_the_router(exported):
    assert timm.create_model(exported[2], pretrained=True, in_chans=1).router is not None


def test_export_after_the_router_was_dropped(exported, tmp_path):
    model, x, _ = exported
    with pytest.warns(UserWarning, match='is dropped'):
        model.reset_classifier(4)
    save_for_hf(model, tmp_path / 'dropped', safe_serialization=True)
    assert json.loads((tmp_path / 'dropped' / 'config.json').read_text())['model_args']['router'] is False
    found = timm.create_model(f'local-dir:{tmp_path / "dropped"}', pretrained=True).eval()
    assert found.router is None
    assert torch.equal(found(x), model(x))


def test_router_of_other_heads_is_drawn_anew(tmp_path):
    # enough classes on both sides that the router has the same size
    source = timm.create_model(CIFAR, num_classes=60, router=True)
    source.router.out.reset_parameters()  # every new one is alike
    path = save(source, tmp_path)
    overlay = {'file': str(path), 'num_classes': 60}
    found = timm.create_model(CIFAR, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=50, router=True)
    assert found.router.out.weight.shape == source.router.out.weight.shape
    assert not torch.equal(found.router.out.weight, source.router.out.weight)
    kept = timm.create_model(CIFAR, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=60, router=True)
    assert torch.equal(kept.router.out.weight, source.router.out.weight)


def test_a_timm_script_loads_a_checkpoint_with_a_router(tmp_path):
    """As `validate.py --checkpoint`: by timm's `load_checkpoint`, into a network without router."""
    model = timm.create_model(CIFAR, num_classes=9, router=True).eval()
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'last.pth.tar')
    found = timm.create_model(CIFAR, num_classes=9)
    with pytest.warns(UserWarning, match='router is left out.*router=True'):
        load_checkpoint(found, str(tmp_path / 'last.pth.tar'))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(found.eval()(x), model(x))


def test_a_state_dict_without_router_is_refused_in_a_sentence():
    model = timm.create_model(CIFAR, num_classes=9, router=True)
    plain = timm.create_model(CIFAR, num_classes=9).state_dict()
    with pytest.raises(RuntimeError, match=r'checkpoint has none.*router=False') as caught:
        model.load_state_dict(plain)
    assert '\n' not in str(caught.value)
    found = model.load_state_dict(plain, strict=False)
    assert all(key.startswith('router.') for key in found.missing_keys)
    assert not found.unexpected_keys


def test_a_folder_of_several_files_says_who_reads_it(exported, tmp_path):
    folder = tmp_path / 'exported'
    (folder / 'model.safetensors').rename(folder / 'model-00001-of-00001.safetensors')
    (folder / 'pytorch_model.bin').unlink(missing_ok=True)
    (folder / 'model.safetensors.index.json').write_text('{}')
    with pytest.raises(PretrainedError, match=r'several files.*ride_timm\.from_pretrained'):
        timm.create_model(exported[2], pretrained=True)
