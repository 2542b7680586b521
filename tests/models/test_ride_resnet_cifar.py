from typing import ClassVar

import numpy as np
import pytest
import timm
import torch
from model_tester import ModelTester


class TestRideResNetCifar(ModelTester):
    architecture = 'test_ride_resnet_cifar_3e'
    channels = (16, 16, 24, 48)
    reductions = (1, 1, 2, 4)
    trunk_maps = 2


class TestPlainResNet32(ModelTester):
    architecture = 'ride_resnet32_1e'
    num_experts = 1
    channels = (16, 16, 32, 64)
    reductions = (1, 1, 2, 4)
    trunk_maps = 2
    head = 'linear'
    arguments: ClassVar = {'layers': (1, 1, 1)}


def norm_keys(name):
    return {f'{name}.{kind}' for kind in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')}


def stage_keys(stage, blocks):
    keys = set()
    for block in (f'{stage}.{i}' for i in range(blocks)):
        keys |= (
            {f'{block}.conv1.weight', f'{block}.conv2.weight'} | norm_keys(f'{block}.bn1') | norm_keys(f'{block}.bn2')
        )
    return keys


@pytest.mark.parametrize('router', [False, True])
@pytest.mark.parametrize('num_experts, blocks', [(2, 5), (3, 5), (4, 5), (6, 5), (3, 1)])
def test_state_dict_keys(num_experts, blocks, router):
    expected = {'conv1.weight'} | norm_keys('bn1') | stage_keys('layer1', blocks)
    for k in range(num_experts):
        expected |= stage_keys(f'experts.{k}.layer2', blocks) | stage_keys(f'experts.{k}.layer3', blocks)
        expected.add(f'experts.{k}.fc.weight')
    if router:
        layers = [f'router.hidden.{i}' for i in range(num_experts - 1)] + ['router.out']
        expected |= {f'{layer}.{kind}' for layer in layers for kind in ('weight', 'bias')}
    name = 'ride_resnet32' if blocks == 5 else 'test_ride_resnet_cifar'
    model = timm.create_model(f'{name}_{num_experts}e', router=router, num_classes=10, device='meta')
    assert model.state_dict().keys() == expected


@pytest.mark.parametrize('architecture', ['test_ride_resnet_cifar_3e', 'ride_resnet32_2e', 'ride_resnet32_1e'])
def test_initialisation(architecture, check_initialisation):
    check_initialisation(timm.create_model(architecture), fan='in')


def test_widths():
    """Experts of three quarters of the width; the plain network has the full one."""
    assert [s[0].conv1.out_channels for s in stages(timm.create_model('ride_resnet32_3e'))] == [16, 24, 48]
    assert [s[0].conv1.out_channels for s in stages(timm.create_model('ride_resnet32_1e'))] == [16, 32, 64]


def stages(model):
    return model.layer1, model.experts[0].layer2, model.experts[0].layer3


@pytest.mark.parametrize('channels, pads', [((16, 24, 48), (4, 4, 12, 12)), ((16, 19, 40), (1, 2, 10, 11))])
def test_shortcuts_pad_with_zeros(channels, pads):
    """Option A: every second pixel; zero channels in front and behind, the odd one behind."""
    model = timm.create_model('test_ride_resnet_cifar_3e', channels=channels).eval()
    for stage, before, behind in zip(stages(model)[1:], pads[::2], pads[1::2], strict=True):
        block = stage[0]
        with torch.no_grad():
            block.bn2.weight.zero_()  # leaves the shortcut alone
        x = torch.rand(2, block.conv1.in_channels, 7, 8)
        expected = np.zeros((2, block.conv1.out_channels, 4, 4), np.float32)
        expected[:, before : expected.shape[1] - behind] = x.numpy()[:, :, ::2, ::2]
        np.testing.assert_array_equal(block(x).detach().numpy(), expected)


def test_falling_channels_are_refused():
    with pytest.raises(ValueError, match='8 channels follows one of 16'):
        timm.create_model('test_ride_resnet_cifar_3e', channels=(16, 8, 16))


def test_default_router_top_k():
    assert timm.create_model('ride_resnet32_3e', num_classes=100, router=True).router.top_k == 30


def test_parameters_keep_the_order_that_optimizers_of_earlier_runs_know():
    names = [name for name, _ in timm.create_model('test_ride_resnet_cifar_3e', router=True).named_parameters()]
    assert [name.rpartition('.')[0] for name in names if '.fc.' in name] == [f'experts.{k}.fc' for k in range(3)]
    for k in range(3):
        expert = [name for name in names if name.startswith(f'experts.{k}.')]
        assert expert[-1] == f'experts.{k}.fc.weight'
    assert names[0] == 'conv1.weight'
    assert names[-1].startswith('router.')
