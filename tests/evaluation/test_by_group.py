"""Results over groups of images, whose intervals hold for other groups of the same kind."""

import numpy as np
import pytest

from ride_timm.evaluation.by_group import by_image_group, group_lines
from ride_timm.evaluation.metrics import wilson_interval
from ride_timm.records.fields import from_json, to_json
from ride_timm.records.results import ImageGroups


def draw(rng, groups=30, size=20):
    """Images of places that are recognised to a share of their own, around 60 %."""
    shares = rng.beta(3, 2, groups)
    right = rng.random((groups, size)) < shares[:, None]
    targets = rng.integers(0, 3, (groups, size))
    answers = np.where(right, targets, (targets + 1) % 3)
    return targets.ravel(), answers.ravel(), np.repeat(np.arange(groups), size).astype(str)


def test_values_are_those_of_all_images():
    targets, answers, groups = draw(np.random.default_rng(0))
    found = by_image_group(targets, answers, groups)
    right = targets == answers
    assert found.groups == 30
    assert found.top1 == pytest.approx(100 * right.mean())
    assert found.balanced == pytest.approx(100 * np.mean([right[targets == label].mean() for label in range(3)]))
    for low, high in (found.top1_interval, found.balanced_interval):
        assert low < found.top1 < high
    worst = found.worst[0]
    own = right[groups == worst.name]
    assert (worst.images, worst.accuracy) == (20, pytest.approx(100 * own.mean()))
    assert worst.accuracy == min(100 * right[groups == name].mean() for name in np.unique(groups))
    assert len(found.worst) == 20


def test_the_same_seed_draws_the_same():
    images = draw(np.random.default_rng(0))
    assert by_image_group(*images) == by_image_group(*images)
    assert by_image_group(*images).top1_interval != by_image_group(*images, seed=1).top1_interval
    found = by_image_group(*images)
    assert from_json(ImageGroups, to_json(found), 'file') == found


def test_intervals_hold_for_other_groups_and_those_over_images_do_not():
    rng = np.random.default_rng(1)
    held = {'groups': 0, 'images': 0}
    draws = 200
    for _ in range(draws):
        targets, answers, groups = draw(rng)
        low, high = by_image_group(targets, answers, groups, resamples=200).top1_interval
        held['groups'] += low <= 60 <= high
        low, high = wilson_interval(int((targets == answers).sum()), targets.size)
        held['images'] += low <= 60 <= high
    assert held['groups'] > 0.88 * draws  # 95 % of many groups, a little less of 30
    assert held['images'] < 0.80 * draws


def test_a_group_with_few_images_is_not_the_worst_for_sure():
    targets = np.zeros(22, dtype=int)
    answers = np.array([1, *[1] * 15, *[0] * 5, 0])
    groups = ['one', *['many'] * 20, 'other']
    assert by_image_group(targets, answers, groups).worst[0].name == 'many'


def test_a_single_group_tells_nothing():
    found = by_image_group([0, 1], [0, 0], ['a', 'a'])
    assert (found.top1, found.top1_interval, found.balanced_interval) == (50.0, None, None)
    assert len(group_lines(found)) == 1


def test_lines_fit_a_terminal():
    targets, answers, groups = draw(np.random.default_rng(0))
    lines = group_lines(by_image_group(targets, answers, [f'{"x" * 200}{name}' for name in groups]), 80)
    assert max(map(len, lines)) <= 80
