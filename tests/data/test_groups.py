import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ride_timm.data import GROUP_NAMES, choose_groups, frequency_groups, long_tail_counts, quantile_groups

COUNTS = st.lists(st.integers(0, 300), min_size=1, max_size=40)


def as_lists(groups):
    return {name: index.tolist() for name, index in groups.items()}


def test_limits_belong_to_medium():
    assert as_lists(frequency_groups([101, 100, 20, 19, 0])) == {'many': [0], 'medium': [1, 2], 'few': [3, 4]}


def test_empty_group_is_absent():
    assert as_lists(frequency_groups([500, 300])) == {'many': [0, 1]}
    assert as_lists(frequency_groups([1, 30])) == {'medium': [1], 'few': [0]}


def test_groups_of_cifar100_lt():
    groups = frequency_groups(long_tail_counts(100, 500, 100))
    assert {name: len(index) for name, index in groups.items()} == {'many': 35, 'medium': 35, 'few': 30}


@given(COUNTS)
def test_threshold_groups_partition_the_classes(counts):
    groups = frequency_groups(counts)
    assert sorted(np.concatenate(list(groups.values()))) == list(range(len(counts)))
    assert all(len(index) for index in groups.values())


def test_thirds_by_rank():
    assert as_lists(quantile_groups([9, 1, 8, 2, 7, 3])) == {'many': [0, 2], 'medium': [4, 5], 'few': [1, 3]}
    assert as_lists(quantile_groups([60, 50, 40, 30, 20, 10])) == {'many': [0, 1], 'medium': [2, 3], 'few': [4, 5]}


def test_ties_stay_together():
    assert as_lists(quantile_groups([5, 5, 5, 5])) == {'medium': [0, 1, 2, 3]}
    assert as_lists(quantile_groups([9, 3, 3, 3, 3, 1])) == {'many': [0], 'medium': [1, 2, 3, 4], 'few': [5]}


@given(COUNTS)
def test_thirds_never_split_ties_and_never_invert_the_order(counts):
    groups = quantile_groups(counts)
    place = {int(index): GROUP_NAMES.index(name) for name, members in groups.items() for index in members}
    assert sorted(place) == list(range(len(counts)))
    for i, n in enumerate(counts):
        for j, m in enumerate(counts):
            assert n != m or place[i] == place[j]
            assert n <= m or place[i] <= place[j]


def test_choice_keeps_the_limits_when_all_groups_have_classes():
    choice = choose_groups([200, 50, 5])
    assert (choice.rule, choice.text) == ('threshold', 'many > 100, medium 20..100, few < 20')
    assert as_lists(choice.groups) == as_lists(frequency_groups([200, 50, 5]))


def test_choice_takes_thirds_for_small_data():
    choice = choose_groups([18, 15, 9, 8, 3, 2])
    assert (choice.rule, choice.text) == ('quantile', 'many 15..18, medium 8..9, few 2..3')
    assert choose_groups([9, 5, 5, 2]).text == 'many 9, medium 5, few 2'
    assert as_lists(choice.groups) == {'many': [0, 1], 'medium': [2, 3], 'few': [4, 5]}


def test_choice_keeps_the_limits_when_thirds_do_not_help():
    assert choose_groups([500, 500, 500]).rule == 'threshold'
