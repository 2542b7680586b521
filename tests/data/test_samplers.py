import itertools

import numpy as np
import pytest

from ride_timm.data import (
    SAMPLERS,
    ClassBalancedSampler,
    ProgressiveSampler,
    SquareRootSampler,
    class_counts,
    create_sampler,
)
from ride_timm.errors import RideError

COUNTS = np.array([500, 120, 40, 12, 3])
TARGETS = np.random.default_rng(5).permutation(np.repeat(np.arange(5), COUNTS))
NAMES = [name for name in SAMPLERS if name != 'instance']

WANTED = {
    'balanced': np.full(5, 0.2),
    'sqrt': np.sqrt(COUNTS) / np.sqrt(COUNTS).sum(),
    'progressive': 0.5 * COUNTS / COUNTS.sum() + 0.5 * 0.2,  # in the middle epoch of five
}


def make(name, **kwargs):
    return create_sampler(name, TARGETS, 5, epochs=5, **kwargs)


def drawn(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize('name', NAMES)
def test_class_distribution(name):
    """Chi-square over 20 independent runs: 4 degrees of freedom, whose mean is 4 and 99.99 % point 23.5."""
    draws = np.zeros(5)
    for seed in range(20):
        draws += class_counts(TARGETS[drawn(make(name, seed=seed), 2)], 5)
    expected = WANTED[name] * draws.sum()
    assert ((draws - expected) ** 2 / expected).sum() < 23.5


@pytest.mark.parametrize('name', NAMES)
def test_epoch_has_as_many_draws_as_images(name):
    assert len(make(name)) == len(drawn(make(name), 0)) == COUNTS.sum()


@pytest.mark.parametrize('name', NAMES)
def test_images_of_a_class_come_in_reshuffled_cycles(name):
    stream = drawn(make(name), 3)
    for label, count in enumerate(COUNTS):
        of_class = [row for row in stream if TARGETS[row] == label]
        cycles = [of_class[i : i + count] for i in range(0, len(of_class), count)]
        assert all(len(set(cycle)) == len(cycle) for cycle in cycles)
    few = [row for row in stream if TARGETS[row] == 4]
    orders = {tuple(few[i : i + 3]) for i in range(0, len(few) // 3 * 3, 3)}
    assert len(orders) > 1  # the cycle is shuffled anew


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('world_size', [2, 3, 4, 7])
def test_the_processes_together_draw_the_stream_of_one(name, world_size):
    single = drawn(make(name, seed=1), 2)
    parts = [drawn(make(name, seed=1, rank=rank, world_size=world_size), 2) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    together = list(itertools.chain.from_iterable(zip(*parts, strict=True)))
    assert together[: len(single)] == single
    assert together[len(single) :] == single[: len(together) - len(single)]
    assert len(together) - len(single) < world_size


@pytest.mark.parametrize('name', NAMES)
def test_stream_depends_on_seed_and_epoch_alone(name):
    running = make(name, seed=4)
    history = [drawn(running, epoch) for epoch in range(4)]
    assert drawn(make(name, seed=4), 2) == history[2]  # a resumed run
    assert len({tuple(epoch) for epoch in history}) == 4
    assert drawn(make(name, seed=5), 2) != history[2]


def test_global_generator_is_left_alone():
    before = np.random.get_state()[1].copy()
    list(make('balanced'))
    assert np.array_equal(before, np.random.get_state()[1])


def test_progressive_goes_from_instances_to_classes():
    sampler = ProgressiveSampler(TARGETS, 5, epochs=5)
    assert np.allclose(sampler.class_probabilities(0), COUNTS / COUNTS.sum())
    assert np.allclose(sampler.class_probabilities(4), 0.2)
    assert np.allclose(sampler.class_probabilities(9), 0.2)
    with pytest.raises(ValueError, match='epochs'):
        ProgressiveSampler(TARGETS, 5, epochs=0)


@pytest.mark.parametrize('sampler', [ClassBalancedSampler, SquareRootSampler])
def test_classes_without_images_are_never_drawn(sampler):
    made = sampler([0, 0, 3], 5)
    assert set(made) <= {0, 1, 2}
    assert made.class_probabilities(0)[[1, 2, 4]].tolist() == [0, 0, 0]
    assert np.isclose(made.class_probabilities(0).sum(), 1)


def test_fewer_images_than_processes():
    assert [list(ClassBalancedSampler([0], 1, rank=rank, world_size=3)) for rank in range(3)] == [[0], [0], [0]]


def test_bad_arguments():
    assert create_sampler('instance', TARGETS, 5) is None
    with pytest.raises(RideError, match='use one of instance, balanced, sqrt, progressive'):
        create_sampler('random', TARGETS, 5)
    with pytest.raises(ValueError, match='rank 2'):
        ClassBalancedSampler(TARGETS, 5, rank=2, world_size=2)
    with pytest.raises(ValueError, match='at least one image'):
        ClassBalancedSampler([], 5)
