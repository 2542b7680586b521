"""The public API from a notebook's view: a plain DataLoader, any timm classifier, and what its docstrings promise."""

import doctest
import warnings

import numpy as np
import pytest
import timm
import torch
from models.routed_nets import routed_net
from PIL import Image
from tiny_runs import CIFAR
from torch.utils.data import DataLoader, TensorDataset

import ride_timm as rt
from ride_timm.evaluation.cost import gmacs
from ride_timm.models import MultiExpertNet, expert_logits

FUNCTIONS = [name for name in rt.__all__ if callable(getattr(rt, name)) and name != 'RideError']
PLAIN = ['test_resnet', 'test_vit', 'test_convnext', 'test_efficientnet', 'ride_resnet32_1e']
COUNTS = [200, 50, 5]


@pytest.fixture(scope='module')
def loader():
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(30, 3, 32, 32, generator=rng)
    return DataLoader(TensorDataset(images, torch.arange(30) % 3), batch_size=8)


@pytest.fixture
def routed():
    torch.manual_seed(0)
    net, images, _ = routed_net(CIFAR, batch=24, num_classes=3)
    return net, DataLoader(TensorDataset(images, torch.arange(24) % 3), batch_size=5)


@pytest.mark.parametrize('name', [*FUNCTIONS, 'MultiExpertNet.add_router'])
def test_the_example_of_each_public_name(name):
    found = MultiExpertNet.add_router if '.' in name else getattr(rt, name)
    (test,) = doctest.DocTestFinder(recurse=False).find(found, name, globs={})
    assert test.examples, f'{name} has no example'
    assert doctest.DocTestRunner().run(test).failed == 0


def test_results_are_those_of_the_images_one_by_one(routed):
    net, loader = routed
    images, targets = loader.dataset.tensors
    scores = rt.evaluate(net, loader, COUNTS)
    with torch.no_grad():
        right = (net.forward_experts(images).argmax(-1) == targets[:, None]).double()
        all_right = (net(images).argmax(1) == targets).double()
    assert scores.overall == pytest.approx(100 * float(all_right.mean()))
    assert scores.experts == pytest.approx((100 * right.mean(0)).tolist())
    named = net.forward_experts(images).argmax(-1)
    assert scores.disagreement == pytest.approx(100 * float((named != named[:, :1]).any(1).double().mean()))
    by_class = [100 * float(all_right[targets == c].mean()) for c in range(3)]
    assert list(scores.groups.values()) == pytest.approx(by_class)
    assert scores.worst_class == pytest.approx(min(by_class))
    routed_scores = rt.evaluate(net, loader, COUNTS, routed=True)
    found = net.forward_routed(images)
    assert routed_scores.overall == pytest.approx(100 * float((found.logits.argmax(1) == targets).double().mean()))
    assert routed_scores.mean_experts == pytest.approx(float(found.num_experts.double().mean()))
    assert routed_scores.gmacs < scores.gmacs
    for line in ('overall', 'many', 'medium', 'few', 'worst class', 'macro-F1', 'ECE', 'expert 2', 'GMACs', 'mean exp'):
        assert line in str(routed_scores)


@pytest.mark.parametrize('size', [32, 64])
def test_gmacs_are_of_the_images_given(size):
    net = timm.create_model('test_ride_resnet_3e', num_classes=3)
    data = TensorDataset(torch.randn(3, 3, size, size), torch.arange(3))
    scores = rt.evaluate(net, DataLoader(data), COUNTS)
    assert scores.gmacs == gmacs(net, (3, size, size))
    assert scores.input_size == (3, size, size)


@pytest.mark.parametrize('name', PLAIN)
def test_any_classifier(name, loader):
    size = timm.get_pretrained_cfg(name).input_size[-1]
    data = TensorDataset(torch.randn(6, 3, size, size), torch.arange(6) % 3)
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=3)
    criterion = rt.create_loss('balpoe', COUNTS, model=net, epochs=1)
    images, targets = data.tensors
    criterion(net.train()(images), targets).backward()
    scores = rt.evaluate(net, DataLoader(data, batch_size=4), COUNTS)
    assert len(scores.experts) == (1 if name.startswith('ride') else 0)
    assert scores.gmacs > 0
    assert net.training
    assert expert_logits(net.eval(), images).shape == (6, 1, 3)
    before = net(images)
    rt.logit_adjustment(net, COUNTS, tau=1.0)
    assert not torch.equal(net(images), before)
    rt.logit_adjustment(net, COUNTS, tau=0)
    assert torch.equal(net(images), before)
    assert len(rt.predict(net, Image.new('RGB', (size, size)))[0].top) == 3
    with pytest.raises(rt.RideError, match='router'):
        rt.train_router(net, loader)


