import csv
import math

import numpy as np
import pytest
import timm
import torch

from ride_timm.data import GroupChoice
from ride_timm.errors import RideError
from ride_timm.evaluation.cost import gmacs
from ride_timm.evaluation.one_pass import measure
from ride_timm.evaluation.sweep import THRESHOLDS, choose_threshold, format_sweep, write_sweep

GROUPS = GroupChoice({'many': np.array([0, 1]), 'few': np.array([2, 4])}, 'threshold', '')
SIZE = (3, 8, 8)


class Batches(list):
    """A loader of ready batches, without a sampler."""


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    net = timm.create_model('test_ride_resnet_cifar_3e', num_classes=5, router=True, head='linear').train()
    images = torch.randn(256, *SIZE)
    with torch.no_grad():
        for _ in range(20):
            net(images)  # moves the statistics, without which the images look alike
        for expert, mean in zip(net.experts, net.eval().forward_experts(images).mean(0), strict=True):
            expert.fc.bias -= mean  # nor does every image get the same answer
        for router in net.router.hidden:
            router.weight.normal_(std=4.0)
        out = net.router.out
        out.weight.normal_()
        decisions = net.eval().forward_router(images).router_logits
        out.weight *= 2.0 / decisions.std()  # decisions that differ from image to image
        out.bias.zero_()
        out.bias -= net.forward_router(images).router_logits.mean()
    return net


@pytest.fixture(scope='module')
def loader(net):
    torch.manual_seed(1)
    images = torch.randn(64, *SIZE)
    with torch.no_grad():
        logits = net.forward_experts(images)
    # labels that some prefix of the experts gets right or none, but never class 3
    target = torch.where(torch.rand(64) < 0.5, logits[:, 0].argmax(1), logits.mean(1).argmax(1))
    target[target == 3] = 4
    return Batches((images[i : i + 20], target[i : i + 20]) for i in range(0, 64, 20))


@pytest.fixture(scope='module')
def rows(net, loader):
    return routed(net, loader).sweep


def routed(net, loader, threshold=None):
    return measure(net, loader, [9] * 5, groups=GROUPS, routed=True, threshold=threshold, thresholds=THRESHOLDS)


def accuracy(predictions, loader):
    return 100.0 * float((predictions == torch.cat([target for _, target in loader])).double().mean())


def test_thresholds_are_those_asked_for(rows):
    assert [row['threshold'] for row in rows] == list(THRESHOLDS)
    assert THRESHOLDS[0] == 0.0
    assert THRESHOLDS[-1] == 1.0
    assert np.allclose(np.diff(THRESHOLDS[5:-5]), 0.05)
    assert np.allclose(np.add(THRESHOLDS, THRESHOLDS[::-1]), 1.0)
    assert np.all(np.diff(THRESHOLDS) > 0)


def test_ends_are_all_experts_and_the_first_alone(net, loader, rows):
    images = torch.cat([images for images, _ in loader])
    with torch.no_grad():
        experts = net.forward_experts(images)
    assert rows[0]['top1'] == pytest.approx(accuracy(experts.mean(1).argmax(1), loader))
    assert rows[-1]['top1'] == pytest.approx(accuracy(experts[:, 0].argmax(1), loader))
    assert (rows[0]['mean_experts'], rows[0]['share_3']) == (3.0, 1.0)
    assert (rows[-1]['mean_experts'], rows[-1]['share_1']) == (1.0, 1.0)
    assert rows[0]['gmacs'] == pytest.approx(gmacs(net, SIZE), rel=0.02)  # and the routers


def test_every_row_is_what_routed_inference_does(net, loader, rows):
    images, target = (torch.cat(parts) for parts in zip(*loader, strict=True))
    distinct = set()
    for row in rows:
        routed = net.forward_routed(images, row['threshold'])
        right = (routed.logits.argmax(1) == target).double()
        per_class = {c: 100 * float(right[target == c].mean()) for c in range(5) if (target == c).any()}
        assert row['top1'] == pytest.approx(100 * float(right.mean()))
        assert row['balanced'] == pytest.approx(sum(per_class.values()) / len(per_class))
        assert row['many'] == pytest.approx((per_class[0] + per_class[1]) / 2)
        assert row['mean_experts'] == pytest.approx(float(routed.num_experts.double().mean()))
        distinct.add(row['mean_experts'])
    assert len(distinct) > 3, 'the fixture decides alike everywhere'
    assert 3 not in per_class


