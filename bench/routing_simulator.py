"""SCHED-4: how many calls of a mixed fleet are answered in time, by the gateway's own choice and by others.

``python -m bench.routing_simulator [--workers N] [--gateways N] [--load 0.75] [--seeds 5] [--bound 0.93]
[--trace FILE.csv] [--plot FILE.svg]``.

A discrete-event simulation in virtual time on the code that routes (:mod:`sealane.rpc.loads` and `choice`): a
quarter of the workers is in the cloud (8 ms of work, 20 ms of round trip), three eighths each at the edge (16 ms, 2 ms)
and slow at the edge (40 ms, 2 ms); each does one call at a time, and is three times as slow for two seconds now and
then. Calls come through several gateways that know nothing of each other; workers say with each answer how busy they
are, and ``unreported`` stands for gateways that do not listen. Their rate goes up and down from second to
second as a first-order autoregression of its logarithm, or they come as in a trace, in its first column, stretched to
the load. Fleets of thousands want fewer `--seconds` and `--routers sealane "round robin"`: the others look at each
worker for every call.
"""

from __future__ import annotations

import abc
import argparse
import csv
import datetime
import functools
import heapq
import itertools
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sealane.rpc.choice import cheapest
from sealane.rpc.loads import Load, NodeLoads, Ticket

OBJECTIVE = 0.100
BOUND = 0.93
#: Standard deviation and memory of the logarithm of the rate of a second.
SPREAD, MEMORY = 0.12, 0.9
_CLASSES = ((1 / 4, 0.008, 0.020), (3 / 8, 0.016, 0.002), (3 / 8, 0.040, 0.002))
_SMOOTH = 0.2
_SLOW_TIMES, _SLOW_SECONDS, _SLOW_EVERY = 3.0, 2.0, 30.0


class Clock:
    """Virtual time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        """Seconds."""
        return self.seconds

    def monotonic(self) -> float:
        """Seconds."""
        return self.seconds


@dataclass(slots=True)
class Worker:
    """One worker: first come, first served.

    Args:
        node: its id.
        work: seconds of one call.
        trip: seconds of a round trip.
        slow: when it begins to be slow, ascending.
        calls: calls that are there.
        service: seconds of work of a call, as it has smoothed them.
    """

    node: str
    work: float
    trip: float
    slow: list[float]
    free: float = 0.0
    calls: int = 0
    service: float = 0.0

    def takes(self, at: float) -> float:
        """Seconds of work of a call that begins at `at`."""
        slow = any(begin <= at < begin + _SLOW_SECONDS for begin in self.slow)
        return self.work * (_SLOW_TIMES if slow else 1.0)

    def answered(self, sent: float) -> float:
        """When a call that is sent now is answered, if nothing else comes before it."""
        begin = max(self.free, sent + self.trip / 2)
        return begin + self.takes(begin) + self.trip / 2

    def done(self, worked: float, spent: float) -> Load:
        """A call that took so much work has left; what its answer says of those that stay."""
        self.calls -= 1
        self.service += _SMOOTH * (worked - self.service) if self.service else worked
        return Load(self.calls, self.calls * self.service, self.service, spent)


class Router(abc.ABC):
    """What chooses a worker for each call; told of each answer."""

    def __init__(self, workers: Sequence[Worker], rng: random.Random, clock: Clock) -> None:
        self.workers, self.rng, self.clock = workers, rng, clock

    @abc.abstractmethod
    def choose(self) -> int:
        """The place of a worker."""

    def ended(self, index: int, load: Load) -> None:  # noqa: B027  # who counts no calls has nothing to do
        """A call to it was answered, and it said so of its load."""


class RoundRobin(Router):
    """One after the other."""

    def __init__(self, workers: Sequence[Worker], rng: random.Random, clock: Clock) -> None:
        super().__init__(workers, rng, clock)
        self._next = itertools.cycle(rng.sample(range(len(workers)), len(workers)))

    def choose(self) -> int:
        """See :class:`Router`."""
        return next(self._next)


class LeastInFlight(Router):
    """The one with the fewest calls of this gateway."""

    def __init__(self, workers: Sequence[Worker], rng: random.Random, clock: Clock) -> None:
        super().__init__(workers, rng, clock)
        self._calls = [0] * len(workers)

    def choose(self) -> int:
        """See :class:`Router`."""
        least = min(self._calls)
        index = self.rng.choice([place for place, count in enumerate(self._calls) if count == least])
        self._calls[index] += 1
        return index

    def ended(self, index: int, load: Load) -> None:
        """See :class:`Router`."""
        self._calls[index] -= 1


class Gateway(Router):
    """The gateway's own code."""

    def __init__(self, workers: Sequence[Worker], rng: random.Random, clock: Clock) -> None:
        super().__init__(workers, rng, clock)
        self._loads = NodeLoads(clock)
        self._nodes = [worker.node for worker in workers]
        self._places = {node: place for place, node in enumerate(self._nodes)}
        self._begun: dict[int, list[Ticket]] = {place: [] for place in range(len(workers))}

    def choose(self) -> int:
        """See :class:`Router`."""
        node = cheapest(self._nodes, self._loads, self.rng.choice)
        place = self._places[node]
        self._begun[place].append(self._loads.begin(node))
        return place

    def ended(self, index: int, load: Load) -> None:
        """See :class:`Router`. A worker answers in the order in which it was called."""
        ticket = self._begun[index].pop(0)
        self.hear(ticket, load)
        ticket.end()

    def hear(self, ticket: Ticket, load: Load) -> None:
        """Take in what the worker says."""
        ticket.hear(load)


