import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loss_cases import COUNTS, EXPERTS, RTOL, TARGETS, autograd_gradient, numeric_gradient, random_logits, soft_targets
from reference import base_loss as oracle

from ride_timm.errors import RideError
from ride_timm.losses import BASES, CrossEntropyExperts


@pytest.mark.parametrize('reweighting', [False, True])
@pytest.mark.parametrize('experts', EXPERTS)
@pytest.mark.parametrize('target', TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize('counts', COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize('base', BASES)
def test_equals_oracle(base, counts, target, experts, reweighting):
    loss = CrossEntropyExperts(counts, base, margin_scale=5.0, gamma=1.5, beta=0.99, reweight_epoch=3)
    loss.set_epoch(3 if reweighting else 2)
    logits = random_logits(len(target), experts)
    weights = oracle.effective_number_weights(counts, 0.99) if reweighting else None
    expected = oracle.experts_loss(logits, target, base, counts, weights, margin_scale=5.0, gamma=1.5)
    actual = loss(torch.tensor(logits), torch.tensor(target))
    assert actual.shape == ()
    assert actual.item() == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize('reweighting', [False, True])
@pytest.mark.parametrize('target', TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize('base', ['ce', 'focal'])
def test_soft_targets_equal_oracle(base, target, reweighting):
    counts = COUNTS['long tail']
    loss = CrossEntropyExperts(counts, base, reweight_epoch=0 if reweighting else None)
    logits, soft = random_logits(len(target), 3), soft_targets(target)
    weights = oracle.effective_number_weights(counts, 0.9999) if reweighting else None
    expected = oracle.experts_loss(logits, soft, base, counts, weights)
    assert loss(torch.tensor(logits), torch.tensor(soft)).item() == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize('base', ['ce', 'focal'])
def test_one_hot_targets_equal_hard_targets(base):
    loss = CrossEntropyExperts(COUNTS['long tail'], base, reweight_epoch=0)
    logits, target = torch.tensor(random_logits(5, 2)), torch.tensor(TARGETS['several'])
    torch.testing.assert_close(loss(logits, F.one_hot(target, 4).double()), loss(logits, target))


@pytest.mark.parametrize('reweight_epoch', [None, 0])
def test_equals_torch_cross_entropy(reweight_epoch):
    loss = CrossEntropyExperts(COUNTS['long tail'], reweight_epoch=reweight_epoch)
    logits, target = torch.tensor(random_logits(5, 3)).float(), torch.tensor(TARGETS['several'])
    weight = None if reweight_epoch is None else loss.class_weight
    expected = sum(F.cross_entropy(logits[:, k], target, weight=weight) for k in range(3))
    torch.testing.assert_close(loss(logits, target), expected)


def test_focal_and_ldam_become_cross_entropy():
    logits, target = torch.tensor(random_logits(5, 2)), torch.tensor(TARGETS['several'])
    expected = CrossEntropyExperts()(logits, target)
    torch.testing.assert_close(CrossEntropyExperts(base='focal', gamma=0.0)(logits, target), expected)
    ldam = CrossEntropyExperts(COUNTS['long tail'], 'ldam', margin_scale=0.0)
    torch.testing.assert_close(ldam(logits, target), expected)


def test_rare_classes_get_the_larger_margin():
    loss = CrossEntropyExperts([1000, 1], 'ldam')
    at_zero = torch.zeros(1, 1, 2)
    assert loss(at_zero, torch.tensor([1])) > loss(at_zero, torch.tensor([0])) > math.log(2)


@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('gamma', [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize('reweight_epoch', [None, 0])
def test_gradcheck(gamma, reweight_epoch, soft):
    loss = CrossEntropyExperts(COUNTS['a count of 0'], 'focal', gamma=gamma, reweight_epoch=reweight_epoch)
    labels = TARGETS['several']
    target = torch.tensor(soft_targets(labels) if soft else labels)
    logits = torch.tensor(random_logits(5, 2), requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits)


def test_ldam_gradient_equals_that_of_the_oracle():
    counts, target, logits = COUNTS['long tail'], TARGETS['several'], random_logits(5, 2)
    loss = CrossEntropyExperts(counts, 'ldam', margin_scale=4.0, reweight_epoch=0)
    weights = oracle.effective_number_weights(counts, 0.9999)
    expected = numeric_gradient(
        lambda z: oracle.experts_loss(z, target, 'ldam', counts, weights, margin_scale=4.0), logits
    )
    np.testing.assert_allclose(autograd_gradient(loss, logits, torch.tensor(target)), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('gamma', [0.3, 1.0, 2.0])
def test_focal_gradient_is_finite_where_the_prediction_is_certain(gamma):
    logits = torch.tensor([[[0.0, 500.0]]], requires_grad=True)
    loss = CrossEntropyExperts(base='focal', gamma=gamma)(logits, torch.tensor([1]))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize('reweight_epoch', [None, -1])
def test_never_reweights(reweight_epoch):
    loss = CrossEntropyExperts([100, 1], reweight_epoch=reweight_epoch)
    loss.set_epoch(10_000)
    assert loss.reweight_epoch is None
    assert not loss.reweighting


def test_reweighting_depends_on_the_epoch_alone():
    loss = CrossEntropyExperts([100, 1], reweight_epoch=160)
    assert not loss.reweighting
    for epoch, expected in [(159, False), (160, True), (161, True), (3, False), (160, True)]:
        loss.set_epoch(epoch)
        assert loss.reweighting is expected
    assert CrossEntropyExperts([100, 1], reweight_epoch=0).reweighting


@pytest.mark.parametrize('base', BASES)
def test_single_class(base):
    loss = CrossEntropyExperts([5], base)
    assert loss(torch.ones(2, 3, 1), torch.tensor([0, 0])).item() == 0.0


def test_ldam_refuses_soft_targets():
    loss = CrossEntropyExperts([5, 3], 'ldam')
    with pytest.raises(RideError, match=r"takes no soft targets; switch mixup, cutmix .* base='ce'"):
        loss(torch.zeros(1, 2, 2), torch.tensor([[0.5, 0.5]]))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'base': 'arcface'}, "base is 'arcface', but must be one of 'ce', 'focal', 'ldam'"),
        ({'base': 'ldam'}, "No class_counts were given, but base='ldam' needs"),
        ({'reweight_epoch': 5}, 'No class_counts were given, but re-weighting needs'),
        ({'class_counts': [1], 'reweight_epoch': -2}, 'reweight_epoch is -2'),
        ({'class_counts': [1], 'reweight_epoch': 1.5}, 'reweight_epoch is 1.5'),
        ({'gamma': -1.0}, 'gamma is -1.0, but must be a finite number of at least 0'),
        ({'margin_scale': '30'}, "margin_scale is '30', but must be a finite number of at least 0"),
        ({'class_counts': [1], 'beta': 1.0}, 'beta is 1.0, but must be a finite number above 0 and below 1'),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(RideError, match=message):
        CrossEntropyExperts(**options)
