"""Counts and run times of one served model, over a bounded window so that memory stays constant."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

#: Run times kept; enough for a p99 that five samples stand behind.
WINDOW = 512


@dataclass(frozen=True, slots=True)
class RunStatistics:
    """A snapshot.

    Attributes:
        succeeded: inferences that gave outputs.
        failed: inferences that ended in an error after their inputs had been accepted.
        p50_us: median run time of the last `WINDOW` successes, in microseconds; 0 before the first.
        p99_us: 99th percentile of the same.
        last_time: Unix time of the last success, 0 before the first.
    """

    succeeded: int = 0
    failed: int = 0
    p50_us: float = 0.0
    p99_us: float = 0.0
    last_time: float = 0.0

    @property
    def count(self) -> int:
        """Inferences that reached the model."""
        return self.succeeded + self.failed


class StatisticsRecorder:
    """Takes in run times from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        self._succeeded = 0
        self._failed = 0
        self._last_time = 0.0

    def succeeded(self, seconds: float, now: float) -> None:
        """One inference took `seconds` and ended at Unix time `now`."""
        with self._lock:
            self._seconds.append(seconds)
            self._succeeded += 1
            self._last_time = now

    def failed(self) -> None:
        """One inference ended in an error."""
        with self._lock:
            self._failed += 1

    def snapshot(self) -> RunStatistics:
        """What has been taken in so far."""
        with self._lock:
            ordered = sorted(self._seconds)
            counts = (self._succeeded, self._failed)
            last_time = self._last_time
        p50, p99 = percentile(ordered, 0.5) * 1e6, percentile(ordered, 0.99) * 1e6
        return RunStatistics(*counts, p50, p99, last_time)


def percentile(ordered: list[float], fraction: float) -> float:
    """Nearest-rank percentile of an ascending list; 0 for an empty one."""
    if not ordered:
        return 0.0
    return ordered[min(int(fraction * len(ordered)), len(ordered) - 1)]
