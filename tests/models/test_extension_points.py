"""What the package itself asks of a multi-expert network, instead of hooks on it: an offset, a runner, exit steps."""

import pytest
import timm
import torch
from models.routed_nets import routed_net

from ride_timm.models.routing import expert_steps

CIFAR = 'test_ride_resnet_cifar_3e'


@pytest.fixture
def net():
    torch.manual_seed(0)
    return timm.create_model(CIFAR, num_classes=5).eval()


def test_a_runner_takes_the_place_of_the_loop(net):
    images, seen = torch.randn(2, 3, 32, 32), []

    def run(experts, x):
        seen.append(x)
        return [expert.forward_features(x) for expert in reversed(experts)][::-1]

    before = net(images), net.forward_experts(images)
    net.run_experts = run
    assert torch.equal(net(images), before[0])
    assert torch.equal(net.forward_experts(images), before[1])
    assert len(seen) == 2
    assert torch.equal(seen[0][0], net.forward_trunk(images)[0])


@pytest.mark.filterwarnings('ignore:.*torch.jit:FutureWarning')
@pytest.mark.parametrize('mode', ['eager', 'script', 'export'])
def test_an_offset_is_added_to_each_expert(net, mode):
    images, offset = torch.randn(2, 3, 32, 32), torch.randn(3, 5, dtype=torch.float64)
    wanted = net(images) + offset.float().mean(0)
    net.set_logit_offset(offset)
    make = {
        'eager': lambda: net,
        'script': lambda: torch.jit.script(net),
        'export': lambda: torch.export.export(net, (images,)).module(),
    }[mode]
    torch.testing.assert_close(make()(images), wanted)


def test_new_heads_take_the_offset_back(net):
    net.set_logit_offset(torch.ones(3, 5))
    net.reset_classifier(5)
    assert net.logit_offset is None
    with pytest.raises(ValueError, match=r'\(3, 4\).*\(3, 5\)'):
        net.set_logit_offset(torch.ones(3, 4))


def test_steps_are_what_routed_inference_is_made_of():
    torch.manual_seed(0)
    net, images, router_logits = routed_net(CIFAR)
    net.set_logit_offset(torch.randn(3, 9))
    routed, every = net.forward_routed(images, 0.5), net.forward_experts(images)
    steps = list(expert_steps(net, images, 0.0))
    assert [len(step.images) for step in steps] == [int((routed.num_experts > k).sum()) for k in range(len(steps))]
    for k, step in enumerate(steps):
        torch.testing.assert_close(step.logits, every[step.images, k])
        torch.testing.assert_close(step.mean_logits, every[step.images, : k + 1].mean(1))
        if k < 2:
            torch.testing.assert_close(step.router_logits, router_logits[step.images, k])
        last = step.images[routed.num_experts[step.images] == k + 1]
        torch.testing.assert_close(routed.logits[last], every[last, : k + 1].mean(1))
    assert steps[-1].router_logits is None
