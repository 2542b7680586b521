"""Memory that a step frees stays with the process."""

import ctypes
import os
import subprocess
import sys

import pytest

SET = """
from ride_timm.engine.allocator import keep_freed_memory
print(keep_freed_memory())
"""
COUNT = """
import resource, sys
import timm, torch
import ride_timm
from ride_timm.engine.allocator import keep_freed_memory
torch.set_num_threads(1)
print(keep_freed_memory() if sys.argv[1] == 'keep' else None)
net = timm.create_model('ride_resnet32_1e')
images = torch.ones(96, 3, 32, 32)
def step():
    net(images).sum().backward()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(sum([faults() for _ in range(13)][3:]))
"""


def run(code, *arguments, **environment):
    """The words that a process of its own prints."""
    known = {key: value for key, value in os.environ.items() if not key.startswith(('MALLOC_', 'GLIBC_'))}
    command = [sys.executable, '-c', code, *arguments]
    ended = subprocess.run(command, env=known | environment, check=True, capture_output=True, text=True)
    return ended.stdout.split()


def glibc():
    try:
        return hasattr(ctypes.CDLL(None), 'gnu_get_libc_version')
    except (OSError, TypeError):
        return False


@pytest.mark.skipif(not glibc(), reason='another C library')
def test_freed_memory_is_used_again():
    _, faults = run(COUNT, 'leave')
    told, kept = run(COUNT, 'keep')
    assert told == 'True'
    assert int(faults) > 50_000  # of 4 KiB each, in ten steps
    assert int(kept) < int(faults) / 5  # a heap in pieces may still grow a little in some steps


def test_the_users_own_settings_win():
    for environment in ({'MALLOC_TRIM_THRESHOLD_': '100000'}, {'GLIBC_TUNABLES': 'glibc.malloc.trim_threshold=100000'}):
        assert run(SET, **environment) == ['False']
