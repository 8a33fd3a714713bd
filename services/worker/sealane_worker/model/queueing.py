"""The queue of one model: who is run next, with whom, and who is refused. Pure: time comes in, decisions go out.

Priorities first, then projects in turn (the one served the fewest rows), then arrival. A request is refused when it
arrives where the queue is full or where its deadline would pass before its turn, as far as the latency model knows;
one whose time is over while it waits is never run.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from sealane_worker.model.latency import LatencyModel

DEFAULT_QUEUE_BYTES = 64 << 20
DEFAULT_MAX_BATCH = 32
#: A request is taken where it would be answered in time even if all took a tenth longer: under overload those that are
#: taken come in just before their deadline, and one that comes in just after it has cost others their turn.
CAUTION = 1.1
REJECT, DELAY = "reject", "delay"


@dataclass(frozen=True, slots=True)
class Batching:
    """How requests are put together; names as in Triton's model configuration.

    Attributes:
        max_batch_size: most rows in one run; 0 is :data:`DEFAULT_MAX_BATCH`, 1 never puts requests together.
        preferred_batch_size: sizes to run without further waiting.
        max_queue_delay_microseconds: longest wait for company while the model is idle.
        priority_levels: number of levels, 1 the highest; 0 and 1 are a single one.
        default_priority_level: level of those who name none; 0 is the middle one.
        timeout_action: `reject` or `delay` for one whose time in the queue is over.
        default_timeout_microseconds: longest time in the queue; 0 is until the deadline.
        max_queue_size: most requests that wait; 0 sets no number.
        max_queue_bytes: most bytes that wait; 0 is :data:`DEFAULT_QUEUE_BYTES`.
        latency_objective_ms: p99 that a batch must not exceed; 0 sets none.
    """

    max_batch_size: int = 0
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    priority_levels: int = 0
    default_priority_level: int = 0
    timeout_action: str = REJECT
    default_timeout_microseconds: int = 0
    max_queue_size: int = 0
    max_queue_bytes: int = 0
    latency_objective_ms: float = 0.0

    @property
    def max_rows(self) -> int:
        """Most rows in one run."""
        return self.max_batch_size or DEFAULT_MAX_BATCH

    def level(self, priority: int) -> int:
        """Level of a request that asks for `priority`, 0 for none."""
        levels = max(self.priority_levels, 1)
        return min(priority or self.default_priority_level or (levels + 1) // 2, levels)


class Request(Protocol):
    """What the queue needs to know of a request."""

    @property
    def flow(self) -> int:
        """Project, as a number."""

    @property
    def priority(self) -> int:
        """Priority asked for; 0 for none."""

    @property
    def rows(self) -> int:
        """Rows of it."""

    @property
    def size(self) -> int:
        """Bytes of it."""

    @property
    def key(self) -> object:
        """Equal for requests that can be run together; None for one that runs alone."""

    @property
    def deadline(self) -> float:
        """When its caller stops waiting, on the same clock as `now`."""


R = TypeVar("R", bound=Request)


@dataclass(slots=True)
class _Waiting(Generic[R]):
    request: R
    arrived: float
    until: float


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a request is not taken: QUEUE_FULL or QUEUE_WAIT, and after how many seconds to come again."""

    reason: str
    retry_after: float


@dataclass(slots=True)
class _Level(Generic[R]):
    flows: OrderedDict[int, deque[_Waiting[R]]] = field(default_factory=OrderedDict)
    served: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Found(Generic[R]):
    waiting: _Waiting[R]
    line: deque[_Waiting[R]]
    level: _Level[R] | None = None
    flow: int = 0


