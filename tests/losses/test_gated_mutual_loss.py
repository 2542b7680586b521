import numpy as np
import pytest
import torch
from loss_cases import COUNTS, RTOL, autograd_gradient, numeric_gradient, random_logits
from reference import gated_mutual_loss as oracle
from reference.mutual_loss import adjusted

from ride_timm.errors import RideError
from ride_timm.losses import GatedMutualLoss, MutualLoss

TAUS = {1: (1.0,), 2: (0.0, 2.0), 3: (-0.5, 1.0, 2.5), 4: (0.0, 0.5, 1.5, 2.0)}


def with_accuracy(loss, accuracy):
    loss.accuracy.copy_(torch.tensor(accuracy))
    return loss


def targets(batch, seed=0):
    return np.random.default_rng(seed).integers(0, 4, batch)


@pytest.mark.parametrize('counts', COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize('batch', [1, 6])
@pytest.mark.parametrize('experts', TAUS)
@pytest.mark.parametrize('accuracy', [(0.0, 0.0, 0.0, 0.0), (0.9, 0.5, 0.25, 0.0), (1.0, 1.0, 0.0, 1.0)])
@pytest.mark.parametrize('adjusts', [False, True])
def test_equals_oracle(experts, batch, counts, accuracy, adjusts):
    logits, target = random_logits(batch, experts), targets(batch)
    tau = TAUS[experts] if adjusts else None
    compared = adjusted(logits, counts, tau) if adjusts else logits
    expected = oracle.gated_mutual_loss(compared, target, oracle.class_weights(accuracy, counts))
    loss = with_accuracy(GatedMutualLoss(counts, tau), accuracy)
    found = loss(torch.tensor(logits), torch.tensor(target))
    assert found.item() == pytest.approx(expected, rel=10 * RTOL, abs=1e-9)


@pytest.mark.parametrize('counts', COUNTS.values(), ids=COUNTS)
def test_weights_have_mean_1_over_the_classes_with_images(counts):
    loss = with_accuracy(GatedMutualLoss(counts), (0.9, 0.0, 0.4, 0.99))
    weight = loss.class_weight
    assert weight.tolist() == pytest.approx(oracle.class_weights(loss.accuracy.tolist(), counts), rel=1e-5)
    assert weight[torch.tensor(counts) > 0].mean().item() == pytest.approx(1.0)


@pytest.mark.parametrize('accuracy', [0.0, 1.0])
def test_weights_of_nothing_and_of_everything_learnt_are_1(accuracy):
    loss = with_accuracy(GatedMutualLoss([9, 4, 0, 2]), (accuracy,) * 4)
    assert loss.class_weight.tolist() == [1.0] * 4


def test_gradient_treats_teachers_and_gate_as_constants():
    logits, target = random_logits(3, 3, scale=1.0), [0, 1, 2]
    logits[:, 0, :] += 3 * np.eye(4)[target]  # the first expert is right
    loss = with_accuracy(GatedMutualLoss([9, 4, 1, 2]), (0.9, 0.5, 0.1, 0.0))
    weights = oracle.class_weights((0.9, 0.5, 0.1, 0.0), [9, 4, 1, 2])
    actual = autograd_gradient(loss, logits, torch.tensor(target))
    expected = numeric_gradient(lambda z: oracle.gated_mutual_loss(z, target, weights, logits), logits)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(actual).max() > 1e-3


def test_experts_that_are_wrong_teach_nothing():
    logits = torch.tensor(random_logits(5, 3), requires_grad=True)
    target = torch.tensor([next(c for c in range(4) if c not in set(row)) for row in logits.argmax(-1).tolist()])
    loss = GatedMutualLoss([9, 4, 1, 2])(logits, target)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad.abs().max() == 0.0


def test_where_all_are_right_it_is_plain_mutual_distillation():
    logits = torch.tensor(random_logits(4, 3))
    target = torch.tensor([0, 3, 1, 1])
    logits += 30 * torch.eye(4)[target].unsqueeze(1)
    assert GatedMutualLoss([9, 4, 1, 2])(logits, target).item() == pytest.approx(2 * MutualLoss()(logits).item())


def test_adjustment_decides_who_is_right():
    logits = torch.tensor([[[0.0, 0.1], [0.0, 5.0]]])
    target = torch.tensor([1])
    plain, adjusting = GatedMutualLoss([99, 1]), GatedMutualLoss([99, 1], tau=(1.0, 0.0))
    plain(logits, target)
    adjusting(logits, target)
    assert (plain.right[1], adjusting.right[1]) == (1.0, 0.5)  # with the prior added the first expert says class 0


def test_average_moves_at_the_end_of_an_epoch_by_all_that_was_seen():
    loss, accuracy = GatedMutualLoss([9, 4, 1, 0], momentum=0.6), [0.0] * 4
    for epoch in range(3):
        logits, target = random_logits(12, 3, seed=epoch), targets(12, seed=epoch) % (2 + epoch % 2)
        before = loss.accuracy.clone()
        for part in (slice(0, 5), slice(5, 12)):
            loss(torch.tensor(logits[part]), torch.tensor(target[part]))
        assert torch.equal(loss.accuracy, before)
        loss.end_epoch()
        accuracy = oracle.moved_accuracy(accuracy, logits, target, 0.6)
        assert loss.accuracy.tolist() == pytest.approx(accuracy, rel=1e-5)
    assert loss.accuracy[3] == 0.0
    assert loss.accuracy[0] > 0.0


def test_processes_share_the_average(monkeypatch):
    """Two processes, of which the other sees class 0 as often and has it wrong."""

    def with_another(counted):
        counted[1] *= 2

    loss = GatedMutualLoss([9, 4, 1, 2], momentum=0.0)
    loss(10.0 * torch.eye(4)[:1].expand(3, 2, 4), torch.tensor([0, 0, 0]))
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'all_reduce', with_another)
    loss.end_epoch()
    assert loss.accuracy.tolist() == [0.5, 0.0, 0.0, 0.0]


