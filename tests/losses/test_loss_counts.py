import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import COUNTS
from reference import base_loss, logit_adjusted_loss
from timm.loss import compute_class_weights

from ride_timm.errors import RideError
from ride_timm.losses import class_prior, effective_number_weights, ldam_margins

any_counts = st.lists(st.sampled_from([0, 1, 2, 10**6]), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(counts=any_counts, beta=st.sampled_from([0.9, 0.99, 0.9999]))
def test_statistics_equal_oracles(counts, beta):
    weights = effective_number_weights(counts, beta)
    np.testing.assert_allclose(weights.numpy(), base_loss.effective_number_weights(counts, beta), rtol=1e-6)
    np.testing.assert_allclose(ldam_margins(counts).numpy(), base_loss.margins(counts), rtol=1e-12)
    np.testing.assert_allclose(class_prior(counts).numpy(), logit_adjusted_loss.prior(counts), rtol=1e-12)


def test_weights_are_those_of_timm():
    counts = COUNTS['long tail']
    kind, expected = compute_class_weights(counts, sum(counts), method='effective_num', beta=0.9999)
    assert kind == 'class_weight'
    assert torch.equal(effective_number_weights(counts), expected)


def test_statistics_of_zero_and_one_are_equal():
    for statistic in (class_prior, effective_number_weights, ldam_margins):
        assert torch.equal(statistic([40, 0, 3]), statistic([40, 1, 3]))


@pytest.mark.parametrize(
    'counts',
    [
        (3, 1),
        np.array([3, 1]),
        np.array([3.0, 1.0]),
        torch.tensor([3, 1]),
        torch.tensor([3.0, 1.0]).requires_grad_(),
    ],
    ids=['tuple', 'int array', 'float array', 'int tensor', 'float tensor'],
)
def test_takes_any_sequence(counts):
    prior = class_prior(counts)
    assert prior.tolist() == [0.75, 0.25]
    assert not prior.requires_grad


def test_does_not_change_its_argument():
    counts = torch.tensor([0.0, 5.0], dtype=torch.float64)
    class_prior(counts)
    assert counts.tolist() == [0.0, 5.0]


@pytest.mark.parametrize(
    ('counts', 'message'),
    [
        ([], r'has shape \(0,\), but must be a non-empty list'),
        (torch.ones(2, 2), r'has shape \(2, 2\)'),
        ([[1, 2], [3, 4]], 'must be a list with one number per class'),
        ([1, -1], 'must be finite and not negative, but ranges from -1.0 to 1.0'),
        ([1, float('nan')], 'must be finite'),
        ({0: 5, 1: 3}, 'is a dict, which has no class order; pass a list'),
        (['many', 'few'], 'must be a list with one number per class'),
        (7, 'must be a list with one number per class'),
    ],
)
def test_refuses_counts(counts, message):
    with pytest.raises(RideError, match=message):
        class_prior(counts)
