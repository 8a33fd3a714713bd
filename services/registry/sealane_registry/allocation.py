"""Has the allocator keep the buffers of transfers instead of giving each back to the kernel and asking anew.

Zeroing and mapping a fresh megabyte for each chunk was a tenth of the processor time of an upload.
"""

from __future__ import annotations

import ctypes

#: From malloc.h of glibc.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 8 << 20


def keep_buffers() -> None:
    """Keep up to 8 MiB in each of two arenas. Does nothing where the C library is another one."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_TRIM_THRESHOLD, _KEPT_BYTES), (_MMAP_THRESHOLD, _KEPT_BYTES), (_ARENA_MAX, 2)):
            mallopt(option, value)
