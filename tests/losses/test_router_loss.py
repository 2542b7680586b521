import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import TARGETS, random_logits
from reference import router_loss as oracle

from ride_timm.errors import RideError
from ride_timm.losses import RouterLoss, constant_router_loss, router_targets


@pytest.mark.parametrize('pos_weight', [1.0, 100.0])
@pytest.mark.parametrize('target', TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize('experts', [2, 3, 5])
def test_equals_oracle(experts, target, pos_weight):
    expert_logits = random_logits(len(target), experts)
    router_logits = random_logits(len(target), 1, experts - 1, seed=1)[:, 0]
    expected = oracle.router_loss(router_logits, expert_logits, target, pos_weight)
    actual = RouterLoss(pos_weight)(torch.tensor(router_logits), torch.tensor(expert_logits), torch.tensor(target))
    assert actual.item() == pytest.approx(expected, rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(experts=st.integers(2, 6), classes=st.integers(1, 5), seed=st.integers(0, 2**16))
def test_targets_equal_oracle(experts, classes, seed):
    expert_logits = random_logits(8, experts, classes, seed)
    target = np.random.default_rng(seed).integers(classes, size=8)
    actual = router_targets(torch.tensor(expert_logits), torch.tensor(target))
    assert actual.tolist() == oracle.router_targets(expert_logits, target)
    other = router_targets(torch.tensor(expert_logits), torch.tensor(target), 'disagreement')
    assert other.tolist() == oracle.disagreement_targets(expert_logits)


def test_targets_by_hand():
    # running means of class 0 minus class 1: -1, +1, -1/3 for the first image, and so on
    margins = torch.tensor([[-1.0, 3.0, -3.0], [1.0, -3.0, 9.0], [-1.0, -1.0, -1.0], [1.0, 1.0, 1.0], [-1.0, 0.0, 9.0]])
    expert_logits = torch.stack((margins, torch.zeros_like(margins)), dim=2)
    expected = [
        [1.0, 0.0],  # right with two experts only: the second router cannot help any more
        [0.0, 1.0],  # right at once: stop, although it is wrong in between
        [0.0, 0.0],  # never right: more experts are wasted
        [0.0, 0.0],
        [1.0, 1.0],
    ]
    assert router_targets(expert_logits, torch.zeros(5, dtype=torch.int64)).tolist() == expected


def test_gradcheck():
    expert_logits, target = torch.tensor(random_logits(5, 3)), torch.tensor(TARGETS['several'])
    router_logits = torch.tensor(random_logits(5, 1, 2, seed=1)[:, 0], requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: RouterLoss(7.0)(r, expert_logits, target), router_logits)


def test_expert_logits_get_no_gradient():
    expert_logits = torch.tensor(random_logits(5, 3), requires_grad=True)
    router_logits = torch.zeros(5, 2, requires_grad=True)
    RouterLoss()(router_logits, expert_logits, torch.tensor(TARGETS['several'])).backward()
    assert expert_logits.grad is None
    assert torch.isfinite(router_logits.grad).all()


def test_parts_tell_how_often_to_go_on():
    expert_logits, target = torch.tensor(random_logits(5, 3)), torch.tensor(TARGETS['several'])
    parts = RouterLoss().parts(torch.zeros(5, 2), expert_logits, target)
    assert set(parts) == {'loss', 'needed'}
    assert parts['needed'] == router_targets(expert_logits, target).mean()


def test_precision_buffers_and_state():
    loss = RouterLoss()
    assert not loss.state_dict()
    router_logits, expert_logits = torch.zeros(2, 1, dtype=torch.bfloat16), torch.zeros(2, 2, 3, dtype=torch.bfloat16)
    assert loss(router_logits, expert_logits, torch.tensor([0, 1])).dtype == torch.float32
    assert loss.to('meta').pos_weight.device.type == 'meta'


def test_refuses():
    expert_logits, target = torch.zeros(2, 3, 4), torch.tensor([0, 1])
    with pytest.raises(RideError, match='takes no soft targets'):
        router_targets(expert_logits, torch.full((2, 4), 0.25))
    with pytest.raises(ValueError, match='a router needs at least two'):
        router_targets(expert_logits[:, :1], target)
    with pytest.raises(ValueError, match=r'router logits have shape \(2, 3\).*ask for \(2, 2\)'):
        RouterLoss()(torch.zeros(2, 3), expert_logits, target)
    with pytest.raises(RideError, match='pos_weight is 0, but must be a finite number above 0'):
        RouterLoss(0)


@pytest.mark.parametrize('needed', [0.01, 0.08, 0.5, 0.97])
@pytest.mark.parametrize('pos_weight', [1.0, 100.0])
def test_no_constant_answer_has_a_lower_loss(needed, pos_weight):
    wanted = torch.zeros(100, dtype=torch.float64)
    wanted[: round(100 * needed)] = 1
    losses = [
        torch.nn.functional.binary_cross_entropy_with_logits(
            torch.full_like(wanted, logit), wanted, pos_weight=torch.tensor(pos_weight, dtype=torch.float64)
        ).item()
        for logit in np.linspace(-10, 10, 20001)
    ]
    assert constant_router_loss(needed, pos_weight) == pytest.approx(min(losses), rel=1e-6)


@pytest.mark.parametrize('needed', [0.0, 1.0])
def test_a_constant_answer_suffices_where_all_targets_are_alike(needed):
    assert constant_router_loss(needed) == 0
