"""`--init` from names and plain ResNets, through the real command on tiny images."""

import json
import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_runs import CIFAR, COUNTS, train, write_images

from ride_timm import from_pretrained
from ride_timm.commands.train import main
from ride_timm.errors import RideError
from ride_timm.inference.load import load
from ride_timm.publishing.folder import save_folder
from ride_timm.publishing.index import renew_entry
from ride_timm.records.checkpoint import read_checkpoint
from ride_timm.records.published import published_weights

NAME = f'{CIFAR}.tiny_colours'
STILL = ('--lr', '0', '--weight-decay', '0', '--warmup-epochs', '0')  # weights stay; BatchNorm's statistics do not
BIG = ('--model', 'ride_resnet18_2e', *STILL)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def plain():
    torch.manual_seed(0)
    return timm.create_model('resnet18', num_classes=11)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A published weight of ours for the images' classes, as the one that `timm.create_model` finds."""
    root = tmp_path / 'weights'
    root.mkdir()
    (root / 'index.json').write_text(json.dumps({'format': 1, 'weights': {}}))
    net = timm.create_model(CIFAR, num_classes=3)
    save_folder(net, root / NAME, list(COUNTS), list(COUNTS.values()), {'loss': 'balpoe', 'tau': [0, 1, 2]})
    renew_entry(root / NAME)
    monkeypatch.setenv('RIDE_TIMM_WEIGHTS', str(root))
    published_weights.cache_clear()
    cfg = timm.get_pretrained_cfg(CIFAR)
    weight = published_weights()[NAME]
    registry = timm.models._registry  # as `register_model` fills it at import
    tagged = type(cfg)(**(cfg.to_dict() | weight.cfg() | {'architecture': CIFAR, 'tag': weight.tag}))
    monkeypatch.setitem(registry._model_pretrained_cfgs, NAME, tagged)
    monkeypatch.setitem(registry._model_pretrained_cfgs, CIFAR, tagged)
    yield net
    published_weights.cache_clear()


def weights_of(run):
    return read_checkpoint(run / 'last.pth.tar')['state_dict']


def parameters(net):
    return {name: value.detach() for name, value in net.named_parameters()}


@pytest.mark.parametrize('form', ['pth', 'safetensors'])
def test_a_file_of_a_plain_resnet_seeds_every_expert(data, plain, tmp_path, form):
    path = tmp_path / f'plain.{form}'
    torch.save(plain.state_dict(), path) if form == 'pth' else save_file(plain.state_dict(), path)
    full = ('--model-kwargs', 'channels=(64,128,256,512)', '--init-noise', '0')
    state = weights_of(train(data, tmp_path, 'run', '--init', str(path), *BIG, *full, size=32))
    for name, value in parameters(plain).items():
        if not name.startswith('fc'):
            inside = name.startswith(('layer3', 'layer4'))
            copies = [f'experts.{k}.{name}' for k in range(2)] if inside else [name]
            assert all(torch.equal(state[copy], value) for copy in copies), name
    assert not torch.equal(state['experts.0.fc.weight'], state['experts.1.fc.weight'])


ON_CONVNEXT = ('--model', 'ride', '--model-kwargs', 'backbone=test_convnext', 'num_experts=2', '--init-noise', '0')


@pytest.fixture
def convnext():
    torch.manual_seed(0)
    return timm.create_model('test_convnext', num_classes=11)


def assert_seeded(state, plain):
    for name, value in parameters(plain).items():
        copies = [key for key in state if re.fullmatch(rf'(trunk|experts\.\d\.(body|pool))\.{re.escape(name)}', key)]
        assert len(copies) in (1, 2) or name.startswith('head.fc')
        assert all(torch.equal(state[copy], value) for copy in copies), name
    assert not torch.equal(state['experts.0.fc.weight'], state['experts.1.fc.weight'])


