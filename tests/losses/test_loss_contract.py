"""What holds for every classification loss and for the package of losses."""

import copy
import doctest
import importlib
import pkgutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import NUM_CLASSES, random_logits, soft_targets
from torch import nn

from ride_timm import losses
from ride_timm.errors import RideError

COUNTS = [60, 9, 1, 0]
TARGET = torch.tensor([0, 3, 1, 2, 0])


def begun(loss):
    loss.set_epoch(0)
    return loss


MAKERS = {
    'ce': lambda: losses.create_loss('ce', COUNTS),
    'ce, re-weighted': lambda: losses.create_loss('ce', COUNTS, reweight_epoch=0),
    'focal': lambda: losses.create_loss('focal', COUNTS),
    'ldam': lambda: losses.create_loss('ldam', COUNTS, reweight_epoch=0),
    'ride': lambda: begun(losses.create_loss('ride', COUNTS)),
    'ride, re-weighted': lambda: losses.create_loss('ride', COUNTS, reweight_epoch=0, rho=0.3),
    'ride, collaborative': lambda: losses.create_loss('ride', COUNTS, mode='collaborative', reweight_epoch=0),
    'balanced_softmax': lambda: losses.create_loss('balanced_softmax', COUNTS),
    'balpoe': lambda: losses.create_loss('balpoe', COUNTS),
    'sade': lambda: losses.create_loss('sade', COUNTS),
    'mutual': lambda: losses.MutualLoss(tau=(0, 1, 2), class_counts=COUNTS, hard_classes=True, num_hard=2),
    'gated mutual': lambda: losses.GatedMutualLoss(COUNTS, tau=(0, 1, 2)),
    'soft suppression': lambda: losses.SoftSuppressionLoss(COUNTS, tau=(0, 1, 2)),
}
# dividing by one temperature per class does not commute with adding a constant to all logits
SHIFT_INVARIANT = [name for name in MAKERS if name not in ('ride, re-weighted', 'ride, collaborative')]
every_loss = pytest.mark.parametrize('name', MAKERS)


@every_loss
def test_float32_under_autocast(name):
    torch.manual_seed(0)
    head, features = nn.Linear(8, 3 * NUM_CLASSES), torch.randn(5, 8)
    loss = MAKERS[name]()
    with torch.autocast('cpu', torch.bfloat16):
        logits = head(features).view(5, 3, NUM_CLASSES)
        inside = loss(logits, TARGET)
    assert logits.dtype == torch.bfloat16
    assert inside.dtype == torch.float32
    assert torch.equal(inside, loss(logits.float(), TARGET))
    inside.backward()
    assert torch.isfinite(head.weight.grad).all()


@every_loss
def test_float64_stays_float64(name):
    assert MAKERS[name]()(torch.tensor(random_logits(5, 3)), TARGET).dtype == torch.float64


@every_loss
def test_nothing_that_the_data_tells_enters_a_checkpoint(name):
    loss = MAKERS[name]()
    assert list(loss.state_dict()) == (['accuracy'] if name == 'gated mutual' else [])
    assert not list(loss.parameters())


@every_loss
def test_buffers_move_and_keep_their_precision(name):
    loss = MAKERS[name]()
    logits = torch.tensor(random_logits(5, 3)).float()
    before = loss(logits, TARGET)
    assert torch.equal(loss.to(torch.bfloat16)(logits, TARGET), before)
    assert torch.equal(loss.half()(logits, TARGET), before)
    assert {buffer.dtype for buffer in loss.buffers()} == {torch.float32}
    assert {buffer.device.type for buffer in loss.to('meta').buffers()} == {'meta'}


@every_loss
@pytest.mark.parametrize('scale', [0.0, 1.0, 1e4])
def test_finite_for_identical_experts(name, scale):
    one = torch.tensor(random_logits(5, 1)).float() * scale
    logits = one.expand(5, 3, NUM_CLASSES).clone().requires_grad_()
    value = MAKERS[name]()(logits, TARGET)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.floats(-50, 50))
@pytest.mark.parametrize('name', SHIFT_INVARIANT)
def test_shift_invariance(name, seed, size):
    logits = torch.tensor(random_logits(5, 3, seed=seed))
    shift = size * torch.tensor(np.random.default_rng(seed).standard_normal((5, 3, 1)))
    loss = MAKERS[name]()
    torch.testing.assert_close(loss(logits + shift, TARGET), loss(logits, TARGET), rtol=1e-9, atol=1e-9)


@every_loss
def test_order_of_the_batch_does_not_matter(name):
    logits, order = torch.tensor(random_logits(5, 3)), torch.tensor([3, 0, 4, 1, 2])
    loss = MAKERS[name]()
    torch.testing.assert_close(loss(logits[order], TARGET[order]), loss(logits, TARGET))


@every_loss
def test_same_input_gives_same_loss_and_leaves_the_generator_alone(name):
    logits, loss = torch.tensor(random_logits(5, 3)), MAKERS[name]()
    state = torch.get_rng_state()
    first = loss(logits, TARGET)
    assert torch.equal(loss(logits, TARGET), first)
    assert torch.equal(copy.deepcopy(loss)(logits, TARGET), first)
    assert torch.equal(torch.get_rng_state(), state)