def test_each_layer_keeps_its_mode(loader):
    net = timm.create_model(CIFAR, num_classes=3).train()
    net.bn1.eval()
    rt.evaluate(net, loader, COUNTS)
    assert net.training
    assert not net.bn1.training


def test_groups_and_mixed_precision(loader):
    net = timm.create_model(CIFAR, num_classes=3)
    scores = rt.evaluate(net, loader, COUNTS, groups={'birds': [0, 2], 'bees': [1]}, amp=True)
    assert set(scores.groups) == {'birds', 'bees'}


def test_a_router_is_added_and_only_it_learns(loader):
    torch.manual_seed(0)
    net = timm.create_model(CIFAR, num_classes=3)
    net.conv1.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    rt.train_router(net, loader, epochs=1, lr=0.1, pos_weight=10.0)
    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name.split('.')[0] for name in after.keys() - before.keys()} == {'router'}
    assert not net.conv1.weight.requires_grad
    assert all(p.requires_grad for p in net.experts.parameters())
    with pytest.raises(RuntimeError, match='has a router'):
        net.add_router()
    fresh = timm.create_model(CIFAR, num_classes=3, router=True)
    fresh.load_state_dict(after)


def test_the_threshold_is_set_and_is_what_is_measured(routed):
    net, loader = routed
    choice = rt.choose_threshold(net, loader, COUNTS, max_loss=1.0)
    assert (choice.threshold, choice.mean_experts) == (net.router_threshold, 1.0)
    assert choice.gaps['all'].routed == pytest.approx(rt.evaluate(net, loader, COUNTS, routed=True).overall)
    assert choice.gaps['all'].full == pytest.approx(rt.evaluate(net, loader, COUNTS).overall)
    none = rt.choose_threshold(net, loader, max_loss=0.0)
    assert (none.threshold, net.router_threshold, none.mean_experts) == (0.0, 0.0, 3.0)
    images = [images for images, _ in loader]
    assert rt.choose_threshold(net, images, budget=choice.gmacs).gaps == {}
    for name, value in (('max_loss', -0.1), ('max_loss', 1.5), ('confidence', 1.0), ('loss', 'guilt')):
        with pytest.raises(rt.RideError, match=name):
            rt.choose_threshold(net, loader, COUNTS, **{name: value})


def test_paths_and_pillow_images_alike(tmp_path):
    torch.manual_seed(0)
    net = timm.create_model(CIFAR, num_classes=3)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / 'a.png')
    found = rt.predict(net, [tmp_path / 'a.png', image, str(tmp_path / 'no.png'), image.convert('L')])
    assert found[0].top == found[1].top
    assert found[0].experts == found[1].experts
    assert found[0].path == str(tmp_path / 'a.png')
    assert 'No such file' in found[2].reason
    assert len(str(found).splitlines()) == 4
    with pytest.raises(rt.RideError, match='int'):
        rt.predict(net, [3])
    with pytest.raises(rt.RideError, match='threshold'):
        rt.predict(net, image, threshold=0.5)


def test_predict_routes_as_the_network_does(routed):
    net, _ = routed
    image = Image.new('RGB', (32, 32))
    assert rt.predict(net, image)[0].num_experts == 3
    net.set_routing(1.0)
    assert rt.predict(net, image)[0].num_experts == 1
    assert rt.predict(net, image, threshold=0.0)[0].num_experts == 3


def test_errors_that_name_what_does_not_fit(loader):
    net = timm.create_model(CIFAR, num_classes=3)
    with pytest.raises(rt.RideError, match='3 classes and counts has 4'):
        rt.evaluate(net, loader, [1, 2, 3, 4])
    with pytest.raises(rt.RideError, match='router'):
        rt.evaluate(net, loader, COUNTS, routed=True)
    with pytest.raises(rt.RideError, match='router'):
        rt.choose_threshold(net, loader, COUNTS)
    two = timm.create_model(CIFAR, num_classes=2)
    with pytest.raises(rt.RideError, match='class indices 0 to 2'):
        rt.evaluate(two, loader, [5, 2])
    with pytest.raises(rt.RideError, match='no images'):
        rt.evaluate(net, [], COUNTS)
    net.add_router()
    with pytest.raises(rt.RideError, match='no images'):
        rt.choose_threshold(net, [])


def test_the_loss_says_that_it_was_never_told_the_epoch():
    net = timm.create_model(CIFAR, num_classes=3)
    net.set_expert_training(True)
    criterion = rt.create_loss('ride', COUNTS, model=net, epochs=10)
    images, targets = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    with pytest.warns(UserWarning, match='set_epoch'):
        criterion(net.train()(images), targets)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        criterion(net(images), targets)
