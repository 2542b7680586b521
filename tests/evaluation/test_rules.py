"""Rules without training route as they are described, on the scale of a router."""

import pytest
import timm
import torch

from ride_timm.evaluation.one_pass import measure
from ride_timm.evaluation.routes import find_routes
from ride_timm.evaluation.rules import RULES, rule_logits
from ride_timm.evaluation.thresholds import choose_from


def test_by_hand():
    logits = torch.tensor([[[2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 9.0, 0.0]]])
    found = rule_logits(logits)
    assert set(found) == set(RULES)
    share = torch.tensor([2.0, 0.0, 0.0]).softmax(0)
    assert found['softmax'].sigmoid()[0].tolist() == pytest.approx([1 - float(share[0])] * 2, abs=1e-6)
    assert found['margin'].sigmoid()[0, 0].item() == pytest.approx(1 - float(share[0] - share[1]), abs=1e-6)
    entropy = float(-(share * share.log()).sum() / torch.tensor(3.0).log())
    assert found['entropy'].sigmoid()[0, 0].item() == pytest.approx(entropy, abs=1e-6)
    assert found['agreement'][0].tolist() == [torch.inf, -torch.inf]  # alone, then of one mind
    assert found['oracle'][0].tolist() == [torch.inf, torch.inf]  # only the third changes the answer


def test_the_oracle_changes_no_answer_and_no_rule_that_changes_none_is_cheaper():
    torch.manual_seed(0)
    net = timm.create_model('test_ride_resnet_cifar_3e', num_classes=4, router=True).eval()
    routes = find_routes(net, [torch.randn(30, 3, 16, 16)])
    oracle = routes.by('oracle')
    assert int(oracle.lost(0.5, 'disagreement').sum()) == 0
    for threshold in (0.01, 0.5, 0.99):
        for rule in RULES:
            other = routes.by(rule)
            kept = other.routed(threshold) == routes.full
            assert bool((oracle.passed(0.5)[kept] <= other.passed(threshold)[kept]).all())
    assert choose_from(routes.by('entropy'), max_loss=1.0).mean_experts == 1.0


def test_the_sweep_of_a_rule_is_what_routing_by_it_does():
    torch.manual_seed(0)
    net = timm.create_model('test_ride_resnet_cifar_3e', num_classes=4, router=True).eval()
    images, labels = torch.randn(30, 3, 16, 16), torch.arange(30) % 4
    found = measure(net, [(images, labels)], [9] * 4, routed=True, thresholds=(0.0, 0.4, 1.0), rules=True)
    routes = find_routes(net, [(images, labels)])
    assert set(found.rules) == set(RULES)
    for name, rows in found.rules.items():
        for row in rows:
            by_rule = routes.by(name)
            share = (by_rule.routed(row['threshold']) == labels).double().mean()
            assert row['top1'] == pytest.approx(100 * float(share))
            assert row['gmacs'] == pytest.approx(float(by_rule.gmacs(row['threshold']).mean()))
            assert row['changed'] == pytest.approx(
                100 * float(by_rule.lost(row['threshold'], 'disagreement').double().mean())
            )
