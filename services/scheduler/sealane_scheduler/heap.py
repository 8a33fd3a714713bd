"""Keeps the memory of arrays in the process between decisions.

By default glibc gives freed blocks of some 100 KB back to the kernel at once, and takes them again page by page: at
10,000 nodes that is a third of a decision's time.
"""

from __future__ import annotations

import ctypes

#: Options of `mallopt`, by <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Bytes that are kept at most; blocks up to half of them come out of what is kept.
KEPT_BYTES = 64 << 20


def keep_freed() -> bool:
    """Keep freed memory, up to KEPT_BYTES; False on a system whose allocator has no such switch."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    kept = [mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES), mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES // 2)]
    return all(kept)
