"""Seeding from a plain ResNet, checked by its effect: with channels that do nothing left out, nothing changes."""

import pytest
import timm
import torch
from torch.testing import assert_close

from ride_timm.models.checkpoint import checkpoint_filter_fn
from ride_timm.models.seeding import perturb_experts, seed_from_plain

BACKBONES = ('resnet18', 'resnet50', 'resnext50_32x4d')
every_pair = pytest.mark.parametrize('plain_name, name', [(name, f'ride_{name}_2e') for name in BACKBONES])


def plain_net(name):
    """A plain network with BatchNorm that does something, as after a training."""
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=5).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.2, 0.2)
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net


def silence(norm, groups=1):
    """Make a quarter of a normalisation's channels zero, of each group as many; returns the channels left."""
    width = len(norm.weight) // groups
    dead = torch.cat([torch.randperm(width)[: width // 4] + group * width for group in range(groups)])
    for part in (norm.weight, norm.bias):
        part.data[dead] = 0.0
    return dead


def silence_stage(stage):
    """A quarter of what the stage puts out, and of what each block has inside; returns the channels left over."""
    last = 'bn3' if hasattr(stage[0], 'bn3') else 'bn2'
    dead = silence(getattr(stage[0], last))
    for block in stage:
        for norm in (getattr(block, last), *([] if block.downsample is None else [block.downsample[1]])):
            norm.weight.data[dead] = 0.0
            norm.bias.data[dead] = 0.0
            norm.weight.data[[i for i in range(len(norm.weight)) if i not in set(dead.tolist())]] += 0.01
        silence(block.bn1, getattr(block.conv2, 'groups', 1))
        if last == 'bn3':
            silence(block.bn2, block.conv2.groups)
    kept = torch.ones(len(getattr(stage[0], last).weight), dtype=torch.bool)
    kept[dead] = False
    return kept


def seeded(name, plain, **kwargs):
    net = timm.create_model(name, num_classes=7, **kwargs).eval()
    net.load_state_dict(checkpoint_filter_fn(plain.state_dict(), net))
    return net


@every_pair
def test_channels_that_do_nothing_are_the_ones_left_out(plain_name, name):
    plain = plain_net(plain_name)
    silence_stage(plain.layer3)
    kept = silence_stage(plain.layer4)
    net = seeded(name, plain).double()
    plain = plain.double()  # in float32 the order of adding shows
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        wanted = plain.forward_features(images)
        assert not wanted[:, ~kept].any()
        for part in net.forward_features(images).chunk(2, 1):
            assert_close(part, wanted[:, kept])


@every_pair
def test_full_width_copies_exactly(plain_name, name):
    plain = plain_net(plain_name)
    net = seeded(name, plain, channels=(64, 128, 256, 512))
    for key, value in plain.state_dict().items():
        stage = key.split('.')[0]
        if stage in ('layer3', 'layer4'):
            assert all(torch.equal(net.state_dict()[f'experts.{k}.{key}'], value) for k in range(2))
        elif stage != 'fc':
            assert torch.equal(net.state_dict()[key], value)


def test_the_most_important_channels_stay():
    """Inside a block: the scale of a channel times the norm of the weights that read it."""
    plain = plain_net('resnet18')
    block = plain.layer3[1]
    importance = block.bn1.weight.abs() * block.conv2.weight.detach().flatten(2).square().sum((0, 2)).sqrt()
    chosen = sorted(importance.argsort(descending=True)[:192].tolist())
    net = seeded('ride_resnet18_2e', plain)
    assert torch.equal(net.experts[0].layer3[1].bn1.weight, block.bn1.weight[chosen])


def test_a_scale_moved_into_the_next_weights_changes_no_choice():
    plain = plain_net('resnet50')
    before = seeded('ride_resnet50_2e', plain).experts[0].layer3[2].bn2.running_mean.clone()
    block = plain.layer3[2]
    factor = torch.rand(256) * 10 + 0.1
    with torch.no_grad():
        block.bn2.weight *= factor
        block.bn2.bias *= factor
        block.conv3.weight /= factor[:, None, None]
    assert torch.equal(seeded('ride_resnet50_2e', plain).experts[0].layer3[2].bn2.running_mean, before)


def test_a_wider_network_is_refused():
    plain = plain_net('resnet18')
    net = timm.create_model('ride_resnet18_2e', channels=(64, 128, 320, 512))
    with pytest.raises(RuntimeError, match='pass the channels='):
        checkpoint_filter_fn(plain.state_dict(), net)


def test_the_source_is_not_touched():
    plain = plain_net('resnet18')
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    net = timm.create_model('ride_resnet18_2e')
    seed_from_plain(plain.state_dict(), net.state_dict(), net.expert_stages)
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())


class TestPerturbation:
    def net(self):
        return seeded('ride_resnet18_3e', plain_net('resnet18'))

    def bodies(self, net):
        return [torch.cat([p.flatten() for n, p in e.named_parameters() if 'fc' not in n]) for e in net.experts]

    def test_experts_start_apart_by_a_small_amount(self):
        net = self.net()
        first = self.bodies(net)[0]
        perturb_experts(net.experts, 0.01)
        a, b, c = self.bodies(net)
        assert torch.equal(a, first)
        for one, other in ((a, b), (a, c), (b, c)):
            distance = ((one - other).norm() / one.norm()).item()
            assert 0.005 < distance < 0.02

    def test_it_is_seeded(self):
        nets = [self.net() for _ in range(3)]
        for net, seed in zip(nets, (1, 1, 2), strict=True):
            perturb_experts(net.experts, 0.01, seed)
        one, same, other = (self.bodies(net)[1] for net in nets)
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_no_noise_leaves_all_as_it_is(self):
        net = self.net()
        before = self.bodies(net)
        perturb_experts(net.experts, 0.0)
        assert all(torch.equal(a, b) for a, b in zip(before, self.bodies(net), strict=True))

    def test_random_numbers_of_the_run_are_not_used(self):
        net = self.net()
        state = torch.get_rng_state()
        perturb_experts(net.experts)
        assert torch.equal(torch.get_rng_state(), state)
