"""Looks for bytes in the memory of a running process (Linux, a child of this one)."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

_SLICE_BYTES = 24
#: Fewer different bytes in a slice stand in many a memory by chance: one number among zeros does.
_TELLING_BYTES = 7


def find_in_memory(pid: int, needles: Sequence[bytes]) -> int:
    """How many of `needles` stand somewhere in the writable memory of process `pid`.

    Each needle is looked for by its most telling 24 bytes: runs of zeros are everywhere.

    Raises:
        PermissionError: the process is not ours to look at.
    """
    missing = {telling(needle) for needle in needles}
    wanted = len(missing)
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for start, end in _resident(pid):
            with contextlib.suppress(OSError):
                memory.seek(start)
                block = memory.read(end - start)
                missing = {needle for needle in missing if needle not in block}
    return wanted - len(missing)


def _resident(pid: int) -> Iterator[tuple[int, int]]:
    """Runs of pages of writable mappings that are in memory (Linux, pagemap bit 63)."""
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, permissions, *_ = line.split()
            if not permissions.startswith("rw"):
                continue
            first, last = (int(part, 16) // mmap.PAGESIZE for part in span.split("-"))
            pagemap.seek(first * 8)
            entries = np.frombuffer(pagemap.read((last - first) * 8), np.uint64) >> np.uint64(63)
            edges = np.flatnonzero(np.diff(entries.astype(np.int8), prepend=0, append=0))
            for begin, stop in zip(edges[::2], edges[1::2], strict=True):
                yield (first + int(begin)) * mmap.PAGESIZE, (first + int(stop)) * mmap.PAGESIZE


def telling(needle: bytes) -> bytes:
    """The 24 bytes of `needle` that are most different from each other."""
    starts = range(0, max(1, len(needle) - _SLICE_BYTES + 1), 4)
    return max((needle[start : start + _SLICE_BYTES] for start in starts), key=lambda part: len(set(part)))


def tells(needle: bytes) -> bool:
    """Whether finding `needle` means anything, rather than that its few different bytes came together by chance."""
    return len(set(telling(needle))) >= _TELLING_BYTES
