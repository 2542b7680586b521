"""Abstention: in thousands of draws the promise holds at its level, and the rule without a test breaks it."""

import numpy as np
import pytest
import timm
import torch
from tiny_runs import CIFAR
from torch.utils.data import DataLoader, TensorDataset

import ride_timm as rt
from ride_timm.errors import RideError
from ride_timm.inference.abstention import choose_abstention, choose_limit, images_for
from ride_timm.inference.calibration import Said, confidence_curve
from ride_timm.inference.load import TrainedNet
from ride_timm.inference.prior import logit_adjustment

RATE, LEVEL, IMAGES, DRAWS = 0.1, 0.9, 400, 2000
GRID = (np.arange(20000) + 0.5) / 20000


def falling(confidence):
    return 0.5 * (1 - confidence) ** 1.5


def rising_at_the_end(confidence):
    """Also the most confident answers are wrong more often than is asked for."""
    return np.where(confidence > 0.8, 0.13, 0.05 + 0.3 * (1 - confidence))


def hopeless(confidence):
    return np.full_like(confidence, 0.12)


def draw(rng, errors, images=IMAGES):
    confidence = rng.random(images)
    return Said(confidence, rng.random(images) >= errors(confidence))


@pytest.mark.parametrize(('errors', 'certified'), [(falling, 0.7), (rising_at_the_end, 0.0), (hopeless, 0.0)])
def test_the_promise_holds_at_its_level(errors, certified):
    rng = np.random.default_rng(0)
    broken = answered = naive = 0
    risks = np.cumsum(errors(GRID)[::-1])[::-1] / np.arange(len(GRID), 0, -1)  # of the answers above each confidence

    def risk(limit):
        return risks[min(int(limit * len(GRID)), len(GRID) - 1)]

    for _ in range(DRAWS):
        fitting, measuring = draw(rng, errors, IMAGES // 4), draw(rng, errors, 3 * IMAGES // 4)
        curve = confidence_curve(fitting, measuring, 0.0)
        found = choose_limit(curve, RATE, LEVEL)
        if found is not None:
            answered += 1
            broken += risk(found.limit) > RATE
        shares = np.divide(curve.measured.wrong, np.maximum(curve.measured.said, 1))
        kept = [limit for limit, share in zip(curve.limits, shares, strict=True) if share <= RATE]
        naive += bool(kept) and risk(min(kept)) > RATE
    allowed = 1 - LEVEL
    assert broken / DRAWS <= allowed + 3 * np.sqrt(allowed * LEVEL / DRAWS)
    assert answered / DRAWS >= certified
    assert naive / DRAWS > 2 * allowed


def test_the_number_of_images_that_it_takes():
    rng = np.random.default_rng(1)

    def always_right(images):
        return confidence_curve(*(draw(rng, np.zeros_like, part) for part in (images // 4, images - images // 4)), 0.0)

    needed = images_for(always_right(40), 0.02)
    assert choose_limit(always_right(needed + 2), 0.02) is not None
    assert choose_limit(always_right(needed - 5), 0.02) is None
    assert images_for(confidence_curve(*(Said(rng.random(99), np.zeros(99, bool)) for _ in range(2)), 0.0), 0.5) is None


@pytest.mark.parametrize('rate', [0.0, 1.0, -1.0, float('nan')])
def test_a_rate_is_a_share(rate):
    curve = confidence_curve(*(draw(np.random.default_rng(0), falling) for _ in range(2)), 0.0)
    with pytest.raises(RideError, match='between 0 and 1'):
        choose_limit(curve, rate)


@pytest.fixture
def net():
    """A network that is always right, calibrated on images that say so."""
    torch.manual_seed(0)
    net = TrainedNet(timm.create_model(CIFAR, num_classes=3, router=True).eval(), CIFAR)
    images = torch.randn(200, 3, 16, 16)
    with torch.no_grad():
        labels = net.model(images).argmax(1)
    rt.calibrate(net, DataLoader(TensorDataset(images, labels), batch_size=50))
    return net


def test_a_network_that_is_always_right_says_everything(net):
    found = choose_abstention(net, 0.05)
    assert (found.limit, found.said, found.wrong, found.images) == (0.0, 150, 0, 150)
    with pytest.raises(RideError, match='it takes at least'):
        choose_abstention(net, 0.01)


def test_the_promise_is_for_the_network_as_it_was_calibrated(net):
    own = net.model.router_threshold
    assert choose_abstention(net, 0.9, threshold=own).images == 150
    with pytest.raises(RideError, match='routing threshold'):
        choose_abstention(net, 0.9, threshold=own / 2)
    logit_adjustment(net.model, [3, 2, 1], tau=0.5)
    with pytest.raises(RideError, match='leave one of them out'):
        choose_abstention(net, 0.9)
    with pytest.raises(RideError, match='ride-timm calibrate'):
        choose_abstention(TrainedNet(net.model, CIFAR), 0.9)
