"""Samplers that even out the classes: seeded by epoch, resumable, the same stream for any number of processes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from ride_timm.data.counts import IntArray, class_counts
from ride_timm.errors import RideError

__all__ = [
    'SAMPLERS',
    'ClassBalancedSampler',
    'ClassSampler',
    'ProgressiveSampler',
    'SquareRootSampler',
    'create_sampler',
]

SAMPLERS = ('instance', 'balanced', 'sqrt', 'progressive')


class ClassSampler(Sampler[int], ABC):
    """Draws a class by a distribution over classes, then the class's next image in a reshuffled cycle.

    An epoch has as many draws as there are images. Its stream depends on (seed, epoch) alone: every process generates
    all of it and takes each `world_size`-th draw, so neither the number of processes nor a restart changes it. Where
    the processes do not divide the draws, the stream's first draws fill up the last round.

    Args:
        targets: (N,) class index of each image.
        num_classes: C, the number of classes; classes without images are never drawn.
        seed: Seed, at least 0.
        rank: Number of this process.
        world_size: Number of processes.
    """

    def __init__(
        self, targets: ArrayLike, num_classes: int, *, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        labels = np.asarray(targets)
        self.counts = class_counts(labels, num_classes)
        if not labels.size:
            raise ValueError('a sampler needs at least one image')
        if not 0 <= rank < world_size:
            raise ValueError(f'rank {rank} lies outside 0..{world_size - 1}')
        self.seed, self.rank, self.world_size, self.epoch = seed, rank, world_size, 0
        by_class = np.argsort(labels, kind='stable').astype(np.int64)
        self._rows: list[IntArray] = np.split(by_class, np.cumsum(self.counts)[:-1])

    @abstractmethod
    def class_probabilities(self, epoch: int) -> NDArray[np.float64]:
        """Probability of each class.

        Args:
            epoch: Epoch index, from 0.

        Returns:
            (C,) probabilities that sum to 1.
        """

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws, as with `DistributedSampler`.

        Args:
            epoch: Epoch index, from 0.
        """
        self.epoch = epoch

    def stream(self) -> IntArray:
        """All draws of the current epoch, over all processes.

        Returns:
            (N,) image numbers.
        """
        generator = np.random.default_rng([self.seed, self.epoch])
        classes = generator.choice(len(self.counts), size=self.counts.sum(), p=self.class_probabilities(self.epoch))
        draws = np.bincount(classes, minlength=len(self.counts))
        places = np.split(np.argsort(classes, kind='stable'), np.cumsum(draws)[:-1])
        stream = np.empty(classes.size, dtype=np.int64)
        for rows, where in zip(self._rows, places, strict=True):
            if where.size:
                cycles = -(-where.size // rows.size)
                stream[where] = generator.permuted(np.tile(rows, (cycles, 1)), axis=1).ravel()[: where.size]
        return stream

    def __iter__(self) -> Iterator[int]:
        stream = self.stream()
        mine = np.arange(len(self)) * self.world_size + self.rank
        return iter(stream[mine % stream.size].tolist())

    def __len__(self) -> int:
        return int(-(-self.counts.sum() // self.world_size))


class ClassBalancedSampler(ClassSampler):
    """Every class with the same probability (arXiv:1910.09217, section 3, q = 0); the router trains on this."""

    def class_probabilities(self, epoch: int) -> NDArray[np.float64]:
        """(C,) the same probability for every class that has images, in any `epoch`."""
        return _power(self.counts, 0.0)


class SquareRootSampler(ClassSampler):
    """A class with n images with probability proportional to sqrt(n) (arXiv:1910.09217, section 3, q = 1/2)."""

    def class_probabilities(self, epoch: int) -> NDArray[np.float64]:
        """(C,) probabilities proportional to the square root of the class sizes, in any `epoch`."""
        return _power(self.counts, 0.5)


class ProgressiveSampler(ClassSampler):
    """From instance-balanced in the first epoch to class-balanced in the last, linearly (arXiv:1910.09217, eq. 3).

    Args:
        targets: (N,) class index of each image.
        num_classes: C, the number of classes.
        epochs: Number of epochs over which the distribution moves; later ones stay class-balanced.
        seed: As in `ClassSampler`.
        rank: As in `ClassSampler`.
        world_size: As in `ClassSampler`.
    """

    def __init__(
        self,
        targets: ArrayLike,
        num_classes: int,
        *,
        epochs: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(targets, num_classes, seed=seed, rank=rank, world_size=world_size)
        if epochs < 1:
            raise ValueError(f'epochs must be at least 1, not {epochs}')
        self.epochs = epochs

    def class_probabilities(self, epoch: int) -> NDArray[np.float64]:
        """(C,) probabilities of `epoch`: (1 - t) n_c / n + t / C with t = epoch / (epochs - 1), at most 1."""
        t = min(epoch / max(self.epochs - 1, 1), 1.0)
        return (1 - t) * _power(self.counts, 1.0) + t * _power(self.counts, 0.0)


def create_sampler(
    name: str,
    targets: ArrayLike,
    num_classes: int,
    *,
    epochs: int = 1,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> ClassSampler | None:
    """Make a sampler by name.

    Args:
        name: `instance` (every image once an epoch), `balanced`, `sqrt` or `progressive`.
        targets: (N,) class index of each image.
        num_classes: C, the number of classes.
        epochs: Number of epochs, for `progressive`.
        seed: Seed, at least 0.
        rank: Number of this process.
        world_size: Number of processes.

    Returns:
        The sampler, or None for `instance`, which the loader's own shuffling does.

    Raises:
        RideError: If the name is unknown.
    """
    if name == 'instance':
        return None
    if name == 'balanced':
        return ClassBalancedSampler(targets, num_classes, seed=seed, rank=rank, world_size=world_size)
    if name == 'sqrt':
        return SquareRootSampler(targets, num_classes, seed=seed, rank=rank, world_size=world_size)
    if name == 'progressive':
        return ProgressiveSampler(targets, num_classes, epochs=epochs, seed=seed, rank=rank, world_size=world_size)
    raise RideError(f'The sampler "{name}" is unknown; use one of {", ".join(SAMPLERS)}.')


def _power(counts: IntArray, q: float) -> NDArray[np.float64]:
    """Class probabilities proportional to n_c^q over the classes that have images (arXiv:1910.09217, eq. 1)."""
    weight = np.where(counts > 0, counts.astype(np.float64) ** q, 0.0)
    normalised: NDArray[np.float64] = weight / weight.sum()
    return normalised
