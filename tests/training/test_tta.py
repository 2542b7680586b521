"""Test-time augmentation stands next to the ordinary figures and changes none of them."""

import pytest
import timm
import torch
from tiny_runs import CIFAR, train, write_images

from ride_timm.commands.validate import build_parser, validate
from ride_timm.errors import RideError
from ride_timm.evaluation.one_pass import measure


@pytest.mark.parametrize('name', [CIFAR, 'test_resnet'])
def test_mean_of_both_views(name):
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=3).eval()
    images, target = torch.randn(40, 3, 32, 32), torch.randint(3, (40,))
    found = measure(net, [(images, target)], [9, 9, 9], mirror=True).mirrored
    with torch.no_grad():
        logits = (net(images) + net(images.flip(-1))) / 2
    assert found['top1'] == pytest.approx(100 * float((logits.argmax(1) == target).double().mean()))
    assert found['loss'] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, target)), rel=1e-5)


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
    with pytest.raises(RideError, match='--tta flip measures all experts, but routing was asked for'):
        validate(build_parser().parse_args(argv))
