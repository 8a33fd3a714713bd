"""Limits of this process: what is in its memory stays out of files, and it may hold many models' sockets."""

from __future__ import annotations

import ctypes
import resource

_PR_SET_DUMPABLE = 4
_MOST_DESCRIPTORS = 65_536


def protect_memory() -> None:
    """No core files, and no ptrace or ``/proc/self/mem`` for processes without privilege (SECURITY 3.4)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def raise_descriptor_limit() -> None:
    """Allow as many descriptors as the system lets this process have: every model takes about fifty."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
