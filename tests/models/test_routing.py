import itertools
import math

import pytest
import timm
import torch
from routed_nets import ARCHITECTURES, expected_experts, routed_net, safe_thresholds
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

every_architecture = pytest.mark.parametrize('architecture', ARCHITECTURES)


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


# what it returns


@every_architecture
def test_threshold_zero_is_the_full_ensemble(architecture):
    model, x, _ = routed_net(architecture)
    logits, num_experts = model.forward_routed(x, 0.0)
    assert num_experts.tolist() == [model.num_experts] * len(x)
    assert_close(logits, model(x))


@every_architecture
def test_threshold_one_is_the_first_expert(architecture):
    model, x, _ = routed_net(architecture)
    logits, num_experts = model.forward_routed(x, 1.0)
    assert num_experts.tolist() == [1] * len(x)
    assert_close(logits, model.forward_experts(x)[:, 0])


@every_architecture
def test_each_image_gets_the_mean_of_the_experts_it_passed(architecture):
    model, x, router_logits = routed_net(architecture)
    experts = model.forward_experts(x)
    seen = set()
    for threshold in safe_thresholds(router_logits):
        logits, num_experts = model.forward_routed(x, threshold)
        assert num_experts.dtype == torch.int64
        assert num_experts.tolist() == expected_experts(router_logits, threshold).tolist()
        means = torch.stack([experts[i, :n].mean(dim=0) for i, n in enumerate(num_experts)])
        assert_close(logits, means, rtol=1e-4, atol=1e-4)
        seen |= set(num_experts.tolist())
    assert seen == set(range(1, model.num_experts + 1))


@every_architecture
def test_a_higher_threshold_never_uses_more_experts(architecture):
    model, x, _ = routed_net(architecture)
    counts = [model.forward_routed(x, threshold / 16).num_experts for threshold in range(17)]
    assert all((low >= high).all() for low, high in itertools.pairwise(counts))
    assert not torch.equal(counts[0], counts[-1])


@every_architecture
def test_the_rest_of_the_batch_does_not_matter(architecture):
    model, x, router_logits = routed_net(architecture)
    threshold = min(safe_thresholds(router_logits), key=lambda t: abs(t - 0.5))
    logits, num_experts = model.forward_routed(x, threshold)
    for parts in (x.split(1), x.split(5)):
        found = [model.forward_routed(part, threshold) for part in parts]
        assert torch.equal(torch.cat([f.num_experts for f in found]), num_experts)
        assert_close(torch.cat([f.logits for f in found]), logits, rtol=1e-4, atol=1e-4)
    order = torch.randperm(len(x))
    shuffled = model.forward_routed(x[order], threshold)
    assert torch.equal(shuffled.num_experts, num_experts[order])
    assert_close(shuffled.logits, logits[order], rtol=1e-4, atol=1e-4)


def test_no_images():
    model, x, _ = routed_net('test_ride_resnet_cifar_3e')
    logits, num_experts = model.forward_routed(x[:0], 0.5)
    assert (logits.shape, num_experts.shape) == ((0, 9), (0,))


@pytest.mark.parametrize('bias, passed', [(1e4, 3), (-1e4, 1)])
def test_a_router_that_is_sure(bias, passed):
    model, x, _ = routed_net('test_ride_resnet_cifar_3e')
    model.router.out.bias.fill_(bias)
    for threshold in (0.01, 0.5, 0.99):
        assert model.forward_routed(x, threshold).num_experts.tolist() == [passed] * len(x)
    # the ends of the range hold whatever the router says
    assert model.forward_routed(x, 0.0).num_experts.tolist() == [3] * len(x)
    assert model.forward_routed(x, 1.0).num_experts.tolist() == [1] * len(x)


@every_architecture
def test_all_routers_see_prefix_means(architecture):
    model, x, _ = routed_net(architecture)
    found = model.forward_router(x)
    assert found.router_logits.shape == (len(x), model.num_experts - 1)
    assert_close(found.expert_logits, model.forward_experts(x))
    pooled = model.forward_head(model.forward_features(x), pre_logits=True).chunk(model.num_experts, dim=1)
    for i in range(model.num_experts - 1):
        mean = found.expert_logits[:, : i + 1].mean(dim=1)
        assert_close(found.router_logits[:, i], model.router(i, pooled[i], mean), rtol=1e-4, atol=1e-4)


# what it computes


def images_seen(model):
    """How many images each expert's first convolution got, filled while the network runs."""
    seen = [0] * model.num_experts
    for k, expert in enumerate(model.experts):

        def count(_module, args, k=k):
            seen[k] += len(args[0])

        next(m for m in expert.modules() if isinstance(m, torch.nn.Conv2d)).register_forward_pre_hook(count)
    return seen


