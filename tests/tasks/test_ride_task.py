import numpy as np
import pytest
import timm
import torch
from reference.distillation_loss import distillation_loss
from reference.mutual_loss import mutual_loss

from ride_timm.errors import RideError
from ride_timm.losses import DistillationLoss, GatedMutualLoss, MutualLoss, create_loss
from ride_timm.tasks import RideDistillationTask, RideTask, Teacher, WeightedLoss

COUNTS = [40, 20, 10, 5]


def network(seed, **kwargs):
    torch.manual_seed(seed)
    net = timm.create_model('test_ride_resnet_cifar_3e', num_classes=4, **kwargs)
    for module in net.modules():  # statistics of their own, so that train and eval mode differ
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return net


def batch(size=6):
    torch.manual_seed(9)
    return torch.randn(size, 3, 8, 8), torch.arange(size) % 4


def train_logits(net, images):
    """(B, K, C) of train mode, without moving the statistics."""
    state = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    with torch.no_grad():
        logits = torch.stack(net(images), dim=1)
    net.load_state_dict(state)
    return logits


def test_experts_each_get_their_own_logits():
    net = network(0)
    task = RideTask(net, create_loss('ride', COUNTS))
    task.set_epoch(0)
    images, target = batch()
    logits = train_logits(net, images)
    net.train()
    result = task(images, target)
    assert torch.equal(result['loss'], task.criterion(logits, target))
    assert torch.equal(result['output'], logits.mean(1))
    assert set(result) == {'loss', 'classification', 'diversity', 'output'}


@pytest.mark.parametrize('spoil', [lambda net: net.eval(), lambda net: net.set_expert_training(False)])
def test_experts_are_never_trained_as_one(spoil):
    net = network(0)
    task = RideTask(net, create_loss('ce', COUNTS))
    task.train()
    spoil(net)
    with pytest.raises(RideError, match=r'its 3 experts.*model\.train\(\).*set_expert_training'):
        task(*batch())


def test_a_plain_network_is_one_expert():
    torch.manual_seed(0)
    net = timm.create_model('ride_resnet32_1e', num_classes=4, layers=(1, 1, 1))
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
    images, target = batch()
    for model in (net, plain):
        task = RideTask(model, create_loss('ce', COUNTS))
        model.train()
        result = task(images, target)
        assert result['output'].shape == (6, 4)
        result['loss'].backward()
    assert torch.isclose(result['loss'], torch.nn.functional.cross_entropy(plain(images), target))


def test_mutual_terms_are_added_with_their_weights():
    net = network(0)
    auxiliary = {
        'mutual': WeightedLoss(0.6, MutualLoss()),
        'mutual_hard': WeightedLoss(0.3, MutualLoss(hard_classes=True, num_hard=2)),
    }
    task = RideTask(net, create_loss('ce', COUNTS), auxiliary=auxiliary)
    images, target = batch()
    logits = train_logits(net, images).double().numpy()
    net.train()
    result = task(images, target)
    mutual, hard = mutual_loss(logits), mutual_loss(logits, num_hard=2)
    assert result['mutual'].item() == pytest.approx(mutual, rel=1e-4)
    assert result['mutual_hard'].item() == pytest.approx(hard, rel=1e-4)
    expected = result['classification'].item() + 0.6 * mutual + 0.3 * hard
    assert result['loss'].item() == pytest.approx(expected, rel=1e-4)


def test_distillation_follows_the_teacher_in_eval_mode():
    student, teacher = network(0), network(1)
    images, target = batch()
    task = RideDistillationTask(student, create_loss('ce', COUNTS), teacher, DistillationLoss(1.5), weight=0.7)
    logits = train_logits(student, images).double().numpy()
    with torch.no_grad():
        taught = teacher.eval()(images).double().numpy()
    task.train()
    result = task(images, target)
    expected = distillation_loss(logits, taught, 1.5)
    assert result['distillation'].item() == pytest.approx(expected, rel=1e-4)
    assert result['loss'].item() == pytest.approx(result['classification'].item() + 0.7 * expected, rel=1e-4)
    assert not np.isclose(distillation_loss(logits, train_logits_of_mean(teacher, images), 1.5), expected, rtol=1e-2)


