"""What every task of ours does beside its loss."""

import pytest
import timm
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ride_timm.losses import create_loss
from ride_timm.tasks import RideTask, RouterTask


@pytest.fixture
def net():
    torch.manual_seed(0)
    return timm.create_model('test_ride_resnet_cifar_3e', num_classes=4, router=True)


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group('gloo', store=dist.FileStore(str(tmp_path / 'store'), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def batch():
    torch.manual_seed(1)
    return torch.randn(6, 3, 8, 8), torch.arange(6) % 4


def test_the_network_returns_its_experts_while_it_trains(net):
    images, _ = batch()
    assert isinstance(net.train()(images), torch.Tensor)
    RideTask(net, create_loss('ce'))
    assert isinstance(net(images), tuple)
    assert isinstance(net.eval()(images), torch.Tensor)


def test_the_loss_hears_of_the_epoch(net):
    task = RideTask(net, create_loss('ride', [9, 3, 3, 1], reweight_epoch=2))
    switched = []
    for epoch in range(4):
        task.set_epoch(epoch)
        switched.append(task.criterion.classification.reweighting)
    assert switched == [False, False, True, True]


@pytest.mark.usefixtures('one_process')
def test_ddp_changes_nothing_in_one_process(net):
    images, target = batch()
    task = RideTask(net, create_loss('ride', [9, 3, 3, 1]))
    task.set_epoch(0)
    net.train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    plain = task(images, target)
    plain['loss'].backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.load_state_dict(state)
    net.zero_grad()
    assert task.prepare_distributed(device_ids=[torch.device('cpu')]) is task
    assert isinstance(task.get_trainable_module(), DistributedDataParallel)
    wrapped = task(images, target)
    wrapped['loss'].backward()
    assert torch.equal(plain['loss'], wrapped['loss'])
    assert all(torch.equal(p.grad, gradients[name]) for name, p in net.named_parameters() if name in gradients)
    assert set(task.get_checkpoint_state()['state_dict']) == set(net.state_dict())
    heads = {id(expert.fc.weight) for expert in net.experts}
    assert not heads & {id(p) for p in task.get_clip_parameters(exclude_head=True)}
    with task.no_sync():
        task(images, target)


def test_frozen_parameters_are_not_clipped(net):
    task = RouterTask(net)
    assert {id(p) for p in task.get_clip_parameters()} == {id(p) for p in net.router.parameters()}


def test_plain_networks_have_one_head():
    net = timm.create_model('resnet10t', num_classes=4)
    task = RideTask(net, create_loss('ce'))
    spared = {id(p) for p in task.get_clip_parameters()} - {id(p) for p in task.get_clip_parameters(exclude_head=True)}
    assert spared == {id(net.fc.weight), id(net.fc.bias)}


def test_moving_average(net):
    task = RideTask(net, create_loss('ce'))
    task.setup_ema(decay=0.75)
    before = net.conv1.weight.detach().clone()
    with torch.no_grad():
        net.conv1.weight += 1.0
    task.update_ema()
    mean = task.get_checkpoint_state(ema=True)['state_dict_ema']
    assert set(mean) == set(net.state_dict())
    assert torch.allclose(mean['conv1.weight'], before + 0.25, atol=1e-6)
