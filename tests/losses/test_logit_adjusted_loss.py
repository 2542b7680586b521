import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import COUNTS, EXPERTS, RTOL, TARGETS, random_logits, soft_targets
from reference import logit_adjusted_loss as oracle

from ride_timm.errors import RideError
from ride_timm.losses import (
    CrossEntropyExperts,
    LogitAdjustedLoss,
    SadeLoss,
    balanced_softmax_loss,
    balpoe_loss,
    balpoe_tau,
    prior_correction,
    rank_reversed_prior,
)

TAUS = {1: (1.5,), 2: (-0.5, 2.0), 3: (0.0, 1.0, 2.0)}


@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
@pytest.mark.parametrize('experts', EXPERTS)
@pytest.mark.parametrize('target', TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize('counts', COUNTS.values(), ids=COUNTS)
def test_equals_oracle(counts, target, experts, reduction, soft):
    loss = LogitAdjustedLoss(counts, TAUS[experts], reduction)
    logits = random_logits(len(target), experts)
    labels = soft_targets(target) if soft else target
    expected = oracle.logit_adjusted_loss(logits, labels, counts, TAUS[experts], reduction)
    assert loss(torch.tensor(logits), torch.tensor(labels)).item() == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('target', TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize('counts', COUNTS.values(), ids=COUNTS)
def test_sade_equals_oracle(counts, target, soft):
    logits = random_logits(len(target), 3)
    labels = soft_targets(target) if soft else target
    expected = oracle.sade_loss(logits, labels, counts)
    assert SadeLoss(counts)(torch.tensor(logits), torch.tensor(labels)).item() == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize('loss', [LogitAdjustedLoss([9, 1, 0, 3]), SadeLoss([9, 1, 0, 3])], ids=['tau', 'sade'])
@pytest.mark.parametrize('soft', [False, True])
def test_gradcheck(loss, soft):
    labels = TARGETS['several']
    target = torch.tensor(soft_targets(labels) if soft else labels)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), torch.tensor(random_logits(5, 3), requires_grad=True))


def test_is_cross_entropy_for_equal_counts_or_no_tau():
    logits, target = torch.tensor(random_logits(5, 3)), torch.tensor(TARGETS['several'])
    expected = CrossEntropyExperts()(logits, target)
    torch.testing.assert_close(LogitAdjustedLoss([7] * 4, (0, 1, 2), 'sum')(logits, target), expected)
    torch.testing.assert_close(LogitAdjustedLoss([100, 9, 3, 1], 0.0, 'mean')(logits, target), expected / 3)
    torch.testing.assert_close(SadeLoss([7] * 4)(logits, target), expected)


@pytest.mark.parametrize('experts', [1, 2, 5])
def test_balanced_softmax_takes_any_number_of_experts(experts):
    counts, logits = COUNTS['long tail'], random_logits(5, experts)
    expected = oracle.logit_adjusted_loss(logits, TARGETS['several'], counts, [1.0] * experts)
    actual = balanced_softmax_loss(counts)(torch.tensor(logits), torch.tensor(TARGETS['several']))
    assert actual.item() == pytest.approx(expected, rel=RTOL)


def test_balpoe_is_the_mean_with_its_tau():
    loss = balpoe_loss([5, 1], tau=[0, 1.25, 2.5])
    assert loss.tau == (0.0, 1.25, 2.5)
    assert loss.reduction == 'mean'
    assert balpoe_loss([5, 1]).tau == (0.0, 1.0, 2.0)


def test_balpoe_tau():
    assert [balpoe_tau(k) for k in (1, 2, 3)] == [(1.0,), (0.0, 2.0), (0.0, 1.0, 2.0)]
    for experts in range(1, 9):
        assert len(balpoe_tau(experts)) == experts
        assert sum(balpoe_tau(experts)) / experts == pytest.approx(1.0)
    with pytest.raises(RideError, match='num_experts is 0, but must be a whole number of at least 1'):
        balpoe_tau(0)


@pytest.mark.parametrize(('form', 'three'), [('balpoe', (0, 1, 2)), ('mdcs', (-0.5, 1, 2.5)), ('tcl', (0.9, 1, 1.1))])
def test_tau_by_name_for_any_number_of_experts(form, three):
    assert balpoe_tau(3, form) == pytest.approx(three)
    assert balpoe_tau(1, form) == (1.0,)
    for experts in (2, 4, 7):
        tau = balpoe_tau(experts, form)
        assert (len(tau), tau[0], tau[-1]) == (experts, three[0], pytest.approx(three[2]))
        assert sum(tau) / experts == pytest.approx(1.0)


def test_unknown_name_of_tau():
    with pytest.raises(RideError, match="tau is 'mcds', but must be one of 'balpoe', 'mdcs', 'tcl'"):
        balpoe_tau(3, 'mcds')


def test_adjusted_logits():
    logits = random_logits(2, 2)
    adjusted = LogitAdjustedLoss([3, 1, 0, 4], (0.0, 2.0)).adjusted(torch.tensor(logits)).numpy()
    np.testing.assert_array_equal(adjusted[:, 0], logits[:, 0])
    expected = logits[:, 1] + 2 * np.log(oracle.prior([3, 1, 0, 4]))
    np.testing.assert_allclose(adjusted[:, 1], expected, rtol=RTOL)


