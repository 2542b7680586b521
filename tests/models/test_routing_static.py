"""Routed networks turned into static programs: the same numbers as eager routing."""

import warnings

import pytest
import torch
from routed_nets import routed_net, safe_thresholds
from torch.testing import assert_close

from ride_timm.models import routing

ARCHITECTURE = 'test_ride_resnet_cifar_3e'


KINDS = ('all', 'some', 'first')


def routed_by(kind):
    """A network with routing on, images, and what eager routing gives; `kind`: the experts that images pass."""
    model, x, router_logits = routed_net(ARCHITECTURE)
    between = min(safe_thresholds(router_logits), key=lambda t: abs(t - 0.5))
    threshold = {'all': 0.0, 'some': between, 'first': 1.0}[kind]
    model.set_routing(threshold)
    with torch.no_grad():
        expected, num_experts = model.forward_routed(x, threshold)
    assert (len(set(num_experts.tolist())) > 1) is (kind == 'some')
    return model, x, expected


@pytest.fixture(params=KINDS)
def routed(request):
    return routed_by(request.param)


def check(program, routed):
    _, x, expected = routed
    with torch.no_grad():
        assert_close(program(x), expected, rtol=1e-4, atol=1e-4)


def test_fx(routed):
    routing._warn_once.cache_clear()
    with pytest.warns(UserWarning, match='symbolically traced routed network computes all experts'):
        program = torch.fx.symbolic_trace(routed[0])
    check(program, routed)


@pytest.mark.filterwarnings('ignore:.*torch.jit.trace.*deprecated')
def test_trace(routed):
    model, x, _ = routed
    routing._warn_once.cache_clear()
    with pytest.warns(UserWarning, match='A traced routed network computes all experts'):
        program = torch.jit.trace(model, x)
    check(program, routed)


def test_export(routed):
    model, x, _ = routed
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        program = torch.export.export(model, (x,))
    check(program.module(), routed)


def test_compile():
    """Equal to eager routing at every threshold, and one warning for all of them."""
    routing._warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for kind in KINDS:
            routed = routed_by(kind)
            check(torch.compile(routed[0], fullgraph=True, backend='eager'), routed)
    assert [str(w.message) for w in caught if 'routed' in str(w.message)] == [
        'A compiled routed network computes all experts: nothing is saved.'
    ]


def test_eager_does_not_warn():
    model, x, _ = routed_net(ARCHITECTURE)
    model.set_routing(0.5)
    model(x)  # a warning would be an error


def test_meta_device():
    model, x, _ = routed_net(ARCHITECTURE)
    assert model.to('meta')(x.to('meta')).shape == (len(x), 9)


@pytest.mark.slow
def test_compile_with_inductor(routed):
    routing._warn_once.cache_clear()
    with pytest.warns(UserWarning, match='nothing is saved'):
        check(torch.compile(routed[0], fullgraph=True), routed)