def train_logits_of_mean(net, images):
    net.train()
    with torch.no_grad():
        logits = net(images)
    net.eval()
    return logits.double().numpy()


def test_the_teacher_never_changes_and_is_never_saved():
    student, teacher = network(0), network(1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    task = RideDistillationTask(student, create_loss('ce', COUNTS), teacher)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    task.setup_ema()
    for _ in range(3):
        task.train()
        task(*batch())['loss'].backward()
        optimizer.step()
        task.update_ema()
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    own = set(student.state_dict())
    for state in task.get_checkpoint_state().values(), task.get_checkpoint_state(ema=True).values():
        assert [set(tensors) for tensors in state] == [own]
    trained = {id(p) for p in task.get_trainable_module().parameters()}
    assert not trained & {id(p) for p in teacher.parameters()}


class Fixed(torch.nn.Module):
    """Logits that are sums of pixels, so that what arrives can be read off."""

    def forward(self, x):
        return x.mean((2, 3)) @ torch.eye(x.shape[1], 3)


def test_the_teachers_classes_come_in_the_students_order():
    x = torch.randn(2, 3, 4, 4)
    plain = Fixed()(x)
    assert torch.equal(Teacher(Fixed(), order=[0, 1, 2])(x), plain)
    assert torch.equal(Teacher(Fixed(), order=[2, 0, 1])(x), plain[:, [2, 0, 1]])


def test_images_are_normalised_anew_for_the_teacher():
    pixels = torch.rand(2, 3, 4, 4)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    given = (pixels - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    teacher = Teacher(Fixed(), teacher_pixels=((0.1,) * 3, (0.6,) * 3), student_pixels=(mean.tolist(), std.tolist()))
    assert torch.allclose(teacher(given), Fixed()((pixels - 0.1) / 0.6), atol=1e-6)
    same = Teacher(Fixed(), teacher_pixels=((0.1,) * 3, (0.6,) * 3), student_pixels=((0.1,) * 3, (0.6,) * 3))
    assert torch.equal(same(pixels), Fixed()(pixels))


def gated_task():
    gated = {'gated': WeightedLoss(1.0, GatedMutualLoss(COUNTS))}
    return RideTask(network(0), create_loss('ce', COUNTS), auxiliary=gated)


def test_state_of_added_losses_goes_into_the_checkpoint_and_comes_back():
    task, other = gated_task(), gated_task()
    task.auxiliary['gated'].accuracy.copy_(torch.tensor([0.5, 0.25, 0.0, 1.0]))
    saved = task.get_checkpoint_state()
    assert list(saved['task_state']) == ['gated.accuracy']
    other.load_checkpoint_state(saved['state_dict'], saved['task_state'])
    assert torch.equal(other.auxiliary['gated'].accuracy, task.auxiliary['gated'].accuracy)
    other.load_checkpoint_state(saved['state_dict'], None)  # of a run without the loss
    plain = RideTask(network(0), create_loss('ce', COUNTS))
    assert 'task_state' not in plain.get_checkpoint_state()
    plain.load_checkpoint_state(saved['state_dict'], saved['task_state'])


@pytest.mark.parametrize(
    ('state', 'error'),
    [
        ({'gated.accuracy': torch.tensor([float('nan'), 0.0, 0.0, 0.0])}, ValueError),
        ({'gated.accuracy': torch.zeros(5)}, RuntimeError),
        ({'gated.accuracy': 0.5}, TypeError),
        ([1.0], TypeError),
    ],
)
def test_state_that_no_loss_has_is_refused(state, error):
    with pytest.raises(error):
        gated_task().load_task_state(state)