def test_evaluation_counts_nothing():
    loss = GatedMutualLoss([9, 4, 1, 2]).eval()
    loss(torch.tensor(random_logits(5, 3)), torch.tensor(targets(5)))
    loss.end_epoch()
    assert loss.accuracy.tolist() == [0.0] * 4


def test_mixed_targets_count_with_their_shares():
    logits = torch.tensor(random_logits(6, 3))
    a, b = torch.tensor(targets(6)), torch.tensor(targets(6, seed=1))
    mixed, apart = GatedMutualLoss([9, 4, 1, 2]), GatedMutualLoss([9, 4, 1, 2])
    mixed(logits, 0.7 * torch.eye(4)[a] + 0.3 * torch.eye(4)[b])
    for target, share in ((a, 0.7), (b, 0.3)):
        one = GatedMutualLoss([9, 4, 1, 2])
        one(logits, target)
        apart.right += share * one.right
        apart.seen += share * one.seen
    torch.testing.assert_close(mixed.right, apart.right)
    torch.testing.assert_close(mixed.seen, apart.seen)


def test_state_is_the_average_alone():
    loss = GatedMutualLoss([9, 4, 1, 2], tau=(0, 1, 2))
    assert list(loss.state_dict()) == ['accuracy']
    other = GatedMutualLoss([9, 4, 1, 2], tau=(0, 1, 2))
    other.load_state_dict(with_accuracy(loss, (0.5, 0.25, 0.0, 1.0)).state_dict())
    assert torch.equal(other.class_weight, loss.class_weight)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'momentum': 1.5}, 'momentum is 1.5, but must be a finite number of at least 0 and at most 1'),
        ({'tau': 'mdcs'}, "tau is 'mdcs', but must be a finite number or one per expert"),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(RideError, match=message):
        GatedMutualLoss([3, 1], **options)
