"""How busy workers are, as they say with each answer, and what the next call to each of them is expected to cost.

What a worker says counts the calls of all routers, so routers that know nothing of each other choose as if they did
(the idea of ORCA and Prequal). Where a worker says nothing, the cost is peak-EWMA (Finagle) times the calls already
there: a slow answer counts at once, a fast one only bit by bit. What was said loses its weight with time, so a worker
that looked bad is tried again.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from sealane.clock import Clock
from sealane.errors import DeadlineExceeded, Unavailable

#: Trailing metadata with which a worker that is called directly says how busy it is.
LOAD = "x-sealane-load"
#: Seconds in which the memory of a slow answer falls to a third.
DECAY_SECONDS = 10.0
#: Seconds in which what was said of other callers' calls falls to a third.
OTHERS_SECONDS = 5.0
#: Seconds in which the cost of a worker that nobody calls falls to a third.
RECOVERY_SECONDS = 30.0
#: A worker that was not there costs this much more, and less and less until the same time has passed.
ABSENT_SECONDS = 1.0
#: What a worker costs of which nothing is known: little, so that it is tried.
UNKNOWN_SECONDS = 0.001
#: An estimate that calls are refused by rests on so many answers, of which the last is not older than this.
TRUSTED_ANSWERS, FRESH_SECONDS = 8, 1.0
_TRIP_WEIGHT = 0.2


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a worker is with one deployment, as its answer leaves.

    Args:
        calls: calls that run or wait, of all callers, without the one that is answered.
        queue: seconds that a call which came now would wait.
        service: seconds that the model takes for a call.
        spent: seconds from the arrival of the answered call to its answer.
    """

    calls: int
    queue: float
    service: float
    spent: float = 0.0

    @property
    def each(self) -> float:
        """Seconds by which each call that is there holds up those behind it."""
        return self.queue / self.calls if self.calls else self.service

    def encode(self, spent: float) -> str:
        """The value of :data:`LOAD`: the four numbers, times in microseconds, of a call that took `spent` seconds."""
        return f"{self.calls},{int(self.queue * 1e6)},{int(self.service * 1e6)},{int(spent * 1e6)}"

    @classmethod
    def parse(cls, value: str) -> Load | None:
        """What :meth:`encode` wrote; None where it is something else."""
        parts = value.split(",")
        if len(parts) != 4 or not all(part.isascii() and part.isdigit() and len(part) < 16 for part in parts):
            return None
        calls, queue, service, spent = map(int, parts)
        return cls(calls, queue / 1e6, service / 1e6, spent / 1e6)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a call that is sent now is expected to take.

    Args:
        idle: seconds of the way there and back and of the model, if nothing else were there.
        wait: seconds that it waits for others.
    """

    idle: float
    wait: float


@dataclass(slots=True)
class _Node:
    """What is known of one worker; a load of `None` is that it said nothing since it last failed to answer."""

    seconds: float = UNKNOWN_SECONDS
    measured: float = 0.0
    in_flight: int = 0
    load: Load | None = None
    others: int = 0
    each: float = 0.0
    trip: float = 0.0
    answers: int = 0
    absent: float = -math.inf

    def calls(self, now: float) -> float:
        """Calls there, its other callers' among them."""
        if not self.others:
            return self.in_flight
        return self.in_flight + self.others * math.exp((self.measured - now) / OTHERS_SECONDS)

    def wait(self, now: float) -> float:
        """Seconds behind the calls that are there, by what each of them is said to cost those behind it."""
        return self.seconds * self.in_flight if self.load is None else self.each * self.calls(now)

    def idle(self) -> float:
        """Seconds of a call that waits for no other."""
        return self.seconds if self.load is None else self.trip + self.load.service

    def cost(self, now: float) -> float:
        """Seconds that a call is taken to cost."""
        load, age = self.load, now - self.measured
        if load is None:
            cost = self.seconds * (self.in_flight + 1)
        else:
            others = self.others * math.exp(-age / OTHERS_SECONDS) if self.others else 0.0
            cost = self.trip + load.service + self.each * (self.in_flight + others)
        if self.measured:
            cost *= math.exp(-age / RECOVERY_SECONDS)
        return cost if self.absent <= now - ABSENT_SECONDS else cost + self.absent + ABSENT_SECONDS - now

    def told(self, load: Load, took: float) -> None:
        """The worker said so with an answer; the call is not counted out yet."""
        trip = max(took - load.spent, 0.0)
        self.trip = trip if self.load is None else self.trip + _TRIP_WEIGHT * (trip - self.trip)
        self.load, self.each, self.others = load, load.each, max(load.calls - (self.in_flight - 1), 0)
        self.answers += 1

    def took(self, seconds: float, now: float) -> None:
        """An answer came."""
        if seconds >= self.seconds:
            self.seconds = seconds
        else:
            weight = math.exp((self.measured - now) / DECAY_SECONDS)
            self.seconds = self.seconds * weight + seconds * (1 - weight)
        self.measured = now


