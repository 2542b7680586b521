import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ride_timm.data import hold_out, holdout_rows, open_train_split, split_digest
from ride_timm.errors import RideError


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=8),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_the_same_share_of_every_class_and_one_image_left(counts, fraction, seed):
    labels = np.random.default_rng(7).permutation(np.repeat(np.arange(len(counts)), counts))
    names = 'abcdefgh'[: len(counts)]
    train, held = holdout_rows(labels, fraction, names, seed)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(labels.size))
    for label, count in enumerate(counts):
        number = int((labels[held] == label).sum())
        assert abs(number - fraction * count) <= 0.5 + 1e-9 or number == count - 1
        assert count == 0 or number < count
    again = holdout_rows(labels, fraction, names, seed)
    assert np.array_equal(held, again[1])


def test_halves_count_up_so_that_the_rarest_class_is_measured():
    labels = np.repeat([0, 1], [500, 5])
    _, held = holdout_rows(labels, 0.1, 'ab')
    assert np.bincount(labels[held]).tolist() == [50, 1]


def test_another_seed_holds_out_others():
    labels = np.repeat([0, 1], [40, 20])
    draws = {tuple(holdout_rows(labels, 0.3, 'ab', seed)[1].tolist()) for seed in range(5)}
    assert len(draws) == 5


def test_a_class_is_drawn_by_its_name_whatever_the_others_are():
    alone = np.zeros(30, dtype=int)
    beside = np.concatenate([alone, np.ones(11, dtype=int)])
    held = holdout_rows(beside, 0.2, 'ab', 3)[1]
    assert held[held < 30].tolist() == holdout_rows(alone, 0.2, 'a', 3)[1].tolist()
    assert held.tolist() == holdout_rows(1 - beside, 0.2, 'ba', 3)[1].tolist()
    assert held[held < 30].tolist() != holdout_rows(alone, 0.2, 'b', 3)[1].tolist()


@pytest.mark.parametrize('fraction', [0.0, 1.0, -0.1, 1.5])
def test_refuses_what_is_no_fraction(fraction):
    with pytest.raises(ValueError, match='between 0 and 1'):
        holdout_rows([0, 0, 1, 1], fraction, 'ab')


def test_both_parts_read_their_own_files(make_folder):
    split = open_train_split(make_folder({'train': {'a': 10, 'b': 4}}))
    parts = hold_out(split, 0.25, seed=1)
    assert parts.train.class_counts.tolist() == [7, 3]
    assert parts.held.class_counts.tolist() == [3, 1]
    names = set(parts.train.dataset.filenames()), set(parts.held.dataset.filenames())
    assert not names[0] & names[1]
    assert names[0] | names[1] == set(split.dataset.filenames())
    for part in parts[:2]:
        assert part.class_names == split.class_names
        for i, target in enumerate(part.targets):
            assert part.dataset.filename(i).startswith(part.class_names[target])
            assert part.dataset[i][1] == target
    parts.train.dataset.transform = lambda image: 'augmented'
    assert parts.train.dataset[0][0] == 'augmented'
    assert parts.held.dataset[0][0] != 'augmented'


def test_digest_names_the_images_in_any_order(make_folder):
    split = open_train_split(make_folder({'train': {'a': 10, 'b': 4}}))
    parts = hold_out(split, 0.25, seed=1)
    assert parts.digest == split_digest(parts.held) == hold_out(split, 0.25, seed=1).digest
    turned = open_train_split(split.source, class_names=('b', 'a'))
    assert split_digest(turned) == split_digest(split)
    assert parts.digest != hold_out(split, 0.25, seed=2).digest


def test_holding_nothing_out_is_an_error(make_folder):
    split = open_train_split(make_folder({'train': {'a': 4, 'b': 2}}))
    with pytest.raises(RideError, match='holds no image out'):
        hold_out(split, 0.01)
    with pytest.raises(RideError, match='between 0 and 1'):
        hold_out(split, 2.0)