def test_any_backbone_is_initialised_from_a_file(data, convnext, tmp_path):
    torch.save(convnext.state_dict(), tmp_path / 'plain.pth')
    run = train(data, tmp_path, 'run', '--init', str(tmp_path / 'plain.pth'), *ON_CONVNEXT, *STILL, size=32)
    assert_seeded(weights_of(run), convnext)
    assert load(run).model.split == 'stages.2'
    more = train(data, tmp_path, 'router', '--stage', 'router', '--init', str(run), size=32)
    assert load(more).model.router is not None
    light = (*ON_CONVNEXT[:3], "expert_kwargs={'depths': (1, 2, 4, 1)}", *ON_CONVNEXT[3:])
    run = train(data, tmp_path, 'light', '--init', str(tmp_path / 'plain.pth'), *light, *STILL, size=32)
    first, last = (f'stages.3.blocks.{index}.mlp.fc1.weight' for index in range(2))
    assert torch.equal(weights_of(run)[f'experts.1.body.{first}'], convnext.state_dict()[first])
    assert last in convnext.state_dict()
    assert f'experts.1.body.{last}' not in weights_of(run)
    grey = ('--in-chans', '1', '--mean', '0.5', '--std', '0.5')
    run = train(data, tmp_path, 'grey', '--init', str(tmp_path / 'plain.pth'), *ON_CONVNEXT, *STILL, *grey, size=32)
    stem = convnext.stem[0].weight.detach().sum(1, keepdim=True)
    torch.testing.assert_close(weights_of(run)['trunk.stem.0.weight'], stem)


@pytest.mark.parametrize(
    'options',
    [('--init', 'test_convnext.r160_in1k'), ('--pretrained',), ('--pretrained', '--recipe', 'finetune_frozen')],
)
def test_any_backbone_is_initialised_from_timm(data, convnext, tmp_path, monkeypatch, options):
    def create(name, pretrained=False, **kwargs):
        return convnext if pretrained else real(name, **kwargs)

    real = timm.create_model
    monkeypatch.setattr(timm, 'create_model', create)  # instead of a download
    run = train(data, tmp_path, 'run', *options, *ON_CONVNEXT, *STILL, size=32)
    assert_seeded(weights_of(run), convnext)


def test_experts_alone_are_trained_on_a_frozen_trunk(data, tmp_path):
    plain = timm.create_model('test_efficientnet', num_classes=11)  # with BatchNorm, whose statistics stay too
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    model = ('--model', 'ride', '--model-kwargs', 'backbone=test_efficientnet', 'num_experts=2')
    options = ('--init', str(tmp_path / 'plain.pth'), *model, '--recipe', 'finetune_frozen')
    state, before = weights_of(train(data, tmp_path, 'run', *options, size=32)), plain.state_dict()
    trunk = {key: value for key, value in state.items() if key.startswith('trunk.')}
    assert all(torch.equal(value, before[key.removeprefix('trunk.')]) for key, value in trunk.items())
    more = train(data, tmp_path, 'router', '--stage', 'router', '--init', str(tmp_path / 'run'), size=32)
    assert load(more).model.router is not None
    body = {key: value for key, value in state.items() if key.startswith('experts.0.body.')}
    assert any(not torch.equal(value, before[key.removeprefix('experts.0.body.')]) for key, value in body.items())


def test_experts_are_set_apart(data, plain, tmp_path):
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    state = weights_of(train(data, tmp_path, 'run', '--init', str(tmp_path / 'plain.pth'), *BIG, size=32))
    one, other = (state[f'experts.{k}.layer3.0.conv1.weight'] for k in range(2))
    assert 0.005 < ((one - other).norm() / one.norm()).item() < 0.02
    assert one.shape[0] == 192


def test_grey_images(data, plain, tmp_path):
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    grey = ('--in-chans', '1', '--mean', '0.5', '--std', '0.5')
    state = weights_of(train(data, tmp_path, 'run', '--init', str(tmp_path / 'plain.pth'), *BIG, *grey, size=32))
    torch.testing.assert_close(state['conv1.weight'], plain.conv1.weight.detach().sum(1, keepdim=True))


