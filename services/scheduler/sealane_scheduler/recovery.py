"""When what was on lost workers is placed anew: not while they may come back, and not all at once.

What a new deployment or an operator asks for is never held up here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from sealane.clock import Clock
from sealane_scheduler.cluster import Deployed
from sealane_scheduler.fleet import READY, Fleet
from sealane_scheduler.storms import Storms

log = logging.getLogger("sealane.recovery")

#: A stream that broke and did not come back within this time gets its work substituted.
SUBSTITUTE_SECONDS = 0.5
#: After a restart of the scheduler nodes get this long to come back before they count as lost.
RECONNECT_SECONDS = 5.0
#: The same where another scheduler takes over: a node may hold a stream to one that was stopped, which ends no stream.
TAKEOVER_SECONDS = 12.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast lost copies are placed anew.

    One worker's copies go at once: it rarely has more than a hundred, and callers wait. What is beyond that comes with
    a load on the registry and on those that are left, which have to fetch and load every model.

    Args:
        rate: copies a second in the long run.
        burst: copies at once.
    """

    rate: float = 20.0
    burst: int = 100


class Bucket:
    """Lets so many through. It is filled once a round, so that who is asked first in a round goes first."""

    def __init__(self, pace: Pace, now: float) -> None:
        self.pace = pace
        self._level, self._filled = float(pace.burst), now

    def fill(self, now: float) -> None:
        """Time has passed; `now` in monotonic seconds."""
        self._level = min(self._level + (now - self._filled) * self.pace.rate, self.pace.burst)
        self._filled = now

    @property
    def is_open(self) -> bool:
        """Whether one may go now."""
        return self._level >= 1.0

    def take(self, count: int = 1) -> None:
        """So many went; fewer than none came back."""
        self._level -= count


class Recovery:
    """Says of each deployment whether it may be placed now. Lives on the event loop, beside the controller."""

    def __init__(self, fleet: Fleet, clock: Clock, pace: Pace) -> None:
        self.storms = Storms()
        self._fleet = fleet
        self._clock = clock
        self._bucket = Bucket(pace, clock.monotonic())
        self._waiting: set[str] = set()
        """Deployments that wait for the pace alone."""
        self._waited = False

    def begin_round(self) -> None:
        """All deployments are looked at now, the most urgent first."""
        now = self._clock.monotonic()
        self.storms.look(self._fleet, now)
        self._bucket.fill(now)
        if bool(self._waiting) != self._waited:
            self._waited = not self._waited
            told = "lost copies wait: too many at once" if self._waited else "no lost copy waits any more"
            log.warning(told, extra={"deployments": len(self._waiting), "a_second": self._bucket.pace.rate})
        self._waiting.clear()

    def may_place(self, item: Deployed) -> bool:
        """Whether a deployment that has fewer copies than it wants gets another one now; see :meth:`placed`."""
        absent = [copy.row.node for copy in item.copies if not self._is_ready(copy.row.node)]
        item.bereft = item.bereft or bool(absent)
        if any(self._may_come_back(node) for node in absent):
            return False
        if item.bereft and not self._bucket.is_open:
            self._waiting.add(item.row.name)
            return False
        if item.bereft:
            self._bucket.take()
        return True

    def placed(self, item: Deployed, copies: int) -> None:
        """It got so many copies, where one was reckoned with."""
        if item.bereft:
            self._bucket.take(copies - 1)

    def is_held(self, node: str) -> bool:
        """Whether a worker is away together with much of its zone, and what it has stays its own."""
        return self.storms.held(node) is not None

    def is_gone(self, node: str) -> bool:
        """Whether what a dead worker has is released: until it may be placed anew, the worker may come back to it."""
        state = self._fleet.get(node)
        return state is None or state.evicted or (self._bucket.is_open and not self.is_held(node))

    def why(self, node: str, items: Iterable[Deployed]) -> str:
        """Why what a lost worker has is not placed elsewhere yet; empty where nothing waits.

        Args:
            node: its id.
            items: deployments that have a copy there.
        """
        held = self.storms.held(node)
        if held is not None:
            return held.words(self._clock.monotonic())
        waiting = sum(item.row.name in self._waiting for item in items)
        if not waiting or self._is_ready(node):
            return ""
        return f"{waiting} copies wait to be placed elsewhere: at most {self._bucket.pace.rate:g} a second are"

    def _may_come_back(self, node: str) -> bool:
        return self.is_held(node) or self._fleet.absent_for(node) < SUBSTITUTE_SECONDS

    def _is_ready(self, node: str) -> bool:
        state = self._fleet.get(node)
        return state is not None and state.state == READY
