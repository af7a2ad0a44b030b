"""Freed memory stays with the process that trains, instead of going back to the system each time.

Updates of a round are as large as the model times the clients. glibc gives such blocks back as soon
as they are freed, and the system must clear every page of them anew when the next round asks: for
small steps on large layers that costs more than the arithmetic.
"""

import ctypes
import sys

_KEPT = 2**30
"""Bytes of freed memory that a process keeps at most, at the end of its heap."""

_LARGE = 32 * 2**20
"""Bytes from which a block is given back at once all the same: the most that glibc allows."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Keep what is freed from now on; return whether this C library can.

    That is a setting of the whole process, and stays.
    """
    libc = _glibc()
    return libc is not None and bool(
        libc.mallopt(_TRIM_THRESHOLD, _KEPT) and libc.mallopt(_MMAP_THRESHOLD, _LARGE)
    )


def give_back_freed_memory() -> None:
    """Give back what is kept so far; what is freed later is kept again."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