@every_architecture
@pytest.mark.parametrize('threshold', [0.0, 0.5, 1.0])
def test_experts_see_only_the_images_that_reach_them(architecture, threshold):
    model, x, router_logits = routed_net(architecture)
    seen = images_seen(model)
    model.forward_routed(x, threshold)
    counts = expected_experts(router_logits, threshold)
    assert seen == [(counts > k).sum() for k in range(model.num_experts)]
    if threshold == 0.5:
        assert 0 < seen[1] < len(x)


def flops(function, *args):
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops()


@every_architecture
def test_flops_are_those_of_the_experts_used(architecture):
    model, x, router_logits = routed_net(architecture)
    trunk = flops(model.forward_trunk, x[:1])
    expert = (flops(model, x[:1]) - trunk) // model.num_experts
    width = model.num_features // model.num_experts
    router = 2 * (16 * width + 16 + model.router.top_k)
    for threshold in (0.0, 0.5, 1.0):
        counts = expected_experts(router_logits, threshold).tolist()
        expected = sum(trunk + n * expert + min(n, model.num_experts - 1) * router for n in counts)
        assert flops(model.forward_routed, x, threshold) == expected
    assert flops(model.forward_routed, x, 0.5) < flops(model, x)


# switching it


def test_set_routing():
    model, x, _ = routed_net('test_ride_resnet_cifar_3e')
    full = model(x)
    assert model.routing_threshold is None
    seen = images_seen(model)
    for threshold in (0, 0.5, 1):
        model.set_routing(threshold)
        assert torch.equal(model(x), model.forward_routed(x, threshold).logits)
    model.set_routing(1.0)
    seen[:] = [0, 0, 0]
    model(x)
    assert seen == [len(x), 0, 0]
    model.set_routing(None)
    assert torch.equal(model(x), full)
    with pytest.raises(ValueError, match='A routing threshold of True was given'):
        model.set_routing(True)  # not "on": as a number it is the first expert alone


def test_routing_is_for_eval_mode_alone():
    model, x, _ = routed_net('test_ride_resnet_cifar_3e')
    plain = timm.create_model('test_ride_resnet_cifar_3e', num_classes=9, router=True).train()
    plain.load_state_dict(model.state_dict())
    model.train().set_routing(1.0)
    assert_close(model(x), plain(x))
    model.set_expert_training(True)
    assert len(model(x)) == 3
    with pytest.raises(RuntimeError, match=r'model\.eval\(\)'):
        model.forward_routed(x)


def test_default_threshold():
    model, x, _ = routed_net('test_ride_resnet_cifar_3e')
    for threshold in (0.0, 0.5, 1.0):
        model.router_threshold = threshold
        for routing in (None, 0.0, 1.0):
            model.set_routing(routing)
            assert_close(model.forward_routed(x), model.forward_routed(x, threshold))
    assert timm.create_model('test_ride_resnet_cifar_3e', router=True).router_threshold == 0.5
    chosen = timm.create_model('test_ride_resnet_cifar_3e', router=True, router_threshold=0.25)
    assert chosen.router_threshold == 0.25


@pytest.mark.parametrize('threshold', [1.5, -0.1, math.nan, math.inf])
def test_thresholds_are_probabilities(threshold):
    model, x, _ = routed_net('test_ride_resnet_cifar_3e')
    for function in (model.set_routing, lambda t: model.forward_routed(x, t)):
        with pytest.raises(ValueError, match=f'threshold of {threshold}.*from 0 to 1'):
            function(threshold)
    assert model.routing_threshold is None


@pytest.mark.parametrize('architecture', ['test_ride_resnet_cifar_3e', 'ride_resnet32_1e'])
def test_a_network_without_router(architecture):
    model = timm.create_model(architecture).eval()
    x = torch.randn(1, 3, 32, 32)
    for function in (lambda: model.set_routing(0.5), lambda: model.forward_routed(x), lambda: model.forward_router(x)):
        with pytest.raises(RuntimeError, match='no router; create it with router=True'):
            function()
    model.set_routing(None)  # off is off
    assert model(x).shape[0] == 1


@pytest.mark.parametrize('how', ['autocast', 'bfloat16'])
def test_routing_in_bfloat16(how):
    model, x, _ = routed_net('test_ride_resnet_cifar_3e')
    if how == 'bfloat16':
        model, x = model.bfloat16(), x.bfloat16()
    with torch.autocast('cpu', torch.bfloat16, enabled=how == 'autocast'):
        for threshold in (0.0, 0.5, 1.0):
            routed = model.forward_routed(x, threshold)
            experts = model.forward_experts(x)
            assert routed.logits.dtype == experts.dtype
            means = torch.stack([experts[i, :n].mean(dim=0) for i, n in enumerate(routed.num_experts)])
            assert (routed.logits - means).abs().max() < 0.3
