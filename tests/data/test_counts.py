import numpy as np
import pytest

from ride_timm.data import class_counts, imbalance_factor


def test_counts_include_classes_that_do_not_occur():
    counts = class_counts([2, 0, 2, 2], 5)
    assert counts.tolist() == [1, 0, 3, 0, 0]
    assert counts.dtype == np.int64


def test_counts_of_nothing():
    assert class_counts([], 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize('targets', [[0, 3], [-1, 0], [0.0, 1.0], [[0, 1]]])
def test_bad_targets_are_refused(targets):
    with pytest.raises(ValueError, match=r'class ind'):
        class_counts(targets, 3)


def test_imbalance_factor_counts_an_empty_class_as_one_image():
    assert imbalance_factor([500, 50, 5]) == 100.0
    assert imbalance_factor([7, 7]) == 1.0
    assert imbalance_factor([30, 0]) == 30.0
    with pytest.raises(ValueError, match='no classes'):
        imbalance_factor([])
