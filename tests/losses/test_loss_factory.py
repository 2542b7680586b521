import inspect

import pytest
import timm
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
    assert f'{wrong!r}, did you mean {closest}?' in message
    assert ', '.join(list_losses()) in message
    assert '\n' not in message


def test_name_like_no_other():
    with pytest.raises(RideError, match="no loss named 'xyzzy'; choose from balanced_softmax"):
        create_loss('xyzzy', COUNTS)


def test_unknown_option():
    with pytest.raises(RideError, match=r"no option 'margin_scal', did you mean margin_scale.*choose from"):
        create_loss('ride', COUNTS, margin_scal=3)
    with pytest.raises(RideError, match="'ce' has no option 'margin_scale'; choose from beta, reweight_epoch"):
        create_loss('ce', COUNTS, margin_scale=3)
    with pytest.raises(RideError, match="'sade' has no option 'tau'; it has none"):
        create_loss('sade', COUNTS, tau=1)


def net(**kwargs):
    return timm.create_model('test_ride_resnet_cifar_3e', num_classes=4, **kwargs)


def test_margins_are_scaled_as_the_head_scales_its_logits():
    plain = timm.create_model('test_vit', num_classes=4)  # its `head` is a module
    for name in ('ride', 'ldam'):
        scales = {}
        for model in (net(), net(head='linear'), plain, torch.nn.Linear(2, 4)):
            made = create_loss(name, COUNTS, model=model)
            scales[model] = (made.classification if name == 'ride' else made).margin_scale
        assert list(scales.values()) == [30.0, 1.0, 1.0, 1.0]
    assert create_loss('ldam', COUNTS, model=net(), margin_scale=7.0).margin_scale == 7.0


def test_tau_follows_the_experts():
    assert create_loss('balpoe', COUNTS, model=net()).tau == (0.0, 1.0, 2.0)
    two = timm.create_model('ride_resnet32_2e', num_classes=4)
    assert create_loss('balpoe', COUNTS, model=two).tau == (0.0, 2.0)
    assert create_loss('balpoe', COUNTS, model=torch.nn.Linear(2, 4)).tau == (1.0,)
    assert create_loss('balpoe', COUNTS, model=two, tau=(1, 1)).tau == (1.0, 1.0)


def test_the_epoch_of_re_weighting_follows_the_epochs():
    def epoch(**options):
        return create_loss('ride', COUNTS, **options).classification.reweight_epoch

    assert (epoch(), epoch(epochs=30), epoch(epochs=30, reweight_epoch=7)) == (160, 24, 7)
    assert epoch(epochs=30, reweight_epoch=None) is None
    assert create_loss('ldam', COUNTS, epochs=30).reweight_epoch is None


@pytest.mark.parametrize('name', ['ride', 'ldam'])
def test_a_loss_that_waits_for_an_epoch_says_once_that_it_is_told_none(name):
    logits, target = torch.zeros(2, 3, 4), torch.tensor([0, 1])
    trained = logits.clone().requires_grad_()
    loss = create_loss(name, COUNTS, reweight_epoch=3)
    loss(logits, target)  # an evaluation has no epochs; a warning would be an error
    with pytest.warns(UserWarning, match=r'set_epoch.*reweight_epoch=3'):
        loss(trained, target)
    loss(trained, target)
    for told, epoch in ((True, 3), (False, None), (False, 0)):
        loss = create_loss(name, COUNTS, reweight_epoch=epoch)
        if told:
            loss.set_epoch(0)
        loss(trained, target)


def test_ride_on_one_expert_says_once_that_nothing_diversifies():
    logits, target = torch.zeros(2, 4, requires_grad=True), torch.tensor([0, 1])
    loss = create_loss('ride', COUNTS, epochs=1)
    with pytest.warns(UserWarning, match='one expert, so nothing diversifies'):
        loss(logits, target)
    loss(logits, target)
