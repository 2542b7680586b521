"""Test-time augmentation stands next to the ordinary figures and changes none of them."""

import pytest
import timm
import torch
from tiny_runs import CIFAR, train, write_images

from ride_timm.engine.tta import WithMirrorImage
from ride_timm.errors import RideError
from ride_timm.validate import build_parser, validate


def test_mean_of_both_views():
    net = timm.create_model(CIFAR, num_classes=3).eval()
    images = torch.randn(4, 3, 16, 16)
    found = WithMirrorImage(net)(images)
    assert torch.equal(found, (net(images) + net(images.flip(-1))) / 2)
    torch.testing.assert_close(found, WithMirrorImage(net)(images.flip(-1)))


def test_figures_stand_next_to_the_others(tmp_path):
    data = write_images(tmp_path / 'data')
    run = train(data, tmp_path, 'run', '--model', CIFAR, '--loss', 'balpoe')

    def measure(*more):
        argv = ['--checkpoint', str(run), '--data-dir', str(data), '--device', 'cpu', *more]
        return validate(build_parser().parse_args(argv))

    plain, both = measure(), measure('--tta', 'flip')
    added = {name: value for name, value in both.items() if name.startswith('tta_flip_')}
    assert {name: value for name, value in both.items() if name not in added} == plain
    assert {'tta_flip_top1', 'tta_flip_balanced', 'tta_flip_ece'} <= added.keys()
    assert added['tta_flip_gmacs'] == 2 * plain['gmacs']
    router = train(data, tmp_path, 'router', '--stage', 'router', '--init', str(run / 'last.pth.tar'))
    argv = ['--checkpoint', str(router), '--data-dir', str(data), '--device', 'cpu', '--routed', '--tta', 'flip']
    with pytest.raises(RideError, match='--tta flip measures all experts and routing was asked for'):
        validate(build_parser().parse_args(argv))
