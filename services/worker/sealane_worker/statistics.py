"""Counts and run times of one served model, over a bounded window so that memory stays constant."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from sealane.rpc.call_metrics import BOUNDS, Series
from sealane.rpc.loads import Load
from sealane_worker.spec import Ran

#: Run times kept; enough for a p99 that five samples stand behind.
WINDOW = 512
#: Sizes of runs that are told apart.
MAX_BATCHES = 64
#: Of what callers are told of the load, so much is the last answer's.
_WEIGHT = 0.2


@dataclass(frozen=True, slots=True)
class RunStatistics:
    """A snapshot.

    Attributes:
        succeeded: inferences that gave outputs.
        failed: inferences that ended in an error after their inputs had been accepted.
        p50_us: median run time of the last `WINDOW` successes, in microseconds; 0 before the first.
        p99_us: 99th percentile of the same.
        last_time: Unix time of the last success, 0 before the first.
        failed_seconds: time until the failures, together.
        queue_seconds: time in the model's queue, of all successes.
        run_seconds: time that the model took, of all successes.
        rows: rows of all successes.
        shared: answers that were another caller's too.
        batches: rows of a run -> share of the runs of that size that these requests were, and their seconds.
        series: times that the model took, in buckets.
    """

    succeeded: int = 0
    failed: int = 0
    p50_us: float = 0.0
    p99_us: float = 0.0
    last_time: float = 0.0
    failed_seconds: float = 0.0
    queue_seconds: float = 0.0
    run_seconds: float = 0.0
    rows: int = 0
    shared: int = 0
    batches: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    series: Series = field(default_factory=Series)

    @property
    def count(self) -> int:
        """Inferences that reached the model."""
        return self.succeeded + self.failed


class Begun(NamedTuple):
    """An inference under way: when it came, on the monotonic clock, and how many were before it."""

    at: float
    before: int


@dataclass(slots=True)
class _Busy:
    """What the answers of a model say of the load that it has.

    Attributes:
        calls: calls that run or wait.
        service: seconds of the model for a call, smoothed.
        each: seconds that a call waited for each one before it, smoothed. Models that run several calls at a time, or
            many as one batch, show here what that is worth.
        known: whether a call has waited for another one yet.
    """

    calls: int = 0
    service: float = 0.0
    each: float = 0.0
    known: bool = False

    def took(self, ran: Ran, waited: float, before: int) -> None:
        """A call was answered that found so many before it, and waited."""
        self.service = ran.seconds if not self.service else self.service + _WEIGHT * (ran.seconds - self.service)
        if before:
            each = waited / before
            self.each = self.each + _WEIGHT * (each - self.each) if self.known else each
            self.known = True

    def load(self) -> Load:
        """The load now."""
        return Load(self.calls, self.calls * (self.each if self.known else self.service), self.service)


class StatisticsRecorder:
    """Takes in run times from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        self._succeeded = 0
        self._failed = 0
        self._shared = self._rows = 0
        self._last_time = self._failed_seconds = self._queue_seconds = self._run_seconds = 0.0
        self._batches: dict[int, list[float]] = {}
        self._buckets = [0] * (len(BOUNDS) + 1)
        self._busy = _Busy()

    def begun(self) -> Begun:
        """One inference came; it ends in one of the three below."""
        with self._lock:
            before, self._busy.calls = self._busy.calls, self._busy.calls + 1
        return Begun(time.monotonic(), before)

    def load(self) -> Load:
        """How busy the model is now."""
        return self._busy.load()

    def succeeded(self, begun: Begun, ran: Ran, rows: int) -> None:
        """One inference of so many rows ran and ended now."""
        now, waited = time.time(), max(time.monotonic() - begun.at - ran.seconds, 0.0)
        with self._lock:
            self._busy.calls -= 1
            self._busy.took(ran, waited, begun.before)
            self._seconds.append(ran.seconds)
            self._succeeded += 1
            self._last_time = now
            self._queue_seconds += ran.queue_seconds
            self._run_seconds += ran.seconds
            self._rows += rows
            self._buckets[bisect_left(BOUNDS, ran.seconds)] += 1
            if ran.batch_rows in self._batches or len(self._batches) < MAX_BATCHES:
                # A run that several requests share is counted by each of them for its part.
                part = rows / ran.batch_rows if ran.batch_rows > rows else 1.0
                batch = self._batches.setdefault(ran.batch_rows, [0.0, 0.0])
                batch[0] += part
                batch[1] += ran.seconds * part

    def failed(self, begun: Begun) -> None:
        """One inference ended in an error now."""
        with self._lock:
            self._busy.calls -= 1
            self._failed += 1
            self._failed_seconds += time.monotonic() - begun.at

    def shared(self) -> None:
        """One request got the answer of an equal one."""
        with self._lock:
            self._busy.calls -= 1
            self._shared += 1

    def snapshot(self) -> RunStatistics:
        """What has been taken in so far."""
        with self._lock:
            ordered = sorted(self._seconds)
            taken = RunStatistics(
                succeeded=self._succeeded,
                failed=self._failed,
                last_time=self._last_time,
                failed_seconds=self._failed_seconds,
                queue_seconds=self._queue_seconds,
                run_seconds=self._run_seconds,
                rows=self._rows,
                shared=self._shared,
                series=Series(self._succeeded, self._run_seconds, list(self._buckets)),
                batches={size: (count, seconds) for size, (count, seconds) in self._batches.items()},
            )
        return replace(taken, p50_us=percentile(ordered, 0.5) * 1e6, p99_us=percentile(ordered, 0.99) * 1e6)


def percentile(ordered: list[float], fraction: float) -> float:
    """Nearest-rank percentile of an ascending list; 0 for an empty one."""
    if not ordered:
        return 0.0
    return ordered[min(int(fraction * len(ordered)), len(ordered) - 1)]
