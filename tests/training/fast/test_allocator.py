"""Memory that a step frees stays with the process; `benchmarks/training.py` measures what that is worth."""

import ctypes
import platform

import pytest

from ride_timm.training.fast.allocator import keep_freed_memory


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in ('GLIBC_TUNABLES', 'MALLOC_TRIM_THRESHOLD_', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TOP_PAD_'):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another C library')
def test_glibc_takes_it():
    assert keep_freed_memory()


def test_another_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, 'CDLL', lambda name: object())
    assert not keep_freed_memory()


@pytest.mark.parametrize(
    ('name', 'value'),
    [('MALLOC_TRIM_THRESHOLD_', '100000'), ('GLIBC_TUNABLES', 'glibc.malloc.trim_threshold=100000')],
)
def test_the_users_own_settings_win(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory()
