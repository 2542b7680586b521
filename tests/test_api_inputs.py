"""What people hand to the Python API: wrapped and half-precision networks, batches, counts and groups of all kinds."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ride_timm as rt

CLASSES = 4
COUNTS = [500, 50, 10, 5]


def network(**options):
    torch.manual_seed(0)
    return timm.create_model('test_ride_resnet_cifar_3e', num_classes=CLASSES, **options)


@pytest.fixture(scope='module')
def pairs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 3, 32, 32, generator=generator), torch.arange(16) % CLASSES


@pytest.fixture(scope='module')
def loader(pairs):
    return DataLoader(TensorDataset(*pairs), 8)


class Wrapper(nn.Module):
    """What DDP is to the rest: a network in `module`."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def compiled(model):
    return torch.compile(model, backend='eager')


@pytest.mark.parametrize('wrap', [Wrapper, compiled])
def test_wrapped_networks_are_what_they_wrap(wrap, loader, pairs):
    model = network(router=True).eval()
    plain, wrapped = rt.evaluate(model, loader, COUNTS), rt.evaluate(wrap(model), loader, COUNTS)
    assert str(wrapped) == str(plain)
    assert len(wrapped.experts) == 3
    assert rt.evaluate(wrap(model), loader, COUNTS, routed=True).mean_experts is not None
    assert rt.choose_threshold(wrap(model), loader, max_loss=1.0).threshold == model.router_threshold == 1.0
    before = next(model.router.parameters()).clone()
    rt.train_router(wrap(model), loader, epochs=1)
    assert not torch.equal(before, next(model.router.parameters()))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_networks(dtype, loader, tmp_path):
    from PIL import Image

    model = network(router=True).to(dtype)
    assert rt.evaluate(model, loader, COUNTS, routed=True).num_images == 16
    assert len(rt.predict(model, Image.new('RGB', (40, 40)))[0].top) == 3
    assert rt.choose_threshold(model, loader, max_loss=1.0).num_images == 16


@pytest.mark.parametrize(
    ('batch', 'word'),
    [
        ({'image': torch.zeros(2, 3, 32, 32)}, 'dict'),
        ((torch.zeros(2, 3, 32, 32), torch.zeros(1).long()), '2 images'),
        ((torch.zeros(2, 3, 32, 32), ['ant', 'bee']), 'ant'),
        (torch.zeros(2, 3, 32, 32), 'without class indices'),
    ],
)
def test_batches_that_are_none(batch, word):
    with pytest.raises(rt.RideError, match=word):
        rt.evaluate(network(), [batch], COUNTS)


@pytest.mark.parametrize('kind', [list, np.asarray, lambda labels: labels.to(torch.uint8), lambda labels: labels.int()])
def test_class_indices_of_any_kind(kind, pairs, loader):
    images, labels = pairs
    found = rt.evaluate(network(), [[images, kind(labels), 'more']], COUNTS)
    assert str(found) == str(rt.evaluate(network(), loader, COUNTS))


@pytest.mark.parametrize('counts', [Counter(range(4)), [-1, 1, 1, 1], [float('nan')] * 4, ['a'] * 4, np.ones((2, 4))])
def test_counts_that_are_none(counts, loader):
    with pytest.raises(rt.RideError, match='counts'):
        rt.evaluate(network(), loader, counts)


def test_logit_adjustment_takes_no_mapping():
    with pytest.raises(rt.RideError, match='no class order'):
        rt.logit_adjustment(network(), Counter({0: 500, 1: 50, 2: 10, 3: 5}), tau=1.0)


def test_groups_as_a_mask(loader):
    rare = np.array(COUNTS) < 20
    masked, named = (rt.evaluate(network(), loader, COUNTS, groups={'rare': group}) for group in (rare, [2, 3]))
    assert masked.groups == named.groups
    assert masked.groups.keys() == {'rare'}


@pytest.mark.parametrize('group', [{'top1': [0]}, {'balanced': [0]}, {'gmacs': [0]}])
def test_groups_called_like_a_result(group, loader):
    with pytest.raises(rt.RideError, match='another name'):
        rt.evaluate(network(), loader, COUNTS, groups=group)


@pytest.mark.parametrize('members', [[4], [-1], [0.5], [[0]], ['a']])
def test_groups_of_other_classes(members, loader):
    with pytest.raises(rt.RideError, match='from 0 to 3'):
        rt.evaluate(network(), loader, COUNTS, groups={'rare': members})


def broken(images):
    yield images
    raise KeyboardInterrupt


class Interrupted(list):
    def __iter__(self):
        return broken(self[0])


@pytest.mark.parametrize('frozen', ['conv1', 'experts'])
def test_a_router_that_fails_leaves_what_was_trainable(frozen, pairs):
    images, labels = pairs
    model = network()
    model.get_submodule(frozen).requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with pytest.raises(rt.RideError, match='loss became nan'):
        rt.train_router(model, [(images * float('nan'), labels)])
    with pytest.raises(KeyboardInterrupt):
        rt.train_router(model, Interrupted([(images, labels)]))
    after = {name: parameter.requires_grad for name, parameter in model.named_parameters() if name in before}
    assert after == before


def test_a_wrong_target_adds_no_router(loader):
    model = network()
    with pytest.raises(rt.RideError, match='must be one of'):
        rt.train_router(model, loader, target='x')
    assert model.router is None


@pytest.mark.parametrize(('epochs', 'batches'), [(0, 1), (1, 0)])
def test_a_router_with_nothing_to_learn_from(epochs, batches, pairs):
    with pytest.raises(rt.RideError, match='at least one'):
        rt.train_router(network(), [pairs] * batches, epochs=epochs)


@pytest.mark.parametrize('groups', [[1, 1, 2], [('a', 1), ('a', 1), 'b']])
def test_groups_of_images_are_of_any_kind(groups):
    from PIL import Image

    found = rt.predict(
        network(), [Image.new('RGB', (40, 40), colour) for colour in ('red', 'blue', 'red')], groups=groups
    )
    assert found[0].top == found[1].top
    assert found[0].top != found[2].top


def test_predict_wants_an_answer():
    with pytest.raises(rt.RideError, match='top_k=0'):
        rt.predict(network(), [], top_k=0)


def test_new_heads_forget_the_names_of_the_old():
    model = timm.create_model('ride_resnet32_3e.balpoe_cifar100lt', pretrained=True)
    assert len(model.pretrained_cfg['label_names']) == 100
    model.reset_classifier(100)
    assert 'label_names' not in model.pretrained_cfg


@pytest.mark.parametrize('model', [nn.Sequential(nn.Linear(2, 2)), network()])
def test_rideify_takes_plain_classifiers(model):
    with pytest.raises(rt.RideError, match='plain timm classifier'):
        rt.rideify(model)


def test_paths_are_options():
    assert rt.TrainConfig(data_dir=Path('images')).data_dir == 'images'
