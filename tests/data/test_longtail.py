import hashlib
import random

import numpy as np
import pytest
import torch

from ride_timm.data import class_counts, long_tail_counts, long_tail_indices

# (classes, images per class, imbalance factor) -> images kept, sha256 of the '<class> <rank in class>' lines
CUTS = {
    (100, 500, 100): (10847, '13b05738ff035b2c86ae7263abaabf23303f831f2f11380b9ea6a1d79c85e2e5'),
    (100, 500, 50): (12608, 'c43ac6f823cc7e0dc3ab1ecb42aae33f6342603a6148e28347a47432b4c4d070'),
    (100, 500, 10): (19573, '5dbf9734ada0ea920d186925f37ce04563c9c2c5841577f29a2131f629611ff8'),
    (10, 5000, 100): (12406, '38af35d02e6cc3a2075e59ff72cbefe8fc0aee5714b3003a1ce64c33cadb2d91'),
    (10, 5000, 50): (13996, 'bcc2943394be85a1919609f047bc7bdd2bcdedfe09146a2763f938da7b975170'),
    (10, 5000, 10): (20431, 'fe783a191d5342699ab205c2e3b8d1d39a6824d6013d2345f359288b33221596'),
}


def balanced(classes, per_class, shuffle_seed=None):
    targets = np.repeat(np.arange(classes), per_class)
    if shuffle_seed is not None:
        np.random.default_rng(shuffle_seed).shuffle(targets)
    return targets


def ranks(targets, kept):
    """(class, position among the rows of that class) of each kept row."""
    rank = np.zeros(len(targets), dtype=int)
    for label in np.unique(targets):
        rank[targets == label] = np.arange((targets == label).sum())
    return [(int(targets[row]), int(rank[row])) for row in kept]


def digest(pairs):
    return hashlib.sha256(''.join(f'{label} {rank}\n' for label, rank in pairs).encode()).hexdigest()


@pytest.mark.parametrize(('classes', 'per_class', 'imb_factor'), CUTS)
def test_cut_of_the_published_benchmarks(classes, per_class, imb_factor):
    targets = balanced(classes, per_class)
    kept = long_tail_indices(targets, imb_factor, classes)
    assert (len(kept), digest(ranks(targets, kept))) == CUTS[classes, per_class, imb_factor]


def test_cut_equals_the_fields_procedure_with_the_global_generator():
    """The published code seeds NumPy's global generator and shuffles class by class; state restored here."""
    targets = balanced(100, 500, shuffle_seed=3)
    before = np.random.get_state()
    np.random.seed(0)
    expected = []
    for label, count in enumerate(long_tail_counts(100, 500, 100)):
        rows = np.where(targets == label)[0]
        np.random.shuffle(rows)
        expected += rows[:count].tolist()
    np.random.set_state(before)
    assert long_tail_indices(targets, 100, 100).tolist() == expected


def test_rank_lists_do_not_depend_on_the_order_of_the_classes_rows():
    sorted_targets, mixed = balanced(10, 50), balanced(10, 50, shuffle_seed=1)
    first = ranks(sorted_targets, long_tail_indices(sorted_targets, 10, 10))
    second = ranks(mixed, long_tail_indices(mixed, 10, 10))
    assert first == second


def test_global_generators_are_neither_read_nor_moved():
    targets = balanced(10, 50)
    np.random.seed(1)
    first = long_tail_indices(targets, 10, 10)
    np.random.seed(2)
    states = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()
    second = long_tail_indices(targets, 10, 10)
    assert np.array_equal(first, second)
    assert np.array_equal(states[0], np.random.get_state()[1])
    assert states[1] == random.getstate()
    assert torch.equal(states[2], torch.get_rng_state())


def test_another_seed_keeps_other_rows_of_the_same_number():
    targets = balanced(10, 50)
    first, second = long_tail_indices(targets, 10, 10), long_tail_indices(targets, 10, 10, seed=1)
    assert set(first.tolist()) != set(second.tolist())
    assert np.array_equal(class_counts(targets[first], 10), class_counts(targets[second], 10))


def test_counts_follow_the_exponential_profile():
    assert long_tail_counts(3, 100, 100).tolist() == [100, 10, 1]
    assert long_tail_counts(1, 7, 100).tolist() == [7]
    assert long_tail_counts(4, 9, 1).tolist() == [9, 9, 9, 9]
    assert long_tail_counts(200, 500, 100).sum() == 21549  # Tiny-ImageNet-LT


@pytest.mark.parametrize('imb_factor', [0.01, 0, -1, float('inf'), float('nan')])
def test_factor_below_one_is_refused(imb_factor):
    with pytest.raises(ValueError, match='at least 1'):
        long_tail_counts(10, 100, imb_factor)


def test_labels_outside_the_classes_are_refused():
    with pytest.raises(ValueError, match='class index 3'):
        long_tail_indices([0, 1, 3], 2, 3)