@every_loss
def test_forward_is_the_loss_of_parts(name):
    logits, loss = torch.tensor(random_logits(5, 3), requires_grad=True), MAKERS[name]()
    parts = loss.parts(logits, TARGET)
    assert torch.equal(loss(logits, TARGET), parts['loss'])
    assert all(value.shape == () for value in parts.values())
    assert [key for key, value in parts.items() if value.requires_grad] == ['loss']


@every_loss
def test_refuses_logits_that_are_not_batch_experts_classes(name):
    loss = MAKERS[name]()
    for shape in [(5,), (0, 3, NUM_CLASSES), (5, 0, NUM_CLASSES), (1, 5, 3, NUM_CLASSES)]:
        with pytest.raises(ValueError, match=r'but must be \(B, K, C\) with no empty axis'):
            loss(torch.zeros(shape), TARGET)
    with pytest.raises(ValueError, match=r'are torch.int64, but must be floating point'):
        loss(torch.zeros(5, 3, NUM_CLASSES, dtype=torch.int64), TARGET)
    with pytest.raises(RideError, match='logits have 5 classes, but class_counts has 4; pass one count per class'):
        loss(torch.zeros(5, 3, 5), TARGET)


@every_loss
def test_takes_what_a_network_returns_in_training(name):
    logits, loss = torch.tensor(random_logits(5, 3)), MAKERS[name]()
    wanted = loss(logits, TARGET)
    assert torch.equal(loss(tuple(logits.unbind(1)), TARGET), wanted)
    assert torch.equal(loss(list(logits.unbind(1)), TARGET), wanted)


@pytest.mark.parametrize('name', ['ce', 'focal', 'ldam', 'ride', 'balanced_softmax'])
def test_takes_the_logits_of_a_plain_network(name):
    logits, loss = torch.tensor(random_logits(5, 1)), MAKERS[name]()
    assert torch.equal(loss(logits[:, 0], TARGET), loss(logits, TARGET))


@pytest.mark.parametrize('name', [name for name in MAKERS if name != 'mutual'])
@pytest.mark.parametrize(
    ('target', 'message'),
    [
        (torch.zeros(4, dtype=torch.int64), r'target has shape \(4,\), but must be class indices of shape \(5,\)'),
        (torch.zeros(5, 3), r'target has shape \(5, 3\)'),
        (torch.zeros(5), 'class indices .B,. must be integers'),
        (torch.zeros(5, 4, dtype=torch.int64), 'probabilities .B, C. floating point'),
        (torch.tensor([0, 1, 2, 3, 4]), 'class indices 0 to 4, but the logits have the classes 0 to 3'),
        (torch.tensor([0, 1, 2, 3, -100]), 'class indices -100 to 3'),
        (torch.full((5, 4), 0.5), 'must be non-negative and sum to 1'),
        (torch.tensor([[2.0, -1.0, 0.0, 0.0]] * 5), 'must be non-negative and sum to 1'),
    ],
)
def test_refuses_targets(name, target, message):
    with pytest.raises(ValueError, match=message):
        MAKERS[name]()(torch.zeros(5, 3, NUM_CLASSES), target)


@every_loss
def test_takes_small_integer_targets(name):
    logits, loss = torch.tensor(random_logits(5, 3)), MAKERS[name]()
    assert torch.equal(loss(logits, TARGET.to(torch.int32)), loss(logits, TARGET))


@pytest.mark.parametrize('name', ['ride, re-weighted', 'sade', 'mutual', 'gated mutual', 'soft suppression'])
def test_compiles_as_one_graph(name):
    logits, loss = torch.tensor(random_logits(5, 3)).float(), MAKERS[name]()
    compiled = torch.compile(loss, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(logits, TARGET), loss(logits, TARGET))


@pytest.mark.parametrize('name', MAKERS)
def test_tau_is_known_where_there_is_one(name):
    expected = {'balanced_softmax': 1.0, 'balpoe': (0.0, 1.0, 2.0)}
    assert MAKERS[name]().tau == expected.get(name)


@pytest.mark.parametrize('name', ['ce', 'focal', 'balanced_softmax', 'balpoe', 'sade', 'gated mutual'])
def test_soft_target_is_the_mixture_of_hard_ones(name):
    """Mixup's two forms, mixed targets and mixed losses, are the same."""
    logits, loss = torch.tensor(random_logits(5, 3)), MAKERS[name]()
    mixed = 0.7 * loss(logits, TARGET) + 0.3 * loss(logits, TARGET.roll(1))
    torch.testing.assert_close(loss(logits, torch.tensor(soft_targets(TARGET.numpy()))), mixed)


@every_loss
def test_epochs_are_counted_from_zero(name):
    with pytest.raises(ValueError, match='The epoch is -1, but epochs are counted from 0'):
        MAKERS[name]().set_epoch(-1)


@every_loss
def test_describes_itself_in_one_name(name):
    loss = MAKERS[name]()
    assert repr(loss).startswith(type(loss).__name__)


def test_public_names():
    assert sorted(losses.__all__) == sorted(set(losses.__all__))
    assert all(hasattr(losses, name) for name in losses.__all__)


@pytest.mark.parametrize('module', [info.name for info in pkgutil.iter_modules(losses.__path__)])
def test_docstring_examples(module):
    assert doctest.testmod(importlib.import_module(f'{losses.__name__}.{module}')).failed == 0


def test_class_weighted_losses_say_how_processes_share_the_mean():
    for loss in (losses.RideLoss, losses.CrossEntropyExperts):
        assert 'DistributedDataParallel each process' in loss.__doc__