def test_rank_reversed_prior():
    assert rank_reversed_prior(torch.tensor([0.1, 0.6, 0.3])).tolist() == pytest.approx([0.6, 0.1, 0.3])
    tied = [0.2, 0.3, 0.3, 0.2]
    assert rank_reversed_prior(torch.tensor(tied)).tolist() == pytest.approx(oracle.rank_reversed(tied))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8))
def test_rank_reversed_prior_is_a_permutation_in_opposite_order(values):
    prior = torch.tensor(values, dtype=torch.float64)
    reverse = rank_reversed_prior(prior)
    assert sorted(reverse.tolist()) == sorted(values)
    order = prior.argsort(stable=True)
    assert (reverse[order].diff() <= 0).all()


@pytest.mark.parametrize('tau', [(0.0, 1.0, 2.0), (0.0, 1.25, 2.5), (2.0,)])
@pytest.mark.parametrize('counts', COUNTS.values(), ids=COUNTS)
def test_prior_correction_equals_oracle(counts, tau):
    mean, target_prior = random_logits(5, 1)[:, 0], [0.1, 0.2, 0.3, 0.4]
    actual = prior_correction(torch.tensor(mean), counts, tau, target_prior)
    np.testing.assert_allclose(actual.numpy(), oracle.prior_correction(mean, counts, tau, target_prior), rtol=1e-12)


def test_prior_correction_recovers_the_posterior():
    """Experts that fit the training set perfectly give, corrected, Bayes' posterior for any prior."""
    counts, tau = [80, 15, 5], (0.0, 1.0, 2.5)
    prior, likelihood = np.array(counts) / 100, np.array([0.2, 0.5, 0.9])
    experts = [np.log(prior * likelihood) - t * np.log(prior) for t in tau]
    mean = torch.tensor(np.mean(experts, axis=0))[None]
    target_prior = np.array([0.1, 0.3, 0.6])
    posterior = target_prior * likelihood / (target_prior * likelihood).sum()
    actual = prior_correction(mean, counts, tau, target_prior).softmax(1)[0]
    np.testing.assert_allclose(actual.numpy(), posterior, rtol=1e-12)


def test_prior_correction_changes_no_prediction_when_it_should_not():
    mean = torch.tensor(random_logits(5, 1)[:, 0])
    corrected = prior_correction(mean, [50, 5, 2, 1], (0, 1, 2))
    torch.testing.assert_close(corrected.softmax(1), mean.softmax(1))
    scaled = prior_correction(mean, [50, 5, 2, 1], 1.0, [2, 2, 2, 2])
    torch.testing.assert_close(scaled, corrected)


def test_prior_correction_rules_out_a_class():
    corrected = prior_correction(torch.zeros(1, 3), [5, 5, 5], (0, 1, 2), [1, 0, 1])
    assert corrected.softmax(1).tolist() == [[0.5, 0.0, 0.5]]


def test_prior_correction_refuses():
    logits = torch.zeros(2, 3)
    with pytest.raises(RideError, match=r'no tau list.*take weights trained with'):
        prior_correction(logits, [1, 2, 3], SadeLoss([1, 2, 3]).tau)
    with pytest.raises(RideError, match='tau is an empty list'):
        prior_correction(logits, [1, 2, 3], ())
    with pytest.raises(RideError, match='logits have 3 classes, but class_counts has 2'):
        prior_correction(logits, [1, 2], (0, 1, 2))
    with pytest.raises(RideError, match='target_prior has 2 entries'):
        prior_correction(logits, [1, 2, 3], (0, 1, 2), [0.5, 0.5])
    with pytest.raises(RideError, match=r'must have 3, one per class, not all 0'):
        prior_correction(logits, [1, 2, 3], (0, 1, 2), [0, 0, 0])
    with pytest.raises(RideError, match='target_prior must be finite and not negative'):
        prior_correction(logits, [1, 2, 3], (0, 1, 2), [1, -1, 1])
    with pytest.raises(ValueError, match=r'must be \(B, C\)'):
        prior_correction(logits[None], [1, 2, 3], (0, 1, 2))


def test_refuses_the_wrong_number_of_experts():
    logits, target = torch.zeros(2, 2, 2), torch.tensor([0, 1])
    with pytest.raises(RideError, match=r'tau has 3 numbers, but the logits come from 2 experts.*tau=\(0.0, 2.0\)'):
        LogitAdjustedLoss([2, 1])(logits, target)
    with pytest.raises(RideError, match='SADE trains three experts, but the logits come from 2'):
        SadeLoss([2, 1])(logits, target)


@pytest.mark.parametrize('tau', ['1', ['0', '1'], (0, float('nan')), None])
def test_refuses_tau_that_is_no_number(tau):
    with pytest.raises(RideError, match=r'tau is .* but must be a finite number'):
        LogitAdjustedLoss([1, 2], tau)


def test_refuses_reduction():
    with pytest.raises(RideError, match="reduction is 'none', but must be one of 'mean', 'sum'"):
        LogitAdjustedLoss([1, 2], reduction='none')