class BatchQueue(Generic[R]):
    """Requests that wait for one model."""

    def __init__(self, batching: Batching, latency: LatencyModel, instances: int = 1) -> None:
        self._batching = batching
        self._latency = latency
        self._instances = instances
        self._levels: dict[int, _Level[R]] = {}
        self._late: deque[_Waiting[R]] = deque()
        self._count = self._bytes = self._rows = 0
        self._ends: dict[int, float] = {}
        self._runs = 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> int:
        """Rows that wait."""
        return self._rows

    def requests(self) -> list[R]:
        """Those that wait."""
        return [waiting.request for waiting, _ in self._lines()]

    def put(self, request: R, now: float) -> Refused | None:
        """Take a request in, or say why not."""
        batching = self._batching
        busy = self._busy(now)
        expected = busy + self.expected_wait()
        full = batching.max_queue_size and self._count >= batching.max_queue_size
        limit = batching.max_queue_bytes or DEFAULT_QUEUE_BYTES
        if full or (self._count and self._bytes + request.size > limit):
            return Refused("QUEUE_FULL", max(expected, 0.01))
        if self._latency.trusted and (self._count or busy):
            needed = (expected + self._latency.p99(request.rows)) * CAUTION
            if now + needed > request.deadline:
                return Refused("QUEUE_WAIT", max(expected, 0.01))
        timeout = batching.default_timeout_microseconds / 1e6
        until = min(request.deadline, now + timeout) if timeout else request.deadline
        level = self._levels.setdefault(batching.level(request.priority), _Level())
        level.flows.setdefault(request.flow, deque()).append(_Waiting(request, now, until))
        self._account(request, 1)
        return None

    def cancel(self, request: R) -> bool:
        """Forget a request; false where it does not wait any more."""
        for waiting, line in self._lines():
            if waiting.request is request:
                line.remove(waiting)
                self._account(request, -1)
                return True
        return False

    def expire(self, now: float) -> list[R]:
        """Take out those whose deadline has passed, and set those behind whose time in the queue is over."""
        dead: list[R] = []
        for waiting, line in list(self._lines()):
            hopeless = self._hopeless(waiting.request, now)
            if now < waiting.until and not hopeless:
                continue
            line.remove(waiting)
            if not hopeless and self._batching.timeout_action == DELAY and now < waiting.request.deadline:
                waiting.until = waiting.request.deadline
                self._late.append(waiting)
                continue
            self._account(waiting.request, -1)
            self._latency.missed()
            dead.append(waiting.request)
        return dead

    def _hopeless(self, request: R, now: float) -> bool:
        """Whether a run would only take the place of others: its answer would be too late."""
        return self._latency.trusted and self._count > 1 and now + self._latency.mean(request.rows) > request.deadline

    def begin(self, end: float) -> int:
        """A run has begun that is expected to end then; returns what :meth:`end` wants."""
        self._runs += 1
        self._ends[self._runs] = end
        return self._runs

    def end(self, run: int) -> None:
        """The run has ended. From any thread."""
        self._ends.pop(run, None)

    def _busy(self, now: float) -> float:
        """Seconds until an instance is free."""
        ends = list(self._ends.values())
        return max(min(ends) - now, 0.0) if len(ends) >= self._instances else 0.0

    def expected_wait(self) -> float:
        """Seconds until everything that waits now has been run, as far as the latency model knows."""
        if not self._count:
            return 0.0
        size = max(self._latency.best_rows(), 1)
        runs = -(-self._rows // size)
        return runs * self._latency.mean(size) / self._instances

    def take(self, now: float) -> tuple[list[R], float | None]:
        """The next batch; where it pays to wait none, and how many seconds to wait at most.

        The wait is None where nothing waits at all.
        """
        if not self._count:
            return [], None
        target = min(self._latency.best_rows(), self._batching.max_rows)
        wait = self._patience(now, target)
        if wait > 0.0:
            return [], wait
        preferred = [size for size in self._batching.preferred_batch_size if size <= self._batching.max_rows]
        rows = max([target, *(size for size in preferred if size <= self._rows)])
        return self._collect(rows), None

    def _patience(self, now: float, target: int) -> float:
        """Seconds to wait for company: until the delay is over or the oldest deadline would be at risk."""
        delay = self._batching.max_queue_delay_microseconds / 1e6
        if not delay or self._rows >= target or self._rows in self._batching.preferred_batch_size:
            return 0.0
        oldest = min(waiting.arrived for waiting, _ in self._lines())
        tightest = min(waiting.request.deadline for waiting, _ in self._lines())
        return min(oldest + delay, tightest - self._latency.p99(self._rows + 1)) - now

    def _collect(self, rows: int) -> list[R]:
        """Take requests of the same kind until `rows` are reached; one that is larger runs alone."""
        batch: list[R] = []
        taken = 0
        while self._count:
            found = self._next(batch[0].key if batch else None)
            if found is None or (batch and taken + found.waiting.request.rows > rows):
                break
            request = found.waiting.request
            found.line.remove(found.waiting)
            if found.level is not None:
                found.level.served[found.flow] += request.rows
            self._account(request, -1)
            batch.append(request)
            taken += request.rows
            if request.key is None or taken >= rows:
                break
        return batch

    def _next(self, key: object) -> _Found[R] | None:
        """Whose turn it is among those that can join `key`; for the first of a batch among all."""
        for _, level in sorted(self._levels.items()):
            flow = _turn(level, key)
            if flow is not None:
                line = level.flows[flow]
                return _Found(next(item for item in line if key is None or item.request.key == key), line, level, flow)
        first = next((item for item in self._late if key is None or item.request.key == key), None)
        return _Found(first, self._late) if first is not None else None

    def _lines(self) -> Iterator[tuple[_Waiting[R], deque[_Waiting[R]]]]:
        for level in self._levels.values():
            for line in level.flows.values():
                for waiting in list(line):
                    yield waiting, line
        for waiting in list(self._late):
            yield waiting, self._late

    def _account(self, request: R, sign: int) -> None:
        self._count += sign
        self._bytes += sign * request.size
        self._rows += sign * request.rows


def _turn(level: _Level[R], key: object) -> int | None:
    """The flow whose turn it is in a level: the one that was served the fewest rows among those that wait."""
    for flow in [flow for flow, line in level.flows.items() if not line]:
        del level.flows[flow]
        level.served.pop(flow, None)
    able = [flow for flow, line in level.flows.items() if key is None or any(i.request.key == key for i in line)]
    # A flow that comes anew starts level with the one served least, not with a debt or a gift.
    floor = min(level.served.values(), default=0)
    for flow in able:
        level.served.setdefault(flow, floor)
    return min(able, key=lambda flow: level.served[flow], default=None)
