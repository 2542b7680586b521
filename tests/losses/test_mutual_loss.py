import numpy as np
import pytest
import torch
from loss_cases import COUNTS, EXPERTS, RTOL, autograd_gradient, numeric_gradient, random_logits
from reference import mutual_loss as oracle

from ride_timm.errors import RideError
from ride_timm.losses import MutualLoss


@pytest.mark.parametrize('num_hard', [None, 1, 2, 30])
@pytest.mark.parametrize('temperature', [1.0, 2.5])
@pytest.mark.parametrize('batch', [1, 4])
@pytest.mark.parametrize('experts', [2, 3, 4])
def test_equals_oracle(experts, batch, temperature, num_hard):
    options = {} if num_hard is None else {'hard_classes': True, 'num_hard': num_hard}
    logits = random_logits(batch, experts, classes=5)
    expected = oracle.mutual_loss(logits, temperature, num_hard)
    actual = MutualLoss(temperature, **options)(torch.tensor(logits))
    assert actual.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize('num_hard', [None, 2])
@pytest.mark.parametrize('counts', COUNTS.values(), ids=COUNTS)
def test_adjusts_internally(counts, num_hard):
    options = {} if num_hard is None else {'hard_classes': True, 'num_hard': num_hard}
    tau, logits = (0.0, 1.0, 2.0), random_logits(4, 3)
    expected = oracle.mutual_loss(oracle.adjusted(logits, counts, tau), num_hard=num_hard)
    loss = MutualLoss(tau=tau, class_counts=counts, **options)
    assert loss(torch.tensor(logits)).item() == pytest.approx(expected, rel=10 * RTOL)


@pytest.mark.parametrize('options', [{}, {'hard_classes': True, 'num_hard': 3}])
def test_gradient_treats_the_other_experts_as_constants(options):
    logits = random_logits(2, 3, classes=5, scale=1.0)
    num_hard = options.get('num_hard')

    def with_frozen_teachers(z):
        return oracle.mutual_loss(z, 1.5, num_hard, teacher_logits=logits)

    def with_moving_teachers(z):
        return oracle.mutual_loss(z, 1.5, num_hard)

    actual = autograd_gradient(MutualLoss(1.5, **options), logits)
    np.testing.assert_allclose(actual, numeric_gradient(with_frozen_teachers, logits), rtol=1e-4, atol=1e-8)
    assert np.abs(actual - numeric_gradient(with_moving_teachers, logits)).max() > 1e-3


def test_hard_classes_are_those_of_the_mean_over_experts():
    logits = torch.tensor([[[9.0, 1.0, 4.0], [-11.0, 0.0, 4.0]]], requires_grad=True)
    MutualLoss(hard_classes=True, num_hard=2)(logits).backward()
    assert torch.equal(logits.grad[0, :, 0], torch.zeros(2))  # class 0 leads with one expert, but is last on average
    assert (logits.grad[0, :, 1:] != 0).all()


@pytest.mark.parametrize('hard_classes', [False, True])
def test_single_expert_learns_nothing(hard_classes):
    logits = torch.tensor(random_logits(3, 1), requires_grad=True)
    loss = MutualLoss(hard_classes=hard_classes)(logits)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad.abs().max() < 1e-15


@pytest.mark.parametrize('experts', EXPERTS)
def test_identical_experts(experts):
    logits = torch.tensor(random_logits(3, 1)).expand(3, experts, 4).clone().requires_grad_()
    loss = MutualLoss()(logits, torch.tensor([0, 1, 2]))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert logits.grad.abs().max() < 1e-12


def test_parts():
    logits = torch.tensor(random_logits(3, 2), requires_grad=True)
    parts = MutualLoss().parts(logits)
    assert parts['mutual'] == parts['loss']
    assert not parts['mutual'].requires_grad


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'temperature': 0.0}, 'temperature is 0.0, but must be a finite number above 0'),
        ({'num_hard': 0}, 'num_hard is 0, but must be a whole number of at least 1'),
        ({'num_hard': 2.5}, 'num_hard is 2.5'),
        ({'tau': (0, 1)}, 'class_counts is missing'),
        ({'class_counts': [1, 2]}, 'tau is missing'),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(RideError, match=message):
        MutualLoss(**options)
