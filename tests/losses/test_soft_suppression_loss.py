import numpy as np
import pytest
import torch
from loss_cases import COUNTS, RTOL, autograd_gradient, numeric_gradient, random_logits, soft_targets
from reference import soft_suppression_loss as oracle
from reference.mutual_loss import adjusted

from ride_timm.losses import SoftSuppressionLoss

TAUS = {1: (1.0,), 2: (0.0, 2.0), 3: (-0.5, 1.0, 2.5), 4: (0.0, 0.5, 1.5, 2.0)}
TARGET = [0, 3, 1, 2, 0]


@pytest.mark.parametrize('counts', COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize('experts', TAUS)
@pytest.mark.parametrize('adjusts', [False, True])
def test_equals_oracle(experts, counts, adjusts):
    logits = random_logits(5, experts)
    tau = TAUS[experts] if adjusts else None
    compared = adjusted(logits, counts, tau) if adjusts else logits
    expected = oracle.soft_suppression_loss(compared, TARGET)
    found = SoftSuppressionLoss(counts, tau)(torch.tensor(logits), torch.tensor(TARGET))
    assert found.item() == pytest.approx(expected, rel=10 * RTOL)


@pytest.mark.parametrize('right', [True, False])
def test_all_right_and_all_wrong(right):
    logits = random_logits(5, 3, scale=1.0) + 6 * (1 if right else -1) * np.eye(4)[TARGET][:, None]
    found = SoftSuppressionLoss([9, 4, 1, 2])(torch.tensor(logits), torch.tensor(TARGET))
    assert found.item() == pytest.approx(oracle.soft_suppression_loss(logits, TARGET), rel=1e-9)


def test_gradient_treats_the_teacher_as_constant():
    logits = random_logits(5, 3, scale=1.0)
    actual = autograd_gradient(SoftSuppressionLoss([9, 4, 1, 2]), logits, torch.tensor(TARGET))
    expected = numeric_gradient(lambda z: oracle.soft_suppression_loss(z, TARGET, logits), logits)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-8)


def test_a_wrong_class_that_leads_loses_and_the_others_gain():
    logits = torch.tensor([[[1.0, 5.0, 0.0, -1.0]]], requires_grad=True)
    SoftSuppressionLoss([9, 4, 1, 2])(logits, torch.tensor([0])).backward()
    step = -logits.grad[0, 0]
    assert step[1] < 0
    assert (step[2:] > 0).all()


def test_offsets_of_the_logits_do_not_lift_the_target():
    logits = torch.tensor(random_logits(5, 3))
    loss, target = SoftSuppressionLoss([9, 4, 1, 2]), torch.tensor(TARGET)
    torch.testing.assert_close(loss(logits - 60.0, target), loss(logits, target))


def test_soft_target_is_its_largest_share():
    logits, loss = torch.tensor(random_logits(5, 3)), SoftSuppressionLoss([9, 4, 1, 2])
    assert torch.equal(loss(logits, torch.tensor(soft_targets(np.array(TARGET)))), loss(logits, torch.tensor(TARGET)))
