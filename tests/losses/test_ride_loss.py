import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import COUNTS, EXPERTS, RTOL, TARGETS, autograd_gradient, numeric_gradient, random_logits, soft_targets
from reference import ride_loss as oracle

from ride_timm.errors import RideError
from ride_timm.losses import BASES, MODES, CrossEntropyExperts, RideLoss, diversity_temperature


@pytest.mark.parametrize('reweighting', [False, True])
@pytest.mark.parametrize('experts', EXPERTS)
@pytest.mark.parametrize('target', TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize('counts', COUNTS.values(), ids=COUNTS)
def test_equals_oracle(counts, target, experts, reweighting):
    loss = RideLoss(counts, rho=0.3)
    loss.set_epoch(160 if reweighting else 159)
    logits = random_logits(len(target), experts)
    expected = oracle.ride_loss(logits, target, counts, rho=0.3, reweighting=reweighting)
    assert loss(torch.tensor(logits), torch.tensor(target)).item() == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize('reweighting', [False, True])
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('base', BASES)
def test_bases_and_modes_equal_oracle(base, mode, reweighting):
    counts, target, logits = COUNTS['long tail'], TARGETS['several'], random_logits(5, 3)
    options = {'base': base, 'mode': mode, 'diversity': 0.2, 'margin_scale': 7.0, 'beta': 0.99, 'gamma': 1.5}
    loss = RideLoss(counts, reweight_epoch=0 if reweighting else None, **options)
    expected = oracle.ride_loss(logits, target, counts, reweighting=reweighting, **options)
    assert loss(torch.tensor(logits), torch.tensor(target)).item() == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize('mode', MODES)
def test_soft_targets_equal_oracle(mode):
    counts, logits, soft = COUNTS['long tail'], random_logits(5, 3), soft_targets(TARGETS['several'])
    loss = RideLoss(counts, base='ce', mode=mode, reweight_epoch=0)
    expected = oracle.ride_loss(logits, soft, counts, base='ce', mode=mode, reweighting=True)
    assert loss(torch.tensor(logits), torch.tensor(soft)).item() == pytest.approx(expected, rel=RTOL)


def test_ldam_refuses_soft_targets():
    with pytest.raises(RideError, match='takes no soft targets'):
        RideLoss([5, 3])(torch.zeros(1, 2, 2), torch.tensor([[0.5, 0.5]]))


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('reweighting', [False, True])
def test_gradient_equals_that_of_the_oracle_with_a_constant_mean(reweighting, mode):
    counts, target, logits = COUNTS['long tail'], TARGETS['several'], random_logits(5, 3, scale=1.0)
    options = {'margin_scale': 2.0, 'rho': 0.3, 'mode': mode}
    loss = RideLoss(counts, reweight_epoch=0 if reweighting else None, **options)

    def with_frozen_mean(z):
        return oracle.ride_loss(z, target, counts, reweighting=reweighting, teacher_logits=logits, **options)

    actual = autograd_gradient(loss, logits, torch.tensor(target))
    np.testing.assert_allclose(actual, numeric_gradient(with_frozen_mean, logits), rtol=1e-4, atol=1e-7)


def test_gradient_through_the_mean_would_cancel():
    """As the documentation says: a mean of logits that moves with the experts has the same gradient."""
    logits, temperature = random_logits(3, 3, scale=1.0), oracle.temperatures(COUNTS['long tail'], 0.3)
    moving = numeric_gradient(lambda z: oracle.diversity_term(z, temperature), logits)
    frozen = numeric_gradient(lambda z: oracle.diversity_term(z, temperature, teacher_logits=logits), logits)
    np.testing.assert_allclose(moving, frozen, atol=1e-7)
    assert np.abs(moving).max() > 1e-2


def test_gradcheck_without_diversity():
    loss = RideLoss(COUNTS['a count of 0'], diversity=0.0, margin_scale=2.0, reweight_epoch=0)
    logits = torch.tensor(random_logits(5, 2), requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: loss(z, torch.tensor(TARGETS['several'])), logits)


def test_is_cross_entropy_without_diversity_and_margin():
    logits, target = torch.tensor(random_logits(5, 3)), torch.tensor(TARGETS['several'])
    loss = RideLoss(COUNTS['long tail'], margin_scale=0.0, diversity=0.0, reweight_epoch=None)
    torch.testing.assert_close(loss(logits, target), CrossEntropyExperts()(logits, target))


def test_equal_counts_make_reweighting_change_nothing():
    logits, target = torch.tensor(random_logits(5, 3)), torch.tensor(TARGETS['several'])
    loss = RideLoss([9, 9, 9, 9], rho=0.5)
    before = loss(logits, target)
    loss.set_epoch(160)
    torch.testing.assert_close(loss(logits, target), before)


def test_negative_factor_pushes_experts_apart():
    logits = random_logits(1, 2)
    gradient = autograd_gradient(RideLoss([1] * 4, diversity=-0.45, reweight_epoch=None), logits, torch.tensor([0]))
    without = autograd_gradient(RideLoss([1] * 4, diversity=0.0, reweight_epoch=None), logits, torch.tensor([0]))
    stepped = logits - 0.01 * (gradient - without)
    unit = [1.0] * 4
    assert oracle.diversity_term(stepped, unit) > oracle.diversity_term(logits, unit)


@pytest.mark.parametrize('mode', MODES)
def test_parts_add_up(mode):
    loss = RideLoss(COUNTS['long tail'], mode=mode, reweight_epoch=0, rho=0.3)
    logits = torch.tensor(random_logits(5, 3), requires_grad=True)
    parts = loss.parts(logits, torch.tensor(TARGETS['several']))
    assert set(parts) == {'loss', 'classification', 'diversity'}
    torch.testing.assert_close(parts['loss'], parts['classification'] - 0.45 * parts['diversity'])
    assert parts['loss'].requires_grad
    assert not parts['classification'].requires_grad
    assert not parts['diversity'].requires_grad
    expected = oracle.diversity_term(logits.detach().numpy(), oracle.temperatures(COUNTS['long tail'], 0.3))
    assert parts['diversity'].item() == pytest.approx(expected, rel=RTOL)


@pytest.mark.filterwarnings('ignore:.*one expert, so nothing diversifies')
@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=6),
    rho=st.floats(0, 1),
    experts=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_finite_for_any_counts(counts, rho, experts, seed):
    temperature = diversity_temperature(counts, rho)
    assert temperature.max().item() == 1.0
    np.testing.assert_allclose(temperature.numpy(), oracle.temperatures(counts, rho), rtol=1e-12)
    loss = RideLoss(counts, rho=min(rho, 0.9), reweight_epoch=0)
    rng = np.random.default_rng(seed)
    logits = torch.tensor(30 * rng.uniform(-1, 1, (3, experts, len(counts))), dtype=torch.float32, requires_grad=True)
    value = loss(logits, torch.tensor(rng.integers(len(counts), size=3)))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


def test_single_class():
    assert RideLoss([5], reweight_epoch=0)(torch.ones(2, 3, 1), torch.tensor([0, 0])).item() == 0.0


def test_set_epoch_reaches_weights_and_temperatures():
    loss = RideLoss([100, 1], reweight_epoch=4, rho=0.5)
    logits, target = torch.tensor(random_logits(2, 2, 2)), torch.tensor([0, 1])
    before = loss.parts(logits, target)
    loss.set_epoch(4)
    after = loss.parts(logits, target)
    assert after['classification'] != before['classification']
    assert after['diversity'] != before['diversity']
    loss.set_epoch(3)
    assert loss(logits, target) == before['loss']


def test_refuses_options():
    with pytest.raises(RideError, match="mode is 'solo', but must be one of 'individual', 'collaborative'"):
        RideLoss([1, 2], mode='solo')
    with pytest.raises(RideError, match=r'rho is 1\.5, but must be a finite number of at least 0 and at most 1'):
        RideLoss([1, 2], rho=1.5)
    with pytest.raises(RideError, match='diversity is nan, but must be a finite number'):
        RideLoss([1, 2], diversity=float('nan'))
