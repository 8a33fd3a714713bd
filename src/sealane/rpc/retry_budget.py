"""Second tries, bounded by the calls that come: where everybody has too much to do, retries must not double it. Pure.

The form is that of gRPC's retry throttling and Finagle's budget: each call earns a part of a try, a few are there at
rest.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

#: Of the calls so many may be tried a second time, and a few beside.
RETRY_SHARE = 0.1
RETRIES_AT_REST = 10.0


@dataclass(slots=True)
class RetryBudget:
    """Tries that may still be made. May be used from any thread.

    Args:
        share: tries that a call earns.
        at_rest: most tries that are kept for later; so many are there at first.
        per_second: tries that time earns, whoever calls.
    """

    share: float = RETRY_SHARE
    at_rest: float = RETRIES_AT_REST
    per_second: float = 0.0
    tokens: float = field(init=False)
    _seen: float = field(default=0.0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        self.tokens = self.at_rest

    def earn(self) -> None:
        """A call came."""
        with self._lock:
            self.tokens = min(self.tokens + self.share, self.at_rest)

    def spend(self) -> bool:
        """Whether there may be another try."""
        with self._lock:
            if self.tokens < 1.0:
                return False
            self.tokens -= 1.0
            return True

    def reserve(self, now: float, patience: float) -> float | None:
        """Seconds after which there may be another try; None, and nothing is taken, where that is too late.

        Args:
            now: monotonic seconds.
            patience: seconds that somebody waits.
        """
        with self._lock:
            self.tokens = min(self.tokens + (now - self._seen) * self.per_second, self.at_rest)
            self._seen = now
            short = max(1.0 - self.tokens, 0.0)
            if short and short > patience * self.per_second:
                return None
            self.tokens -= 1.0
            return short / self.per_second if short else 0.0
