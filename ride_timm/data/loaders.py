"""Loaders made by timm, with a settable transform, own samplers, and epochs that can be repeated exactly."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from timm.data import create_loader
from timm.data.loader import PrefetchLoader
from torch.utils.data import DataLoader, Sampler
from torch.utils.data.distributed import DistributedSampler

from ride_timm._compat import get_batches, set_batches
from ride_timm.data.datasets import DataSplit
from ride_timm.errors import RideError

__all__ = ['create_eval_loader', 'create_train_loader', 'reseed', 'start_epoch']


def create_train_loader(
    split: DataSplit,
    *,
    input_size: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int,
    workers: int = 0,
    device: torch.device | str = 'cpu',
    distributed: bool = False,
    transform: Callable[[Any], Any] | None = None,
    sampler: Sampler[int] | None = None,
    **kwargs: Any,
) -> PrefetchLoader:
    """Loader of shuffled, augmented training batches: images (B, channels, H, W) and class indices (B,) on `device`.

    Call `start_epoch` before each pass. Incomplete last batches are dropped, so that BatchNorm never sees a single
    image, unless there is less than one batch per process: then all of its images make one batch.

    Args:
        split: The training images; the loader sets the transform of its data set.
        input_size: (channels, height, width).
        mean: Normalisation mean per channel, of pixel values in 0..1.
        std: Normalisation standard deviation per channel.
        batch_size: B, images per batch and process.
        workers: Worker processes; they live for one epoch.
        device: Where the batches go.
        distributed: Share the images among the processes of the default group.
        transform: Replaces timm's training transform; from a Pillow image to a uint8 tensor.
        sampler: Draws the images instead of plain shuffling; shares among processes itself.
        **kwargs: Augmentation and other arguments of `timm.data.create_loader` (`hflip`, `color_jitter`, `re_prob`,
            `collate_fn`, `pin_memory`, ...).

    Returns:
        timm's `PrefetchLoader`, which normalises.

    Raises:
        RideError: If a process has fewer than two images.
    """
    share = len(sampler) if sampler is not None else _share(len(split.dataset), distributed)  # type: ignore[arg-type]
    loader = _create(
        split, transform, device, input_size=input_size, is_training=True, mean=mean, std=std, num_workers=workers,
        batch_size=_fitting_batch(share, batch_size, split.source, kwargs.get('collate_fn') is not None),
        distributed=distributed and sampler is None, **kwargs,
    )  # fmt: skip
    if sampler is not None:
        set_batches(loader, _with_sampler(get_batches(loader), sampler))
    return loader


def create_eval_loader(
    split: DataSplit,
    *,
    input_size: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int,
    workers: int = 0,
    device: torch.device | str = 'cpu',
    distributed: bool = False,
    transform: Callable[[Any], Any] | None = None,
    **kwargs: Any,
) -> PrefetchLoader:
    """Loader of evaluation batches in the order of the split, the last one as large as what is left.

    Args:
        split: The images; the loader sets the transform of its data set.
        input_size: (channels, height, width).
        mean: Normalisation mean per channel, of pixel values in 0..1.
        std: Normalisation standard deviation per channel.
        batch_size: B, images per batch and process.
        workers: Worker processes.
        device: Where the batches go.
        distributed: Share the images among processes; `timm.task.evaluation_sample_limit` tells the padding.
        transform: Replaces timm's evaluation transform.
        **kwargs: Arguments of `timm.data.create_loader` (`interpolation`, `crop_pct`, `crop_mode`, ...).

    Returns:
        timm's `PrefetchLoader`, which normalises.
    """
    return _create(
        split, transform, device, input_size=input_size, is_training=False, mean=mean, std=std, num_workers=workers,
        batch_size=batch_size, distributed=distributed, **kwargs,
    )  # fmt: skip


def _create(
    split: DataSplit, transform: Callable[[Any], Any] | None, device: torch.device | str, **kwargs: Any
) -> PrefetchLoader:
    dataset: Any = split.dataset  # timm's factory names its own classes, but asks no more than a settable transform
    # kept workers would carry their random state over, which a resumed run cannot
    loader: PrefetchLoader = create_loader(
        dataset, device=torch.device(device), use_prefetcher=True, persistent_workers=False, **kwargs
    )
    if transform is not None:
        dataset.transform = transform
    return loader


def reseed(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed torch, NumPy and random from (seed, epoch, rank), so that an epoch is the same however it is reached.

    Worker processes take their seeds from torch's generator, so the augmentation is covered for any number of them.

    Args:
        seed: Seed of the run, at least 0.
        epoch: Epoch index, from 0.
        rank: Number of this process.
    """
    # hashing the three together: seed + epoch + rank would repeat streams between runs, epochs and processes
    words = [int(word) for word in np.random.SeedSequence([seed, epoch, rank]).generate_state(3)]
    torch.manual_seed(words[0])
    np.random.seed(words[1])
    random.seed(words[2])


def start_epoch(loader: PrefetchLoader, *, seed: int, epoch: int, rank: int = 0) -> None:
    """Prepare a training loader for one pass: reseed, and tell the sampler its epoch.

    Args:
        loader: A loader of `create_train_loader`, or any other.
        seed: Seed of the run, at least 0.
        epoch: Epoch index, from 0.
        rank: Number of this process.
    """
    reseed(seed, epoch, rank)
    sampler = getattr(loader, 'sampler', None)
    if isinstance(sampler, DistributedSampler):
        # timm leaves this 0, and every seed of an experiment would see one order of images; it is hashed because the
        # sampler adds the epoch to it, so that seed 1 would follow seed 0 one epoch ahead
        sampler.seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    if sampler is not None and hasattr(sampler, 'set_epoch'):
        sampler.set_epoch(epoch)


def _share(size: int, distributed: bool) -> int:
    """Images per process and epoch, padding included."""
    return -(-size // dist.get_world_size()) if distributed else size


def _fitting_batch(share: int, batch_size: int, source: str, mixing: bool) -> int:
    """Batch size that leaves at least one full batch, since timm drops the others."""
    if share < 2:
        raise RideError(f'{source} has {share} images per process, and BatchNorm needs at least 2; add images.')
    if share >= batch_size:
        return batch_size
    return share - share % 2 if mixing else share  # timm's mixup collate pairs the images of a batch


def _with_sampler(loader: DataLoader[Any], sampler: Sampler[int]) -> DataLoader[Any]:
    """The same DataLoader with another sampler, which timm's factory does not take."""
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        worker_init_fn=loader.worker_init_fn,
    )