def test_a_row_agrees_with_the_same_threshold_alone(net, loader, rows):
    for row in rows[::5]:
        metrics = routed(net, loader, row['threshold']).routed
        assert row == pytest.approx({name: metrics[name] for name in row})


def test_padding_of_a_distributed_sampler_does_not_count(net, loader):
    class Sampler:
        num_valid_samples = 45

    padded = Batches(loader)
    padded.sampler = Sampler()
    whole = Batches([(images[:n], target[:n]) for (images, target), n in zip(loader, (20, 20, 5), strict=False)])
    found, expected = routed(net, padded, 0.5), routed(net, whole, 0.5)
    assert found.sweep == expected.sweep
    assert found.metrics == pytest.approx(expected.metrics)
    assert found.metrics['num_images'] == found.routed['num_images'] == 45


def test_no_images_is_an_error(net):
    with pytest.raises(RideError, match='no images'):
        routed(net, Batches())


def row(threshold, top1, balanced, gmacs):
    return {'threshold': threshold, 'top1': top1, 'balanced': balanced, 'gmacs': gmacs}


@pytest.mark.parametrize(
    ('rows', 'chosen'),
    [
        # the cheapest within 0.3 points; 0.4 points below is too much
        ([row(0.0, 50.0, 40.0, 3.0), row(0.5, 49.8, 39.9, 2.0), row(1.0, 49.6, 39.9, 1.0)], 0.5),
        # exactly 0.3 points below is within
        ([row(0.0, 50.1, 40.1, 3.0), row(0.5, 49.8, 39.8, 2.0)], 0.5),
        # better than all experts over the images and worse over the classes: the frequent ones alone have gained
        ([row(0.0, 50.0, 40.0, 3.0), row(0.5, 50.0, 40.0, 2.0), row(1.0, 58.0, 30.0, 1.0)], 0.5),
        # the other way round
        ([row(0.0, 50.0, 40.0, 3.0), row(1.0, 48.0, 45.0, 1.0)], 0.0),
        # the same cost: the more accurate, then the smaller threshold
        ([row(0.0, 50.0, 40.0, 3.0), row(0.4, 50.0, 40.0, 2.0), row(0.5, 50.0, 40.2, 2.0)], 0.5),
        ([row(0.0, 50.0, 40.0, 3.0), row(0.5, 50.0, 40.0, 3.0)], 0.0),
        # a dearer threshold between two cheap ones changes nothing
        ([row(0.0, 50.0, 40.0, 3.0), row(0.5, 40.0, 40.0, 2.0), row(0.8, 49.9, 40.0, 1.5)], 0.8),
    ],
)
def test_the_rule_on_constructed_numbers(rows, chosen):
    assert choose_threshold(rows) == chosen


def test_the_tolerance_can_be_set():
    rows = [row(0.0, 50.0, 40.0, 3.0), row(1.0, 48.0, 39.0, 1.0)]
    assert choose_threshold(rows, tolerance=2.0) == 1.0
    assert choose_threshold(rows, tolerance=1.9) == 0.0


def test_the_measures_can_be_set():
    rows = [row(0.0, 50.0, 40.0, 3.0), row(0.5, 49.8, 39.5, 2.0), row(1.0, 48.0, 39.8, 1.0)]
    assert choose_threshold(rows) == 0.0
    assert choose_threshold(rows, measures=['top1']) == 0.5
    assert choose_threshold(rows, measures=['balanced']) == 1.0


def test_the_rule_needs_all_experts_to_compare_with():
    with pytest.raises(ValueError, match='threshold 0'):
        choose_threshold([row(0.5, 50.0, 40.0, 2.0)])


def test_table_and_file(rows, tmp_path):
    text = format_sweep(rows, 0.5).splitlines()
    assert len(text) == 1 + len(THRESHOLDS)
    assert [line.split()[0] for line in text if line.endswith('<')] == ['0.500']
    write_sweep(tmp_path / 'sweep.csv', rows)
    with (tmp_path / 'sweep.csv').open(newline='') as file:
        read = [{key: float(value) for key, value in line.items()} for line in csv.DictReader(file)]
    assert [list(line) for line in read] == [list(row) for row in rows]
    assert all(math.isclose(line[k], r[k], abs_tol=1e-6) for line, r in zip(read, rows, strict=True) for k in r)