class Ticket:
    """A call under way; as a context manager it counts the call out by what it ends in."""

    __slots__ = ("_begun", "_load", "_node", "_nodes")

    def __init__(self, nodes: NodeLoads, node: _Node, begun: float) -> None:
        self._nodes = nodes
        self._node = node
        self._begun = begun
        self._load: Load | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.end(error)

    def hear(self, load: Load | None) -> None:
        """What the worker says of itself with its answer, good or bad."""
        self._load = load

    def end(self, error: BaseException | None = None) -> None:
        """Count the call out, once; `error` is what it ended in, none where there is a good answer.

        Where nobody was there, or answered in time, what was said before does not hold any more. Of a worker that
        refused, and of a caller that left, the time says nothing, unless the worker said something.
        """
        late = isinstance(error, DeadlineExceeded) and self._load is None
        if late or isinstance(error, Unavailable):
            self._nodes.close(self._node, self._begun, None, absent=True)
        else:
            self._nodes.close(self._node, self._begun, self._load, answered=error is None)


class NodeLoads:
    """What is known of the workers of one deployment. May be used from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._nodes: dict[str, _Node] = {}
        self._lock = threading.Lock()

    def of(self, node: str) -> float:
        """Expected seconds of a call to `node`, less where nobody has called it for long; compares workers."""
        known = self._nodes.get(node)
        return UNKNOWN_SECONDS if known is None else known.cost(self._clock.monotonic())

    def costs(self, nodes: Iterable[str]) -> list[float]:
        """:meth:`of` each of some nodes, at one moment."""
        known, now = self._nodes, self._clock.monotonic()
        return [UNKNOWN_SECONDS if (node := known.get(name)) is None else node.cost(now) for name in nodes]

    def calls(self, node: str) -> float:
        """Calls that are there, as far as is known; those of others lose their weight with time."""
        known = self._nodes.get(node)
        return 0.0 if known is None else known.calls(self._clock.monotonic())

    def expected(self, node: str) -> Expected | None:
        """What a call to `node` takes, for who would refuse it; None where it is better to try.

        It is to be tried where too little is known, or nothing new and no call is on its way to find out.
        """
        known, now = self._nodes.get(node), self._clock.monotonic()
        if known is None or known.load is None or known.answers < TRUSTED_ANSWERS:
            return None
        old = now - known.measured > FRESH_SECONDS
        return None if old and not known.in_flight else Expected(known.idle(), known.wait(now))

    def begin(self, node: str) -> Ticket:
        """Count a call in."""
        with self._lock:
            known = self._nodes.get(node)
            if known is None:
                known = self._nodes[node] = _Node()
            known.in_flight += 1
        return Ticket(self, known, self._clock.monotonic())

    def close(
        self, node: _Node, begun: float, load: Load | None, *, answered: bool = False, absent: bool = False
    ) -> None:
        """Count a call out; see :class:`Ticket`."""
        now = self._clock.monotonic()
        with self._lock:
            if load is not None:
                node.told(load, now - begun)
            if load is not None or (answered and node.load is None):
                node.took(now - begun, now)
            if absent:
                node.load, node.others, node.answers, node.absent = None, 0, 0, now
                node.seconds = max(node.seconds, now - begun)
            node.in_flight -= 1

    def forget(self, node: str) -> None:
        """Drop what is known of a node that is gone, unless calls are still out."""
        with self._lock:
            known = self._nodes.get(node)
            if known is not None and known.in_flight == 0:
                del self._nodes[node]

    @property
    def empty(self) -> bool:
        """Whether nothing is known."""
        return not self._nodes
