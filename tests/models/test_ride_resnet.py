import pytest
import timm
import torch
from model_tester import ModelTester
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch.testing import assert_close


class TestRideResNet(ModelTester):
    architecture = 'test_ride_resnet_3e'
    size = 64
    channels = (64, 16, 24, 32, 48)
    reductions = (2, 4, 8, 16, 32)
    trunk_maps = 3


def plain_keys(block, layers):
    return ResNet(block, layers, device='meta').state_dict().keys()


@pytest.mark.parametrize('router', [False, True])
@pytest.mark.parametrize(
    'architecture, block, layers, num_experts',
    [
        ('ride_resnet10_3e', BasicBlock, (1, 1, 1, 1), 3),
        ('ride_resnet18_2e', BasicBlock, (2, 2, 2, 2), 2),
        ('ride_resnext50_32x4d_4e', Bottleneck, (3, 4, 6, 3), 4),
    ],
)
def test_state_dict_keys(architecture, block, layers, num_experts, router):
    expected = set()
    for key in plain_keys(block, layers):
        if key.startswith(('conv1.', 'bn1.', 'layer1.', 'layer2.')):
            expected.add(key)
        elif key != 'fc.bias':  # a cosine head has none
            expected |= {f'experts.{k}.{key}' for k in range(num_experts)}
    if router:
        hidden = {f'hidden.{i}' for i in range(num_experts - 1)}
        expected |= {f'router.{layer}.{kind}' for layer in hidden | {'out'} for kind in ('weight', 'bias')}
    model = timm.create_model(architecture, router=router, num_classes=10, device='meta')
    assert model.state_dict().keys() == expected


def test_linear_heads_have_a_bias():
    model = timm.create_model('test_ride_resnet_3e', head='linear', device='meta')
    assert {f'experts.{k}.fc.bias' for k in range(3)} <= model.state_dict().keys()


@pytest.mark.parametrize('architecture', ['test_ride_resnet_3e', 'ride_resnet10_2e'])
def test_initialisation(architecture, check_initialisation):
    check_initialisation(timm.create_model(architecture), fan='out')


def test_initialisation_of_grouped_convolutions():
    """Fan-out as torch defines it: the output channels of all groups."""
    model = timm.create_model('ride_resnext50_32x4d_2e', layers=(1, 1, 1, 1))
    weight = model.layer2[0].conv2.weight
    assert weight.shape == (256, 8, 3, 3)
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.03)


@pytest.mark.parametrize(
    'architecture, block, arguments',
    [
        ('ride_resnet18_2e', BasicBlock, {}),
        ('ride_resnet50_2e', Bottleneck, {}),
        ('ride_resnext50_32x4d_2e', Bottleneck, {'cardinality': 32, 'base_width': 4}),
    ],
)
def test_each_expert_computes_what_a_resnet_of_timm_does(architecture, block, arguments):
    layers, channels = (1, 2, 1, 1), (64, 128, 192, 384)
    model = timm.create_model(architecture, num_classes=5, head='linear', layers=layers).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        experts = model.forward_experts(x)
        for k in range(2):
            plain = ResNet(block, layers, num_classes=5, channels=channels, **arguments).eval()
            own = {key: value for key, value in model.state_dict().items() if not key.startswith('experts.')}
            prefix = f'experts.{k}.'
            own |= {key.removeprefix(prefix): v for key, v in model.state_dict().items() if key.startswith(prefix)}
            plain.load_state_dict(own)
            assert_close(plain(x), experts[:, k])


@pytest.mark.parametrize('backbone', ['resnet10', 'resnet18', 'resnet50', 'resnext101_32x4d'])
def test_default_router_top_k(backbone):
    model = timm.create_model(f'ride_{backbone}_2e', num_classes=1000, router=True, device='meta')
    assert model.router.top_k == (30 if backbone == 'resnet10' else 50)
