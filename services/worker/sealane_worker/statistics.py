"""Counts and run times of one served model, over a bounded window so that memory stays constant."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sealane.rpc.call_metrics import BOUNDS, Series
from sealane.rpc.loads import Load
from sealane_worker.spec import Ran

if TYPE_CHECKING:
    import sealane_native

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
        native: successes that went past Python.
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
    native: int = 0
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


class Busy(Protocol):
    """How busy a model is, of all its callers. Called from any thread."""

    def begin(self) -> int:
        """A call came; how many were there before it."""
        ...

    def took(self, seconds: float, waited: float, before: int) -> None:
        """It was answered after a run of so many seconds, found so many before it, and waited."""
        ...

    def end(self) -> None:
        """It ended otherwise."""
        ...

    def load(self) -> tuple[int, float, float]:
        """Calls there, seconds that a call which came now would wait, seconds that the model takes."""
        ...


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
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> int:
        """See :meth:`Busy.begin`."""
        with self.lock:
            before, self.calls = self.calls, self.calls + 1
        return before

    def took(self, seconds: float, waited: float, before: int) -> None:
        """See :meth:`Busy.took`."""
        with self.lock:
            self.calls -= 1
            self.service = seconds if not self.service else self.service + _WEIGHT * (seconds - self.service)
            if before:
                each = waited / before
                self.each = self.each + _WEIGHT * (each - self.each) if self.known else each
                self.known = True

    def end(self) -> None:
        """See :meth:`Busy.end`."""
        with self.lock:
            self.calls -= 1

    def load(self) -> tuple[int, float, float]:
        """See :meth:`Busy.load`."""
        return self.calls, self.calls * (self.each if self.known else self.service), self.service


class StatisticsRecorder:
    """Takes in run times from any thread.

    Args:
        native: whether the native front records here too what goes past Python.
    """

    def __init__(self, *, native: bool = False) -> None:
        self.native: sealane_native.Statistics | None = _of_native() if native else None
        """The native front's part; none without it."""
        self._lock = threading.Lock()
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        self._succeeded = 0
        self._failed = 0
        self._shared = self._rows = 0
        self._last_time = self._failed_seconds = self._queue_seconds = self._run_seconds = 0.0
        self._batches: dict[int, list[float]] = {}
        self._buckets = [0] * (len(BOUNDS) + 1)
        self._busy: Busy = self.native or _Busy()

    def begun(self) -> Begun:
        """One inference came; it ends in one of the three below."""
        return Begun(time.monotonic(), self._busy.begin())

    def load(self) -> Load:
        """How busy the model is now."""
        return Load(*self._busy.load())

    def succeeded(self, begun: Begun, ran: Ran, rows: int) -> None:
        """One inference of so many rows ran and ended now."""
        now, waited = time.time(), max(time.monotonic() - begun.at - ran.seconds, 0.0)
        self._busy.took(ran.seconds, waited, begun.before)
        with self._lock:
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
        self._busy.end()
        with self._lock:
            self._failed += 1
            self._failed_seconds += time.monotonic() - begun.at

    def shared(self) -> None:
        """One request got the answer of an equal one."""
        self._busy.end()
        with self._lock:
            self._shared += 1

    def snapshot(self) -> RunStatistics:
        """What has been taken in so far."""
        with self._lock:
            seconds = list(self._seconds)
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
                batches={size: (count, spent) for size, (count, spent) in self._batches.items()},
            )
        if self.native is not None:
            told = self.native.counts()
            seconds += told["seconds"]
            taken = _together(taken, told)
        ordered = sorted(seconds)
        return replace(taken, p50_us=percentile(ordered, 0.5) * 1e6, p99_us=percentile(ordered, 0.99) * 1e6)


def _of_native() -> sealane_native.Statistics:
    import sealane_native

    return sealane_native.Statistics(BOUNDS)


def _together(taken: RunStatistics, told: sealane_native.Counts) -> RunStatistics:
    """What came through Python and what went past it."""
    batches = dict(taken.batches)
    for size, (count, seconds) in told["batches"].items():
        had = batches.get(size, (0.0, 0.0))
        batches[size] = (had[0] + count, had[1] + seconds)
    succeeded, run_seconds = taken.succeeded + told["succeeded"], taken.run_seconds + told["run_seconds"]
    buckets = [one + other for one, other in zip(taken.series.buckets, told["buckets"], strict=True)]
    return replace(
        taken,
        succeeded=succeeded,
        failed=taken.failed + told["failed"],
        rows=taken.rows + told["rows"],
        failed_seconds=taken.failed_seconds + told["failed_seconds"],
        queue_seconds=taken.queue_seconds + told["queue_seconds"],
        run_seconds=run_seconds,
        last_time=max(taken.last_time, told["last_time"]),
        native=told["succeeded"],
        batches=batches,
        series=Series(succeeded, run_seconds, buckets),
    )


def percentile(ordered: list[float], fraction: float) -> float:
    """Nearest-rank percentile of an ascending list; 0 for an empty one."""
    if not ordered:
        return 0.0
    return ordered[min(int(fraction * len(ordered)), len(ordered) - 1)]
