"""When a second worker may be asked because the first is slow: late enough, and seldom enough. Pure."""

from __future__ import annotations

import threading
from collections import deque

from sealane.rpc.retry_budget import RetryBudget

#: Of the calls so many may be asked of a second worker for being slow, and a few at rest.
HEDGE_SHARE, HEDGES_AT_REST = 0.02, 5.0
#: Answers that are looked at, those that have to be there first, and how often they are looked at anew.
_WINDOW, _LEAST, _EVERY = 256, 20, 16
_SHARE = 0.95


class Slowness:
    """How long answers take. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: deque[float] = deque(maxlen=_WINDOW)
        self._count = 0
        self._p95 = 0.0

    def took(self, seconds: float) -> None:
        """An answer took so long."""
        with self._lock:
            self._seconds.append(seconds)
            self._count += 1
            if (self._count >= _LEAST and self._count % _EVERY == 0) or self._count == _LEAST:
                ordered = sorted(self._seconds)
                self._p95 = ordered[min(int(_SHARE * len(ordered)), len(ordered) - 1)]

    @property
    def p95(self) -> float:
        """Seconds within which 19 of 20 answers came; 0 while there are too few."""
        return self._p95


def hedge_budget() -> RetryBudget:
    """A client's."""
    return RetryBudget(HEDGE_SHARE, HEDGES_AT_REST)