class Deaf(Gateway):
    """The same where workers say nothing: peak-EWMA of what this gateway has seen itself."""

    def hear(self, ticket: Ticket, load: Load) -> None:
        """Nothing."""


class Clairvoyant(Router):
    """Knows when each would answer: nothing can do better one call at a time."""

    def choose(self) -> int:
        """See :class:`Router`."""
        now = self.clock.seconds
        return min(range(len(self.workers)), key=lambda place: self.workers[place].answered(now))


ROUTERS: dict[str, Callable[[Sequence[Worker], random.Random, Clock], Router]] = {
    "round robin": RoundRobin,
    "least in flight": LeastInFlight,
    "unreported": Deaf,
    "sealane": Gateway,
    "clairvoyant": Clairvoyant,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What is simulated.

    Args:
        workers: their number.
        gateways: their number.
        load: share of what the fleet can do.
        trace: seconds at which calls come, from a file; none for the generator.
        seconds: virtual time.
    """

    workers: int = 32
    gateways: int = 4
    load: float = 0.75
    trace: list[float] = field(default_factory=list)
    seconds: float = 60.0


def fleet(setting: Setting, rng: random.Random) -> list[Worker]:
    """The workers of a seed."""
    made: list[Worker] = []
    for share, work, trip in _CLASSES:
        for _ in range(round(setting.workers * share)):
            slow, at = [], rng.expovariate(1 / _SLOW_EVERY)
            while at < setting.seconds:
                slow.append(at)
                at += _SLOW_SECONDS + rng.expovariate(1 / _SLOW_EVERY)
            made.append(Worker(f"w{len(made)}", work, trip, slow))
    return made


def arrivals(setting: Setting, rate: float, rng: random.Random) -> Iterator[float]:
    """Times of calls, at `rate` a second on average."""
    if setting.trace:
        span = setting.trace[-1] - setting.trace[0]
        copies = max(round(rate * setting.seconds / len(setting.trace)), 1)  # a thin trace is laid over itself
        offsets = [rng.uniform(0, setting.seconds) for _ in range(copies)]
        scale = setting.seconds / span
        yield from sorted(
            (offset + (at - setting.trace[0]) * scale) % setting.seconds for offset in offsets for at in setting.trace
        )
        return
    logarithm = rng.gauss(0, SPREAD)
    for second in range(math.ceil(setting.seconds)):
        factor = math.exp(logarithm - SPREAD**2 / 2)
        at = second + rng.expovariate(rate * factor)
        while at < min(second + 1, setting.seconds):
            yield at
            at += rng.expovariate(rate * factor)
        logarithm = MEMORY * logarithm + rng.gauss(0, SPREAD * (1 - MEMORY**2) ** 0.5)


class Events:
    """What happens later."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, seconds: float, happen: Callable[[], None]) -> None:
        """Have something happen at a time."""
        heapq.heappush(self._later, (seconds, next(self._numbers), happen))

    def until(self, seconds: float) -> None:
        """Let all happen that comes before a time, and be there."""
        while self._later and self._later[0][0] <= seconds:
            self.clock.seconds, _, happen = heapq.heappop(self._later)
            happen()
        self.clock.seconds = seconds


def attainment(name: str, setting: Setting, seed: int) -> float:
    """Share of calls that are answered within the objective."""
    rng, clock = random.Random(seed), Clock()
    workers = fleet(setting, rng)
    rate = setting.load * sum(1 / worker.work for worker in workers)
    times = list(arrivals(setting, rate, rng))
    routers = [ROUTERS[name](workers, random.Random(seed * 1000 + index), clock) for index in range(setting.gateways)]
    events = Events(clock)
    good = 0
    for at in times:
        events.until(at)
        gateway = rng.randrange(setting.gateways)
        place = routers[gateway].choose()
        answered = _send(workers[place], functools.partial(routers[gateway].ended, place), events)
        good += answered - at <= OBJECTIVE
    return good / len(times)


def _send(worker: Worker, ended: Callable[[Load], None], events: Events) -> float:
    """Have a call run that is sent now; returns when it is answered."""
    sent, begin = events.clock.seconds, max(worker.free, events.clock.seconds + worker.trip / 2)
    answered = worker.answered(sent)
    worker.free = answered - worker.trip / 2
    come, work = sent + worker.trip / 2, worker.free - begin

    def arrive() -> None:
        worker.calls += 1

    def leave() -> None:
        load = worker.done(work, events.clock.seconds - come)
        events.at(answered, functools.partial(ended, load))

    events.at(come, arrive)
    events.at(worker.free, leave)
    return answered


def read_trace(path: Path) -> list[float]:
    """Seconds of each line of a file of times in its first column, ascending."""
    with path.open(newline="") as file:
        rows = csv.reader(file)
        next(rows)
        return sorted(datetime.datetime.fromisoformat(row[0][:26]).timestamp() for row in rows if row)


def plot(path: Path, found: dict[str, dict[float, float]]) -> None:
    """Attainment by load, as SVG."""
    loads = sorted(next(iter(found.values())))
    width, height, left = 640, 360, 60
    colours = ("#888", "#c60", "#a3a", "#06c", "#393")
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">']

    def x(load: float) -> float:
        return left + (load - loads[0]) / (loads[-1] - loads[0]) * (width - left - 140)

    def y(share: float) -> float:
        return height - 40 - share * (height - 60)

    for share in (0.0, 0.5, 1.0):
        lines.append(f'<text x="10" y="{y(share) + 4:.0f}" font-size="12">{share:.0%}</text>')
        lines.append(f'<line x1="{left}" x2="{width - 140}" y1="{y(share):.0f}" y2="{y(share):.0f}" stroke="#ddd"/>')
    for load in loads:
        lines.append(f'<text x="{x(load) - 10:.0f}" y="{height - 20}" font-size="12">{load:.0%}</text>')
    for (name, by_load), colour in zip(found.items(), colours, strict=False):
        points = " ".join(f"{x(load):.1f},{y(by_load[load]):.1f}" for load in loads)
        lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
        last = by_load[loads[-1]]
        lines.append(f'<text x="{width - 130}" y="{y(last) + 4:.0f}" font-size="12" fill="{colour}">{name}</text>')
    path.write_text("\n".join([*lines, "</svg>"]) + "\n")


def main() -> int:
    """Command line; exits with 1 where it falls short."""
    parser = argparse.ArgumentParser(prog="python -m bench.routing_simulator", description=__doc__)
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--gateways", type=int, default=4)
    parser.add_argument("--load", type=float, default=0.75)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--bound", type=float, default=BOUND, help="share that must be answered in time")
    parser.add_argument("--routers", nargs="+", choices=list(ROUTERS), default=list(ROUTERS))
    parser.add_argument("--seconds", type=float, default=60.0, help="virtual time; shorten it for large fleets")
    parser.add_argument("--trace", type=Path, help="calls come as in this file's first column")
    parser.add_argument("--plot", type=Path, help="attainment by load, as SVG")
    wanted = parser.parse_args()
    trace = read_trace(wanted.trace) if wanted.trace else []
    setting = Setting(wanted.workers, wanted.gateways, wanted.load, trace, wanted.seconds)
    found = {}
    for name in wanted.routers:
        each = [attainment(name, setting, seed) for seed in range(wanted.seeds)]
        found[name] = statistics.mean(each)
        sys.stdout.write(f"{name:<16} {found[name]:7.2%}   " + " ".join(f"{value:.2%}" for value in each) + "\n")
        sys.stdout.flush()
    told = ", ".join(f"{name} {share:.1%}" for name, share in found.items())
    where = f"{wanted.workers} workers, {wanted.gateways} gateways at {wanted.load:.0%}, {wanted.seeds} seeds"
    sys.stdout.write(f"figure: {where}, in {OBJECTIVE * 1000:.0f} ms: {told}\n")
    if wanted.plot:
        loads = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9)
        curves = {name: {load: attainment(name, replace(setting, load=load), 0) for load in loads} for name in ROUTERS}
        plot(wanted.plot, curves)
    return 0 if found.get("sealane", 0.0) >= wanted.bound else 1


if __name__ == "__main__":
    sys.exit(main())
