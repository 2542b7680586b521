"""Trained networks, loaded with other heads, channels or without the router."""

import pytest
import timm
import torch
from tiny_runs import CIFAR

from ride_timm import RideError, from_pretrained
from ride_timm.publishing.folder import save_folder

CLASSES = 4


@pytest.fixture(scope='module')
def net():
    return timm.create_model(CIFAR, num_classes=CLASSES, router=True).eval()


@pytest.fixture(scope='module', params=['checkpoint', 'folder'])
def source(request, net, tmp_path_factory):
    root = tmp_path_factory.mktemp('net')
    if request.param == 'folder':
        save_folder(net, root, [f'class {i}' for i in range(CLASSES)], [4, 3, 2, 1])
        return root
    torch.save({'arch': CIFAR, 'state_dict': net.state_dict(), 'args': {'num_classes': CLASSES}}, root / 'a.pth.tar')
    return root / 'a.pth.tar'


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)


@torch.inference_mode()
def test_as_it_is(net, source, images):
    for loaded in (from_pretrained(source), from_pretrained(source, num_classes=CLASSES)):
        assert torch.equal(loaded(images), net(images))
        assert loaded.router is not None


@torch.inference_mode()
def test_other_classes(net, source, images):
    loaded = from_pretrained(source, num_classes=7)
    assert loaded(images).shape == (2, 7)
    assert loaded.router is None  # it belonged to the old heads
    assert torch.equal(loaded.forward_features(images), net.forward_features(images))
    assert not loaded.training


@torch.inference_mode()
def test_no_classes(net, source, images):
    assert torch.equal(
        from_pretrained(source, num_classes=0)(images), net.forward_head(net.forward_features(images), pre_logits=True)
    )


@torch.inference_mode()
def test_without_the_router(net, source, images):
    loaded = from_pretrained(source, router=False)
    assert loaded.router is None
    assert torch.equal(loaded(images), net(images))


@torch.inference_mode()
def test_grey_images(net, source, images):
    grey = images[:, :1]
    loaded = from_pretrained(source, in_chans=1)
    torch.testing.assert_close(loaded(grey), net(grey.expand(-1, 3, -1, -1)))
    assert loaded.router is not None


def test_feature_maps_are_not_asked_for_here(source):
    with pytest.raises(RideError, match=r'whose classifier is asked for here; feature maps come from timm\.create'):
        from_pretrained(source, features_only=True)
