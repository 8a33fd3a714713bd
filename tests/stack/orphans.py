"""Which processes a test has left behind: orphans of its descendants come to this process (Linux)."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SET_CHILD_SUBREAPER = 36


@contextmanager
def none_left(seconds: float = 5.0) -> Iterator[None]:
    """Everything that is started inside, by whomever, has ended `seconds` after it."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    before = _children()
    try:
        yield
        deadline = time.monotonic() + seconds
        while left := _alive(_children() - before):
            assert time.monotonic() < deadline, f"still running: {left}"
            time.sleep(0.05)
    finally:
        libc.prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _children() -> set[int]:
    found: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        found.update(int(pid) for pid in path.read_text().split())
    return found


def _alive(pids: set[int]) -> dict[int, str]:
    """Command lines by pid; what has ended is reaped."""
    alive = {}
    for pid in pids:
        try:
            reaped, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue
        if not reaped:
            alive[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return alive


def descendants(pid: int) -> set[int]:
    """All processes below a process."""
    found: set[int] = set()
    pending = [pid]
    while pending:
        for path in Path(f"/proc/{pending.pop()}/task").glob("*/children"):
            try:
                listed = path.read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # the thread ended meanwhile; its children are listed under another one
            children = {int(child) for child in listed.split()} - found
            found |= children
            pending.extend(children)
    return found


def ended(pid: int) -> bool:
    """Whether a process is over; one that only nobody has reaped is."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
