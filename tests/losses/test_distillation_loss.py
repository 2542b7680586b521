import numpy as np
import pytest
import torch
from loss_cases import EXPERTS, autograd_gradient, numeric_gradient, random_logits
from reference import distillation_loss as oracle

from ride_timm.errors import RideError
from ride_timm.losses import DistillationLoss


@pytest.mark.parametrize('temperature', [1.0, 1.5, 4.0])
@pytest.mark.parametrize('classes', [1, 4])
@pytest.mark.parametrize('batch', [1, 5])
@pytest.mark.parametrize('experts', EXPERTS)
def test_equals_oracle(experts, batch, classes, temperature):
    logits, teacher = random_logits(batch, experts, classes), random_logits(batch, 1, classes, seed=1)[:, 0]
    expected = oracle.distillation_loss(logits, teacher, temperature)
    actual = DistillationLoss(temperature)(torch.tensor(logits), torch.tensor(teacher))
    assert actual.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_default_temperature_is_that_of_the_paper():
    assert DistillationLoss().temperature == 1.5


def test_gradient_equals_that_of_the_oracle():
    logits, teacher = random_logits(3, 2, scale=1.0), random_logits(3, 1, seed=1, scale=1.0)[:, 0]
    expected = numeric_gradient(lambda z: oracle.distillation_loss(z, teacher, 1.5), logits)
    actual = autograd_gradient(DistillationLoss(), logits, torch.tensor(teacher))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-8)


def test_gradcheck():
    logits = torch.tensor(random_logits(3, 2), requires_grad=True)
    teacher = torch.tensor(random_logits(3, 1, seed=1)[:, 0])
    assert torch.autograd.gradcheck(lambda z: DistillationLoss()(z, teacher), logits)


def test_teacher_gets_no_gradient():
    logits = torch.tensor(random_logits(3, 2), requires_grad=True)
    teacher = torch.tensor(random_logits(3, 1)[:, 0], requires_grad=True)
    DistillationLoss()(logits, teacher).backward()
    assert teacher.grad is None


def test_is_zero_when_student_and_teacher_agree_up_to_a_constant():
    logits = torch.tensor(random_logits(3, 2))
    assert DistillationLoss()(logits, logits.mean(1) + 7.0).item() == pytest.approx(0.0, abs=1e-12)


def test_precision_and_state():
    loss = DistillationLoss()
    assert not loss.state_dict()
    half = torch.zeros(2, 3, 4, dtype=torch.bfloat16)
    parts = loss.parts(half, half[:, 0])
    assert parts['loss'].dtype == torch.float32
    assert parts['distillation'] == parts['loss']


def test_refuses():
    with pytest.raises(ValueError, match=r'teacher logits have shape \(2, 5\).*ask for \(2, 4\)'):
        DistillationLoss()(torch.zeros(2, 3, 4), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r'teacher logits have shape \(2, 3, 4\), but must be \(B, C\)'):
        DistillationLoss()(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))
    with pytest.raises(RideError, match='temperature is -1, but must be a finite number above 0'):
        DistillationLoss(-1)