def test_a_plain_resnet_of_another_depth(data, tmp_path):
    torch.save(timm.create_model('resnet34', num_classes=3).state_dict(), tmp_path / 'plain.pth')
    with pytest.raises(RideError, match='does not fit resnet18, the plain form of ride_resnet18_2e') as caught:
        train(data, tmp_path, 'run', '--init', str(tmp_path / 'plain.pth'), *BIG, size=32)
    assert '"layer1.2.conv1.weight", ...); give the weights of a resnet18, or the --model' in str(caught.value)


def test_a_file_that_does_not_say_what_it_is_of(data, plain, tmp_path):
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    with pytest.raises(RideError, match='a plain network and does not say of which; add the --model'):
        train(data, tmp_path, 'run', '--init', str(tmp_path / 'plain.pth'))
    with pytest.raises(RideError, match='add the --model'):
        train(data, tmp_path, 'run', '--init', str(tmp_path / 'plain.pth'), '--model', 'resnet18')


def test_the_folder_of_a_run(data, tmp_path):
    first = train(data, tmp_path, 'first', '--model', CIFAR)
    state = weights_of(train(data, tmp_path, 'second', '--init', str(first), *STILL))
    own = weights_of(first)
    learnt = parameters(timm.create_model(CIFAR, num_classes=3))
    assert all(torch.equal(state[name], own[name]) for name in learnt)
    with pytest.raises(RideError, match=r'holds neither the last.pth.tar of a run nor'):
        train(data, tmp_path, 'third', '--init', str(data))


def test_a_run_keeps_its_image_size(data, tmp_path):
    first = train(data, tmp_path, 'first', '--model', CIFAR, size=16)
    options = ['--output', str(tmp_path), '--experiment', 'second', '--epochs', '1', '--device', 'cpu', *STILL]
    assert main(['--data-dir', str(data), '--init', str(first), *options]) == 0
    second = read_checkpoint(tmp_path / 'second/last.pth.tar')
    assert second['args']['data_config']['input_size'] == (3, 16, 16)


def test_a_named_network_of_timm_picks_its_multi_expert_form(data, tmp_path, plain, monkeypatch):
    def create(name, pretrained=False, **kwargs):
        if not pretrained:
            return real(name, **kwargs)
        net = real(name, num_classes=11)
        net.load_state_dict(plain.state_dict())
        return net

    real = timm.create_model
    monkeypatch.setattr(timm, 'create_model', create)  # instead of a download
    run = train(data, tmp_path, 'run', '--init', 'resnet18.a1_in1k', *STILL, size=32)
    assert read_checkpoint(run / 'last.pth.tar')['arch'] == 'ride_resnet18_3e'
    assert torch.equal(weights_of(run)['conv1.weight'], plain.conv1.weight)
    only = train(data, tmp_path, 'plain', '--init', 'resnet18.a1_in1k', '--model', 'resnet18', *STILL, size=32)
    assert read_checkpoint(only / 'last.pth.tar')['arch'] == 'resnet18'
    assert torch.equal(weights_of(only)['layer4.1.conv2.weight'], plain.layer4[1].conv2.weight)


@pytest.mark.parametrize('options', [('--init', NAME), ('--model', CIFAR, '--pretrained')])
def test_published_weights_keep_their_heads_for_the_same_classes(data, tmp_path, published, options):
    state = weights_of(train(data, tmp_path, 'run', *options, *STILL))
    assert all(torch.equal(state[name], value) for name, value in parameters(published).items())


def test_published_weights_get_new_heads_for_other_classes(tmp_path, published):
    other = write_images(tmp_path / 'other', {'dog': 8, 'elk': 8, 'fox': 8})
    state = weights_of(train(other, tmp_path, 'run', '--init', NAME, *STILL))
    own = parameters(published)
    assert torch.equal(state['conv1.weight'], own['conv1.weight'])
    assert not torch.equal(state['experts.0.fc.weight'], own['experts.0.fc.weight'])


