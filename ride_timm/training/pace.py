"""How fast a training is on this machine, from a few steps before it, which leave no trace."""

import logging
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.data.loader import PrefetchLoader

from ride_timm.evaluation.memory import is_out_of_memory, out_of_memory_error
from ride_timm.training.config import ResolvedConfig
from ride_timm.training.fast.features import compute_batch
from ride_timm.training.loop import Trainer, lone_step
from ride_timm.values import CORES

__all__ = ['Pace', 'measure_paces', 'spoken']

STEPS, SECONDS = (2, 5), 0.5
"""Steps that are timed at least and at most, and the time after which it is enough."""

_UNITS = (('second', 1, 100), ('minute', 60, 100), ('hour', 3600, 48), ('day', 86400, math.inf))

_HOPELESS = 1.5  # a way that is so much slower in one step is not looked at again
_LONG = 5.0  # seconds of a step that says enough alone

Batch = tuple[torch.Tensor, torch.Tensor]


class Pace(NamedTuple):
    """Seconds of a training.

    Attributes:
        step: Of a batch, its loading included.
        steps: Batches of an epoch.
        evaluation: Of one evaluation.
        once: Of what is computed before the first epoch.
    """

    step: float
    steps: int
    evaluation: float
    once: float = 0.0

    def seconds(self, epochs: int, val_interval: int = 1) -> float:
        """Of a whole training.

        Args:
            epochs: Its epochs.
            val_interval: Epochs from one evaluation to the next; the last is evaluated in any case.
        """
        return self.once + epochs * self.steps * self.step + -(-epochs // val_interval) * self.evaluation


def measure_paces(
    config: ResolvedConfig,
    ways: Sequence[ResolvedConfig],
    loaders: tuple[PrefetchLoader, PrefetchLoader],
    create: Callable[[ResolvedConfig], Trainer],
) -> list[Pace]:
    """Time a few steps of each way to train, on the same batch.

    Args:
        config: Knows the processes and the loading.
        ways: Configurations that differ in how they compute.
        loaders: Of the training and the evaluation images, without loading processes.
        create: Makes what trains, from copies of the network.

    Returns:
        The pace of each, infinite where it does not fit into memory; the same in all processes, that of the slowest.

    Raises:
        RideError: The first way does not fit into memory.
    """
    device = torch.device(str(config.device))
    with _untouched(device):
        training, loading = _fetched(loaders[0])
        evaluating, reading = _fetched(loaders[1])
        found: list[tuple[float, float, float]] = []
        for way in ways:
            try:
                best = min((step for _, step, _ in found), default=math.inf)
                found.append(_of_way(way, create(way), training, evaluating, best))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if way is ways[0]:
                    raise out_of_memory_error(training[0]) from None
                found.append((0.0, math.inf, math.inf))
    shown = torch.tensor([(loading, reading, 0.0), *found], dtype=torch.float64, device=device)
    if config.distributed:
        torch.distributed.all_reduce(shown, op=torch.distributed.ReduceOp.MAX)
    (loading, reading, _), *rest = shown.tolist()
    batches, evaluated = (
        len(loader.dataset) / config.world_size / len(batch[0])
        for loader, batch in zip(loaders, (training, evaluating), strict=True)
    )
    return [
        Pace(
            step if frozen else _together(step, loading, config),
            len(loaders[0]),
            evaluated * _together(evaluation, reading, config),
            batches * _together(frozen, loading, config) if frozen else 0.0,
        )
        for frozen, step, evaluation in rest
    ]


def spoken(seconds: float) -> str:
    """A duration in words, such as `41 minutes`."""
    unit, size = next((unit, size) for unit, size, most in _UNITS if seconds < most * size)
    number = seconds / size
    text = f'{number:.1f}' if number < 10 and size > 60 else f'{number:.0f}'
    return f'{text} {unit}' + ('' if text == '1' else 's')


@contextmanager
def _untouched(device: torch.device) -> Iterator[None]:
    """Leave all generators of random numbers as they were, and say nothing: what there is to say comes later."""
    states, silenced = (random.getstate(), np.random.get_state()), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []):
            yield
    finally:
        logging.disable(silenced)
        random.setstate(states[0])
        np.random.set_state(states[1])


def _fetched(loader: PrefetchLoader) -> tuple[Batch, float]:
    """A batch, and the seconds that it takes to load: the second one if there are two, as the first opens files."""
    batches, took = iter(loader), 0.0
    batch: Any = None
    for _ in range(min(len(loader), 2)):
        began = time.perf_counter()
        batch = next(batches)
        took = time.perf_counter() - began
    return batch, took


def _of_way(
    way: ResolvedConfig, trainer: Trainer, training: Batch, evaluating: Batch, best: float
) -> tuple[float, float, float]:
    """Seconds of a batch: in what is computed once of every image, 0 for nothing; in a step; and to answer one."""
    compute_batch(way, trainer, *training)  # the first takes longer
    began = time.perf_counter()
    places = compute_batch(way, trainer, *training)
    frozen = 0.0 if places is None else time.perf_counter() - began
    return frozen, _of_steps(trainer, places or training, best), _of_evaluation(trainer, evaluating)


def _of_steps(trainer: Trainer, batch: Batch, best: float) -> float:
    """Median seconds of a step."""
    trainer.task.set_epoch(0)
    module: Any = trainer.task.get_trainable_module()
    module.train()
    trainer.optimizer.zero_grad()
    for _ in range(3 if trainer.device.type == 'cuda' else 1):  # libraries choose their algorithms, and allocate
        warm = _timed(trainer, lambda: lone_step(trainer, *batch))
    if warm > 2 * _HOPELESS * best:
        return warm
    times: list[float] = []
    while len(times) < STEPS[0] or (len(times) < STEPS[1] and sum(times) < SECONDS):
        times.append(_timed(trainer, lambda: lone_step(trainer, *batch)))
        if times[-1] > min(_HOPELESS * best, _LONG):
            break
    return statistics.median(times)


def _of_evaluation(trainer: Trainer, batch: Batch) -> float:
    """Seconds to answer a batch."""
    module: Any = trainer.task.get_eval_model()
    module.eval()
    images = trainer.laid_out(batch[0].to(trainer.device))
    with torch.inference_mode(), trainer.autocast():
        return min(_timed(trainer, lambda: module(images)) for _ in range(2))


def _timed(trainer: Trainer, action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    if trainer.device.type == 'cuda':
        torch.cuda.synchronize(trainer.device)
    return time.perf_counter() - began


def _together(computing: float, loading: float, config: ResolvedConfig) -> float:
    """Seconds of a batch that is loaded by processes while the one before it is computed."""
    workers = 0 if config.data_on_device else config.workers or 0
    if not workers:
        return computing + loading
    threads = 1 if str(config.device).startswith('cuda') else torch.get_num_threads()
    return max(computing, loading / workers, (computing * threads + loading) / CORES)
