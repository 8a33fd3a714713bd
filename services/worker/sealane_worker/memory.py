"""Keeps what is in this process's memory out of files: no core dump, no reading by others of the same user."""

from __future__ import annotations

import ctypes
import resource

_PR_SET_DUMPABLE = 4


def protect_memory() -> None:
    """No core files, and no ptrace or ``/proc/self/mem`` for processes without privilege (SECURITY 3.4)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