def test_layers_near_the_input_learn_less(data, tmp_path, plain):
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    options = ('--model', 'ride_resnet18_2e', '--lr', '0.01', '--weight-decay', '0', '--layer-decay', '0.1')
    more = ('--opt', 'sgd', '--warmup-epochs', '0', '--sched', 'step', '--init-noise', '0')
    state = weights_of(
        train(data, tmp_path, 'run', '--init', str(tmp_path / 'plain.pth'), *options, *more, size=32)
    )  # fmt: skip
    moved = (state['conv1.weight'] - plain.conv1.weight).norm() / plain.conv1.weight.norm()
    full = train(data, tmp_path, 'all', '--init', str(tmp_path / 'plain.pth'), *options[:-2], *more, size=32)
    alone = (weights_of(full)['conv1.weight'] - plain.conv1.weight).norm() / plain.conv1.weight.norm()
    assert 0 < moved < 0.1 * alone


def test_the_later_stages_refuse_plain_weights(data, tmp_path, plain):
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    with pytest.raises(RideError, match=r'stage heads .* a plain network'):
        train(data, tmp_path, 'run', '--stage', 'heads', '--init', str(tmp_path / 'plain.pth'), *BIG, size=32)


def test_published_weights_of_another_model(data, tmp_path, published):
    with pytest.raises(RideError, match='--model is ride_resnet32_4e'):
        train(data, tmp_path, 'run', '--init', NAME, '--model', 'ride_resnet32_4e')


def test_a_name_that_nothing_has(data, tmp_path):
    with pytest.raises(RideError, match=r'There is no checkpoint .*, and no network of that name; give a run'):
        train(data, tmp_path, 'run', '--init', 'resnet9000.a1_in1k')
    with pytest.raises(RideError, match=r'no weights resnet18.none; those of resnet18 are: resnet18.a1_in1k, '):
        train(data, tmp_path, 'run', '--init', 'resnet18.none')
    with pytest.raises(RideError, match=r'There is no checkpoint resnet18.pth, and'):
        train(data, tmp_path, 'run', '--init', 'resnet18.pth')


def test_a_router_that_asks_the_experts_in_another_order(data, tmp_path):
    experts = train(data, tmp_path, 'experts', '--model', CIFAR, '--loss', 'balpoe', '--holdout', '0.2')
    options = ('--stage', 'router', '--init', str(experts))
    router = train(data, tmp_path, 'router', *options, '--expert-order', '1', '0', '2')
    before, after = weights_of(experts), weights_of(router)
    for key, value in before.items():
        for old, new in ((1, 0), (0, 1), (2, 2)):
            if key.startswith(f'experts.{old}.'):
                key = f'experts.{new}.' + key.partition(f'{old}.')[2]
                break
        assert torch.equal(after[key], value), key
    entry = read_checkpoint(router / 'last.pth.tar')['ride']
    assert (entry['tau'], entry['loss_kwargs'].get('tau')) == ((1.0, 0.0, 2.0), None)
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(from_pretrained(router)(images), from_pretrained(experts)(images))
    # and from there to yet another one, in which the router that knew the last order has no part
    again = train(data, tmp_path, 'again', *options[:2], '--init', str(router), '--expert-order', '1', '0', '2')
    assert all(torch.equal(value, before[key]) for key, value in weights_of(again).items() if key in before)
    for order in (('0', '1'), ('0', '0', '1'), ('1', '2', '3')):
        with pytest.raises(RideError, match='has 3 experts; name each of 0 to 2 once'):
            train(data, tmp_path, 'refused', *options, '--expert-order', *order)


@pytest.mark.filterwarnings("ignore:RIDE's loss")
def test_a_loss_for_several_experts_on_one(data, tmp_path, caplog):
    train(data, tmp_path, 'run', '--model', 'resnet18', '--loss', 'ride')
    assert '--loss ride makes experts disagree, but resnet18 has only one' in caplog.text
