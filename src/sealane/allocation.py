"""Has the C library keep freed memory in the process, instead of giving it back to the kernel and asking anew.

By default glibc gives freed blocks of some 100 KB back at once, and takes them again page by page. Zeroing and mapping
a fresh megabyte for each chunk was a tenth of the processor time of an upload; at 10,000 nodes it was a third of a
decision's.
"""

from __future__ import annotations

import ctypes

#: Options of `mallopt`, by <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def keep_freed(kept: int, largest: int, arenas: int = 0) -> bool:
    """Keep freed memory; False on a system whose allocator has no such switch.

    Args:
        kept: bytes that each arena keeps at most.
        largest: blocks up to so many bytes come out of what is kept.
        arenas: most arenas, which threads share; 0 leaves that to the library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    options = {_TRIM_THRESHOLD: kept, _MMAP_THRESHOLD: largest} | ({_ARENA_MAX: arenas} if arenas else {})
    taken = [mallopt(option, value) for option, value in options.items()]  # each, whatever another one says
    return all(taken)
