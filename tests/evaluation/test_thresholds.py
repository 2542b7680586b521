"""A certified threshold keeps its word, and never promises more than its images allow."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import timm
import torch

import ride_timm as rt
from ride_timm.evaluation.bounds import images_needed, least_loss, most_losses, share_interval
from ride_timm.evaluation.cost import gmacs, plain_gmacs
from ride_timm.evaluation.routes import Routes, find_routes
from ride_timm.evaluation.thresholds import CANDIDATES, choose_from

CIFAR = 'test_ride_resnet_cifar_3e'
EPS, DELTA = 0.01, 0.1


def drawn(generator, images, experts=3, classes=10):
    """Images of which the first experts differ from all the less often, the less sure the router is to go on."""
    scores = torch.randn(images, experts - 1, generator=generator) * 3
    full = torch.randint(classes, (images, 1), generator=generator)
    other = torch.rand(images, experts - 1, generator=generator) < torch.sigmoid(scores - 4)
    early = torch.where(other, (full + 1) % classes, full)
    answers, costs = torch.cat([early, full], 1), tuple(range(1, experts + 1))
    return Routes(scores, answers, full.squeeze(1), {}, costs, (3, 8, 8), '0' * 64)


def test_bounds_are_exact():
    for images, eps, delta in ((300, 0.01, 0.05), (1000, 0.005, 0.1), (50, 0.3, 0.2)):
        chance = [math.comb(images, k) * Fraction(eps) ** k * Fraction(1 - eps) ** (images - k) for k in range(40)]
        tail = np.cumsum([float(share) for share in chance])
        most = most_losses(images, eps, delta)
        assert most < 0 or tail[most] <= delta
        assert tail[most + 1] > delta
    assert [images_needed(eps, 0.05) for eps in (0.01, 0.005, 0.003, 0.0, 1.0)] == [299, 598, 998, None, 0]
    for eps in (0.01, 0.005, 0.003):
        needed = images_needed(eps, 0.05)
        assert (most_losses(needed - 1, eps, 0.05), most_losses(needed, eps, 0.05)) == (-1, 0)
    assert share_interval(3, 10, 0.95) == pytest.approx((0.0667395, 0.6524529), abs=1e-6)
    assert share_interval(0, 0, 0.95) == (0.0, 1.0)
    assert share_interval(7, 7, 0.95)[1] == 1.0


def test_the_least_loss_is_just_enough():
    for losses, images in ((0, 299), (3, 300), (370, 9998), (7, 7)):
        share = least_loss(losses, images, 0.05)
        assert most_losses(images, share, 0.05) >= losses
        assert most_losses(images, share - 1e-4, 0.05) < losses


def test_a_threshold_that_was_chosen_before():
    routes = drawn(torch.Generator().manual_seed(1), 1000)
    choice = choose_from(routes, threshold=0.3, confidence=0.9)
    lost = int(routes.lost(0.3, 'disagreement').sum())
    assert (choice.threshold, choice.certificate.losses) == (0.3, lost)
    assert choice.certificate.max_loss == least_loss(lost, 1000, 1 - 0.9) > lost / 1000
    everything = choose_from(routes, max_loss=choice.certificate.max_loss, confidence=0.9)
    assert everything.certificate is not None


def test_the_guarantee_holds_at_its_level_and_a_point_estimate_does_not():
    """Over 2,000 draws of images, the true loss at the chosen threshold is above eps in at most delta of them."""
    everyone = drawn(torch.Generator().manual_seed(0), 50_000)
    thresholds = np.array(CANDIDATES)
    lost = np.stack([everyone.lost(threshold, 'disagreement').numpy() for threshold in CANDIDATES], axis=1)
    true = lost.mean(axis=0)
    assert true.min() < EPS / 3 < 3 * EPS < true.max()
    draws, trials = np.random.default_rng(1), 2000
    broken = {'certified': 0, 'point': 0}
    routed = 0
    for trial in range(trials):
        rows = draws.integers(0, len(everyone), 1000)
        numbers = lost[rows].sum(axis=0)
        chosen = int(np.argmax(numbers > most_losses(1000, EPS, DELTA))) - 1  # before the first failure
        if trial < 20:
            few = replace(everyone, router_logits=everyone.router_logits[rows], answers=everyone.answers[rows])
            choice = choose_from(replace(few, labels=None), max_loss=EPS, confidence=1 - DELTA)
            assert choice.threshold == thresholds[chosen]
        routed += chosen > 0
        broken['certified'] += true[chosen] > EPS
        broken['point'] += true[numbers <= EPS * 1000].max() > EPS
    assert routed > 0.9 * trials, 'nothing was certified'
    assert broken['certified'] <= (DELTA + 3 * math.sqrt(DELTA * (1 - DELTA) / trials)) * trials
    assert broken['point'] > 2 * DELTA * trials


@pytest.mark.parametrize('experts', [2, 3, 4, 5, 6])
def test_no_loss_and_no_doubt_are_all_experts(experts):
    routes = drawn(torch.Generator().manual_seed(experts), 500, experts)
    for options in ({'max_loss': 0.0}, {'confidence': 1 - 1e-12}):
        choice = choose_from(routes, **options)
        assert (choice.threshold, choice.certificate, choice.mean_experts, choice.changed) == (0.0, None, experts, 0)
        assert choice.reason
    free = choose_from(routes, max_loss=1.0)
    assert (free.threshold, free.mean_experts) == (1.0, 1.0)


def test_never_better_than_the_images_allow():
    routes = drawn(torch.Generator().manual_seed(0), 298)
    alike = replace(routes, answers=routes.full.unsqueeze(1).expand(-1, 3))  # not a single loss anywhere
    too_few = choose_from(alike, max_loss=0.01)
    assert (too_few.threshold, too_few.certificate) == (0.0, None)
    assert '299' in too_few.reason
    enough = choose_from(drawn(torch.Generator().manual_seed(0), 5000), max_loss=0.01)
    certificate = enough.certificate
    assert certificate.losses <= most_losses(5000, 0.01, 0.05)
    assert (certificate.threshold, certificate.images, certificate.losses) == (enough.threshold, 5000, enough.changed)


def test_accuracy_is_lost_where_only_all_experts_are_right():
    routes = drawn(torch.Generator().manual_seed(0), 3000)
    wrong = replace(routes, labels=(routes.labels + 2) % 10)  # no expert is ever right: nothing can be lost
    assert choose_from(wrong, max_loss=0.01, loss='accuracy').threshold == 1.0
    assert choose_from(wrong, max_loss=0.01).threshold < 1.0
    assert choose_from(routes, max_loss=0.01, loss='accuracy').threshold == choose_from(routes, max_loss=0.01).threshold
    with pytest.raises(rt.RideError, match='labels'):
        choose_from(replace(routes, labels=None), loss='accuracy')


def test_gaps_are_intervals_around_what_was_measured():
    routes = drawn(torch.Generator().manual_seed(0), 2000)
    choice = choose_from(routes, [500] * 4 + [50] * 3 + [5] * 3, max_loss=0.05)
    assert list(choice.gaps) == ['all', 'many', 'medium', 'few']
    assert sum(gap.images for name, gap in choice.gaps.items() if name != 'all') == choice.gaps['all'].images == 2000
    for gap in choice.gaps.values():
        assert gap.low < gap.routed - gap.full < gap.high
    assert choice.gaps['few'].high - choice.gaps['few'].low > choice.gaps['all'].high - choice.gaps['all'].low


def test_a_budget_is_kept_and_used_and_ties_go_together():
    routes = drawn(torch.Generator().manual_seed(0), 4001)
    tied = replace(routes, router_logits=routes.router_logits.round())
    for found in (routes, tied):
        for budget in (1.0, 1.3, 2.0, 2.7):
            choice = choose_from(found, budget=budget)
            low, high = choice.gmacs_interval
            assert low <= choice.gmacs <= min(budget, high)
            scores = found.router_logits.unique().double()
            least = scores[scores.sigmoid() < choice.threshold][-1:] - 1e-4  # the next images to go on
            assert all(float(found.gmacs(t).mean()) > budget for t in least.sigmoid().tolist())
            assert choice.certificate is None
    assert choose_from(routes, budget=1.3).gmacs > 1.299
    assert choose_from(routes, budget=3.0).threshold == 0.0
    with pytest.raises(rt.RideError, match='first expert'):
        choose_from(routes, budget=0.9)


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    net = timm.create_model(CIFAR, num_classes=3, router=True).eval()
    net.router.out.weight.data.normal_(std=30)
    return net


def test_order_and_copies_change_nothing(net):
    torch.manual_seed(1)
    images, labels = torch.randn(40, 3, 16, 16), torch.arange(40) % 3
    routes = find_routes(net, [(images[:25], labels[:25]), (images[25:], labels[25:])])
    assert len(routes) == 40
    turned = find_routes(net, [(images.flip(0).repeat(2, 1, 1, 1), labels.flip(0).repeat(2))])
    assert (len(turned), turned.digest) == (40, routes.digest)
    assert choose_from(turned, max_loss=0.2).threshold == choose_from(routes, max_loss=0.2).threshold
    assert find_routes(net, [images + 1]).digest != routes.digest
    for threshold in (0.0, 0.3, 0.7, 1.0):
        out = net.forward_routed(images, threshold)
        assert torch.equal(routes.passed(threshold), out.num_experts)
        assert torch.equal(routes.routed(threshold), out.logits.argmax(1))


def test_a_budget_in_times_the_plain_network():
    net = timm.create_model('ride_resnet32_3e', num_classes=5, router=True)
    plain = gmacs(timm.create_model('ride_resnet32_1e', num_classes=5), (3, 16, 16))
    assert plain_gmacs(net, (3, 16, 16)) == pytest.approx(plain)
    choice = rt.choose_threshold(net, [torch.randn(8, 3, 16, 16)], budget='0.9x')
    assert choice.gmacs <= 0.9 * plain
    for budget in ('cheap', '-1x', 0.0):
        with pytest.raises(rt.RideError, match='budget'):
            rt.choose_threshold(net, [torch.randn(8, 3, 16, 16)], budget=budget)
    with pytest.raises(rt.RideError, match='compared with'):
        plain_gmacs(timm.create_model(CIFAR, router=True), (3, 16, 16))
