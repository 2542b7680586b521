"""One thread a process: the sums of two threads differ in the last bit, and two test processes share two cores.

No test asks the Hub: one that is to answer is a fake on this machine.

Its place makes `tests` importable from: `from reference import ride_loss`; `pythonpath` does it for `tests/helpers`.
"""

import logging
import os
from collections.abc import Iterator

import pytest

os.environ['OMP_NUM_THREADS'] = '1'  # also for the processes that tests start
os.environ['HF_HUB_OFFLINE'] = '1'

import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def levels_of_loggers() -> Iterator[None]:
    """Undo what a command set: one that shows warnings only must not silence the log lines that a later test reads."""
    loggers = [logging.getLogger(name) for name in ('ride_timm', 'timm', '__main__', 'timm.utils.checkpoint_saver')]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)
