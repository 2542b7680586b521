"""The C library's memory allocator, told to keep what a training step frees.

glibc gives the end of its heap back to the system as soon as 64 MB there are free, and a training step frees and asks
for more than that many times: each time the system has to find and clear the pages anew. Keeping them makes training on
the CPU faster (`python benchmarks/training.py` says how much) and takes no more memory, as the next step asks for the
same.
"""

import ctypes
import os

__all__ = ['keep_freed_memory']

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_TRIM_THRESHOLD = 2**31 - 1  # bytes free at the end of the heap that are kept: the most an int holds
_MMAP_THRESHOLD = 2**25  # bytes from which a tensor lies outside the heap: the most that glibc takes


def keep_freed_memory() -> bool:
    """Keep freed memory for this process's next allocations; settings of the user's own in the environment win.

    Source: mallopt(3); freed tensors of more than 32 MiB still go back to the system.

    Returns:
        Whether it was set: False without glibc, or if `GLIBC_TUNABLES` or `MALLOC_*_` say something of it.
    """
    if 'glibc.malloc' in os.environ.get('GLIBC_TUNABLES', '') or os.environ.keys() & {
        'MALLOC_TRIM_THRESHOLD_', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TOP_PAD_', 'MALLOC_MMAP_MAX_',
    }:  # fmt: skip
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # only glibc has it, and only there the numbers mean this
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):  # another C library; on Windows None names no library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD))
