"""The C library's heap, told to give large buffers back to the kernel as soon as they are freed."""

from __future__ import annotations

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGE_BYTES = 1 << 19


def keep_heap_small() -> None:
    """Let buffers from 512 KiB on have mappings of their own, and let all threads share one heap.

    By default glibc raises that threshold to the largest buffer that was ever freed, up to 32 MiB, and gives each
    thread a heap: what a few large buffers have used once then stays with the process. Other C libraries know neither.
    Source: mallopt(3).
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    # Below this the heap would shrink and grow with every smaller buffer.
    mallopt(_M_TRIM_THRESHOLD, 4 * _LARGE_BYTES)
    mallopt(_M_ARENA_MAX, 1)
