"""Router and heads stage: what must not change, does not, bit by bit."""

import pytest
import timm
import torch
import torch.distributed as dist

from ride_timm.losses import RouterLoss, create_loss
from ride_timm.tasks import HeadTask, RideTask, RouterTask

COUNTS = [40, 20, 10, 5]


def network(**kwargs):
    torch.manual_seed(0)
    return timm.create_model('test_ride_resnet_cifar_3e', num_classes=4, **kwargs)


def batch():
    return torch.randn(6, 3, 8, 8), torch.arange(6) % 4


def changed_by(task, net, steps=3):
    """Train as the loop does, and name the tensors that differ afterwards."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    trained = [p for p in task.get_trainable_module().parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(steps):
        task.get_trainable_module().train()
        result = task(*batch())
        result['loss'].backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, value in net.state_dict().items() if not torch.equal(before[name], value)}


def router_names(net):
    return {name for name in net.state_dict() if name.startswith('router.')}


def head_names(net):
    return {f'experts.{k}.fc.weight' for k in range(3)}


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group('gloo', store=dist.FileStore(str(tmp_path / 'store'), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_router_stage_changes_the_router_alone():
    net = network(router=True)
    assert changed_by(RouterTask(net), net) == router_names(net)
    assert not any(m.training for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert net.router.training


def test_heads_stage_changes_the_heads_alone():
    net = network()
    assert changed_by(HeadTask(net, create_loss('balanced_softmax', COUNTS)), net) == head_names(net)
    assert not any(m.training for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_the_experts_stage_would_move_the_statistics():
    net = network()
    assert any('running_mean' in name for name in changed_by(RideTask(net, create_loss('ce', COUNTS)), net))


@pytest.mark.usefixtures('one_process')
@pytest.mark.parametrize('stage', ['router', 'heads', 'experts'])
def test_frozen_under_ddp_too(stage):
    net = network(router=True)
    parts = [net.experts] if stage == 'experts' else None
    task = RouterTask(net) if stage == 'router' else HeadTask(net, create_loss('ce', COUNTS), parts=parts)
    task.prepare_distributed(device_ids=[torch.device('cpu')])
    names = {name for name in net.state_dict() if name.startswith('experts.')}
    expected = {'router': router_names(net), 'heads': head_names(net), 'experts': names}[stage]
    assert changed_by(task, net) == expected
    learning = {m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d) and m.training}
    assert learning == ({m for m in net.experts.modules() if isinstance(m, torch.nn.BatchNorm2d)} if parts else set())
    assert task.get_eval_model() is net


def test_router_loss_is_that_of_the_networks_own_outputs():
    net = network(router=True)
    task = RouterTask(net, RouterLoss(pos_weight=3.0))
    images, target = batch()
    net.eval()
    with torch.no_grad():
        expected = RouterLoss(pos_weight=3.0)(*net.forward_router(images), target)
    task.get_trainable_module().train()
    result = task(images, target)
    assert torch.equal(result['loss'], expected)
    assert set(result) == {'loss', 'needed', 'output'}


def test_head_loss_is_that_of_the_experts_in_eval_mode():
    net = network()
    task = HeadTask(net, create_loss('balpoe', COUNTS))
    images, target = batch()
    net.eval()
    with torch.no_grad():
        expected = create_loss('balpoe', COUNTS)(net.forward_experts(images), target)
    task.get_trainable_module().train()
    assert torch.equal(task(images, target)['loss'], expected)


@pytest.mark.parametrize('part, crossing', [('experts', 1), ('experts.1.fc', 3)])
def test_what_comes_before_the_parts_keeps_no_activations(part, crossing):
    net = network()
    module = HeadTask(net, create_loss('ce', COUNTS), parts=[net.get_submodule(part)]).get_trainable_module()
    module.train()
    before = module.before(batch()[0])
    assert (len(before), len(module.per_image)) == (crossing, crossing)
    assert not any(value.requires_grad for value in before)
    assert any(value.requires_grad for value in module.after(before))


def test_heads_of_a_plain_network():
    torch.manual_seed(0)
    net = timm.create_model('resnet10t', num_classes=4)
    changed = changed_by(HeadTask(net, create_loss('ce', COUNTS)), net)
    assert changed == {'fc.weight', 'fc.bias'}


@pytest.mark.parametrize('make', [RouterTask, lambda net: HeadTask(net, create_loss('ce', COUNTS))])
def test_checkpoints_hold_the_network_and_not_the_wrapper(make):
    net = network(router=True)
    names = set(net.state_dict())
    task = make(net)
    task.setup_ema()
    assert set(task.get_checkpoint_state()['state_dict']) == names
    assert set(task.get_checkpoint_state(ema=True)['state_dict_ema']) == names
    task.load_checkpoint_state(network(router=True).state_dict())
    task.compile(backend='eager')
    assert task.get_eval_model() is net
    assert task.get_eval_model(ema=True) is not net


def test_moving_average_follows_the_router():
    net = network(router=True)
    task = RouterTask(net)
    task.setup_ema(decay=0.5)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    changed_by(task, net)
    task.update_ema()
    mean = task.get_eval_model(ema=True).state_dict()
    for name in router_names(net):
        assert torch.allclose(mean[name], (start[name] + net.state_dict()[name]) / 2, atol=1e-6)


def test_a_network_without_router_is_refused():
    with pytest.raises(RuntimeError, match='has no router'):
        RouterTask(network())
