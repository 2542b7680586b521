"""Groups of images, and splits that do not divide them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ride_timm.data import hold_out
from ride_timm.data.form import open_eval, open_train
from ride_timm.data.grouped_rows import grouped_rows
from ride_timm.data.image_groups import classes_of_one_group, match_groups, shared_groups
from ride_timm.errors import RideError
from ride_timm.options import DataForm, filled


def form_of(root, **options):
    return filled(DataForm(data_dir=str(root), **options))


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=120),
    fraction=st.floats(0.05, 0.6),
    seed=st.integers(0, 3),
)
def test_no_group_is_divided_and_each_class_keeps_images(rows, fraction, seed):
    labels, groups = np.array([row[0] for row in rows]), [f'g{row[1]}' for row in rows]
    train, held = grouped_rows(labels, groups, fraction, 5, seed)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(len(rows)))
    assert not {groups[i] for i in train} & {groups[i] for i in held}
    assert set(labels[train]) == set(labels)
    assert np.array_equal(grouped_rows(labels, groups, fraction, 5, seed)[1], held)


def test_shares_come_close():
    """Tracks of 5 to 40 images of long-tailed classes, as of traffic signs: each share within a track of the wish."""
    rng = np.random.default_rng(0)
    labels, groups = [], []
    for label, tracks in enumerate((75, 40, 20, 10, 7)):
        for track in range(tracks):
            size = int(rng.integers(5, 41))
            labels += [label] * size
            groups += [f'{label}/{track}'] * size
    total = np.bincount(labels)
    held = grouped_rows(labels, groups, 0.2, 5)[1]
    share = np.bincount(np.array(labels)[held], minlength=5) / total
    assert np.abs(share - 0.2).max() < 0.08
    assert np.abs(share[:3] - 0.2).max() < 0.02
    assert not np.array_equal(held, grouped_rows(labels, groups, 0.2, 5, seed=1)[1])


def test_places_that_hold_many_classes():
    """Cameras that each see most of 30 long-tailed classes: every class that more than one sees is measured."""
    rng = np.random.default_rng(1)
    counts = np.maximum(1000 * 0.8 ** np.arange(30), 8).astype(int)
    labels = np.repeat(np.arange(30), counts)
    places = rng.integers(0, 25, labels.size).astype(str)
    _train, held = grouped_rows(labels, places, 0.2, 30)
    share = np.bincount(labels[held], minlength=30) / counts
    assert share.min() > 0
    assert abs(share.mean() - 0.2) < 0.06


def test_a_single_class_of_one_group_is_trained_on_and_named(make_folder):
    root = make_folder({'train': {'a': 40, 'b': 6, 'c': 1}})
    for path in sorted((root / 'train/b').iterdir()):
        path.rename(path.with_name(f'7_{path.name}'))
    for index, path in enumerate(sorted((root / 'train/a').iterdir())):
        path.rename(path.with_name(f'{index // 4}_{path.name}'))
    split = open_train(form_of(root, group_pattern=r'(.+)_\d+'), 3)
    assert classes_of_one_group(split.image_groups, split.targets, split.class_names) == ('b',)
    parts = hold_out(split, 0.2)
    assert parts.undivided == ('b',)
    assert parts.held.class_counts.tolist() == [8, 0, 0]
    assert not shared_groups(parts.train, parts.held)
    loose = hold_out(split, 0.2, grouped=False)
    assert loose.held.class_counts.tolist() == [8, 1, 0]
    assert loose.digest == hold_out(open_train(form_of(root), 3), 0.2).digest
    assert shared_groups(loose.train, loose.held)


def test_nothing_to_hold_out_of_one_group(make_folder):
    root = make_folder({'train': {'a': 4, 'b': 4}})
    with pytest.raises(RideError, match='of 2 groups and each class keeps'):
        hold_out(open_train(form_of(root, group_pattern='^.'), 3), 0.5)


def test_an_image_in_two_groups_is_refused(make_folder):
    root = make_folder({'train': {'a': 3, 'b': 3}})
    lines = [f'train/{name}/{index}.png {name}' for name in 'ab' for index in range(3)]
    (root / 'list').write_text('\n'.join([*lines, 'train/../train/a/0.png a']))
    split = open_train(form_of(root, train_list=str(root / 'list'), group_pattern='^.{7}'), 3)
    with pytest.raises(RideError, match='is in the groups'):
        hold_out(split, 0.5)


def test_what_a_pattern_finds():
    names = ['a/00012_00001.png', 'a/00012_00002.png', 'b/00012_00001.png', 'b/x.png']
    assert match_groups(names, r'(\d+)_') == ('00012', '00012', '00012', 'b/x.png')
    assert match_groups(names, r'^(.+)_\d+') == ('a/00012', 'a/00012', 'b/00012', 'b/x.png')
    assert match_groups(names, r'/\d+') == ('/00012', '/00012', '/00012', 'b/x.png')


@pytest.mark.parametrize(('pattern', 'words'), [('(', 'not a regular expression'), (r'z(\d)', 'finds no group in')])
def test_patterns_that_tell_nothing(make_folder, pattern, words):
    root = make_folder({'train': {'a': 2}})
    with pytest.raises(RideError, match=words):
        open_train(form_of(root, group_pattern=pattern), 3)


def test_groups_of_given_sides(make_folder):
    root = make_folder({'train': {'a': 4}, 'val': {'a': 2}})
    options = form_of(root, group_pattern=r'(\d)\.png')
    assert shared_groups(open_train(options, 3), open_eval(options, 3, ('a',), 'val')) == ['0', '1']
