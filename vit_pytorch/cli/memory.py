"""Memory that a training step frees is kept for the next one."""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 << 20
NEVER = 2**31 - 1
# Where these are set, somebody has decided already.
TOLD = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> None:
    """Tell glibc's allocator not to give freed memory back to the system before the process ends.

    By default it gives large blocks back at once, and every step then pays for mapping and clearing the
    same pages again: on a processor a tenth of a small model's training step. Other C libraries, and
    a process whose environment already says what malloc shall do, are left alone.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in TOLD):
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    libc.mallopt(M_TRIM_THRESHOLD, NEVER)
