import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ride_timm.data import check_apart, hold_out, holdout_rows, open_train_split, split_digest
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
    with pytest.raises(RideError, match='holds out no image'):
        hold_out(split, 0.01)
    with pytest.raises(RideError, match='between 0 and 1'):
        hold_out(split, 2.0)


@pytest.mark.parametrize('fraction', [0.2, 0.5])
def test_an_image_that_a_list_repeats_stays_on_one_side(make_folder, fraction):
    root = make_folder({'train': {'a': 6, 'b': 4}})
    lines = [f'train/{name}/{path.name} {name}' for name in 'ab' for path in sorted((root / 'train' / name).iterdir())]
    (root / 'list').write_text('\n'.join(lines * 2 + lines[-2:]))
    (root / 'once').write_text('\n'.join(lines))
    parts = hold_out(open_train_split(root, list_file=root / 'list'), fraction)
    wanted = hold_out(open_train_split(root, list_file=root / 'once'), fraction)
    sides = [set(part.dataset.filenames()) for part in (parts.train, parts.held)]
    assert sides == [set(part.dataset.filenames()) for part in (wanted.train, wanted.held)]
    assert len(parts.train.targets) + len(parts.held.targets) == 22  # each counts as often as it is listed
    check_apart(parts.train, parts.held)


def test_a_single_image_is_not_held_out_for_being_repeated(make_folder):
    root = make_folder({'train': {'a': 1, 'b': 1}})
    (root / 'list').write_text(
        ''.join(f'train/{n}/{next((root / "train" / n).iterdir()).name} {n}\n' * 5 for n in 'ab')
    )
    with pytest.raises(RideError, match='every class has a single one'):
        hold_out(open_train_split(root, list_file=root / 'list'), 0.5)


def test_names_that_are_no_utf8(make_folder):
    root = make_folder({'train': {'a': 6}})
    for path in list((root / 'train/a').iterdir())[:3]:
        try:
            path.rename(path.with_name(os.fsdecode(b'caf\xe9') + path.name))
        except OSError:
            pytest.skip('this file system takes no such names')
    assert len(hold_out(open_train_split(root), 0.5).digest) == 64


@pytest.mark.parametrize(
    ('fraction', 'seed', 'digest'),
    [
        (0.25, 0, '6cf03b2a18cef43b4e07aad36debe60a3d56d4607a9e917cad521f6c311e6476'),
        (0.1, 42, '9f7ca0b341df36cb9475090189d564d6da78fd80afe94a9a090332ec397fd6fb'),
    ],
)
def test_splits_of_earlier_versions_stay(make_folder, fraction, seed, digest):
    split = open_train_split(make_folder({'train': {'ant': 24, 'bee': 12, 'cat': 5}}))
    assert hold_out(split, fraction, seed).digest == digest
