import inspect

import pytest
import torch
from loss_cases import random_logits

from ride_timm.errors import RideError
from ride_timm.losses import CrossEntropyExperts, LogitAdjustedLoss, RideLoss, SadeLoss, create_loss, list_losses

COUNTS = [50, 9, 2, 1]
DIRECT = {
    'balanced_softmax': (LogitAdjustedLoss(COUNTS, 1.0), {}),
    'balpoe': (LogitAdjustedLoss(COUNTS, (0, 1.25, 2.5)), {'tau': [0, 1.25, 2.5]}),
    'ce': (CrossEntropyExperts(COUNTS, 'ce', beta=0.9, reweight_epoch=0), {'beta': 0.9, 'reweight_epoch': 0}),
    'focal': (CrossEntropyExperts(COUNTS, 'focal', gamma=3.0), {'gamma': 3.0}),
    'ldam': (CrossEntropyExperts(COUNTS, 'ldam', 12.0), {'margin_scale': 12.0}),
    'logit_adjusted': (LogitAdjustedLoss(COUNTS, (1, 2, 3), 'sum'), {'tau': (1, 2, 3), 'reduction': 'sum'}),
    'ride': (RideLoss(COUNTS, 'ce', mode='collaborative'), {'base': 'ce', 'mode': 'collaborative'}),
    'sade': (SadeLoss(COUNTS), {}),
}


def test_lists_every_loss():
    assert list_losses() == sorted(DIRECT)


@pytest.mark.parametrize('name', DIRECT)
def test_passes_options_on(name):
    direct, options = DIRECT[name]
    logits, target = torch.tensor(random_logits(4, 3)), torch.tensor([0, 1, 2, 3])
    made = create_loss(name, COUNTS, **options)
    assert type(made) is type(direct)
    assert made(logits, target) == direct(logits, target)


@pytest.mark.parametrize('name', ['ce', 'focal'])
def test_counts_are_optional_where_nothing_needs_them(name):
    assert torch.isfinite(create_loss(name)(torch.zeros(2, 3, 7), torch.tensor([0, 6])))


@pytest.mark.parametrize('name', sorted(set(DIRECT) - {'ce', 'focal'}))
def test_missing_counts_are_named(name):
    with pytest.raises(RideError, match=f"The loss '{name}' needs class_counts"):
        create_loss(name)


def test_defaults_are_those_of_the_classes():
    ours = inspect.signature(CrossEntropyExperts).parameters
    for name in ('ce', 'focal', 'ldam'):
        made = create_loss(name, COUNTS)
        assert made.base == name
        assert made.gamma == ours['gamma'].default
        assert made.margin_scale == ours['margin_scale'].default
        assert made.reweight_epoch is None


@pytest.mark.parametrize(('wrong', 'closest'), [('rid', 'ride'), ('balanced-softmax', 'balanced_softmax')])
def test_unknown_name(wrong, closest):
    with pytest.raises(RideError) as caught:
        create_loss(wrong, COUNTS)
    message = str(caught.value)
    assert f'{wrong!r}, did you mean {closest!r}?' in message
    assert ', '.join(list_losses()) in message
    assert '\n' not in message


def test_name_like_no_other():
    with pytest.raises(RideError, match="no loss named 'xyzzy'; choose from balanced_softmax"):
        create_loss('xyzzy', COUNTS)


def test_unknown_option():
    with pytest.raises(RideError, match=r"no option 'margin_scal', did you mean 'margin_scale'.*choose from"):
        create_loss('ride', COUNTS, margin_scal=3)
    with pytest.raises(RideError, match="'ce' has no option 'margin_scale'; choose from beta, reweight_epoch"):
        create_loss('ce', COUNTS, margin_scale=3)
    with pytest.raises(RideError, match="'sade' has no option 'tau'; it has none"):
        create_loss('sade', COUNTS, tau=1)
