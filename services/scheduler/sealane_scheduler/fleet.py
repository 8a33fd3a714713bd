"""Which workers there are and how they stand. In memory: a worker says all of it again when it connects.

Suspicion and death are two steps: a broken or silent stream stops new routes at once (cheap, reversible),
death after the lease moves the work (dear).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sealane.clock import Clock
from sealane_scheduler.links import Link, Rhythm

READY, SUSPECT, DEAD = "READY", "SUSPECT", "DEAD"
HEARTBEAT_SECONDS = {"cloud": 1.0, "edge": 5.0}
#: Silence after which a node is suspected; at the edge it is longer where the node's rhythm is uneven, up to the last.
_SUSPECT_SECONDS = {"cloud": 3.0, "edge": 12.0}
_MOST_SUSPECT_SECONDS = {"cloud": 3.0, "edge": 24.0}
#: Decisions are told of a round trip again once it is off by so many milliseconds and by such a share.
_RTT_MS, _RTT_SHARE = 0.5, 0.1
#: Heartbeats of all nodes together in a second: beyond, their intervals are stretched.
HEARTBEATS_PER_SECOND = 2000.0
#: An interval is told anew once it is off by so much, and is never more than halved at once: a node that does not know
#: yet is silent for twice the new one, which is less than what raises suspicion.
_OFF, _HALF = 1.25, 0.5
_SOON = 0.01


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """A runtime as a worker tells of it."""

    version: str
    formats: tuple[str, ...]
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a worker. Attributes come from auth's signed statement, the rest is measured."""

    attributes: dict[str, str]
    runtimes: dict[str, RuntimeFacts] = field(default_factory=dict)
    cpu_milli: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    device_class: str = ""
    accelerator: str = ""
    speed: float = 0.0
    suite: str = ""
    """Suite of its sealing key."""
    price_per_hour: float = 0.0
    egress_per_gib: float = 0.0
    watts: float = 0.0
    """What it draws while it works beyond what it draws idle."""
    labels: dict[str, str] = field(default_factory=dict)
    endpoint: str = ""
    tls_name: str = ""


@dataclass(slots=True)
class NodeState:
    """One worker as it stands."""

    node: str
    facts: Facts
    statement: str = ""
    session: int = 0
    """Number of the live stream; 0 while there is none."""
    seen: float = 0.0
    lost: float = 0.0
    """When the stream broke; meaningless while there is one."""
    evicted: bool = False
    """Put out for good: its work goes elsewhere at once."""
    grace: float = 0.0
    """Extra seconds before a substitute is placed, after a restart of the scheduler."""
    link: Link = field(default_factory=Link)
    rtt_seen: float = 0.0
    """Its round trip as decisions see it."""
    rhythm: Rhythm | None = None
    """Of its signs of life; none before its first stream."""
    state: str = SUSPECT
    relay: str = ""
    """The relay that carries its stream; empty where it dials itself."""
    interval: float = 0.0
    """Seconds between two heartbeats, as it was told."""
    due: float = math.inf
    """When to look at it next."""

    @property
    def stretch(self) -> float:
        """How many times its tier's interval it was told."""
        return max(1.0, self.interval / HEARTBEAT_SECONDS[self.tier])

    @property
    def tier(self) -> str:
        """``cloud`` or ``edge``."""
        return self.facts.attributes.get("tier", "edge")


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds after which a silent node is dead."""

    cloud: float = 5.0
    edge: float = 30.0

    def of(self, tier: str) -> float:
        """Seconds for a tier."""
        return self.cloud if tier == "cloud" else self.edge


class Fleet:
    """All workers. Lives on the event loop."""

    def __init__(self, clock: Clock, patience: Patience, sandbox: Mapping[str, str] | None = None) -> None:
        self.sandbox = dict(sandbox or {})
        """Tier -> sandbox level that its nodes must give."""
        self.touched: set[str] = set()
        """Nodes of which something has changed; whoever keeps a picture of them empties it."""
        self.turned: set[str] = set()
        """Nodes that came, went or are judged otherwise; the controller empties it."""
        self.losses: list[str] = []
        """Nodes that were READY and are not any more, as it is noticed; whoever acts on them empties it."""
        self.patience = patience
        self._clock = clock
        self._nodes: dict[str, NodeState] = {}
        self._sessions = self._connected = 0
        self._dates: list[tuple[float, str]] = []

    def __iter__(self) -> Iterator[NodeState]:
        return iter(sorted(self._nodes.values(), key=lambda state: state.node))

    def get(self, node: str) -> NodeState | None:
        """A worker that was ever seen."""
        return self._nodes.get(node)

    def expect(self, node: str, grace: float) -> None:
        """A worker that had placements before a restart: it gets `grace` seconds to come back."""
        now = self._clock.monotonic()
        state = self._nodes.setdefault(node, NodeState(node, Facts({}), seen=now, lost=now, grace=grace))
        self._watch(state)
        self._mark(node)

    def is_awaited(self) -> bool:
        """Whether workers that had placements before a restart may still come back."""
        now = self._clock.monotonic()
        return any(not state.session and now - state.lost < state.grace for state in self._nodes.values())

    def connect(self, node: str, facts: Facts, statement: str, relay: str = "") -> int:
        """A stream began; returns its number. An older stream of the same node is superseded."""
        self._sessions += 1
        now, before = self._clock.monotonic(), self._nodes.get(node)
        self._connected += before is None or not before.session
        made = NodeState(node, facts, statement, self._sessions, now, now, state=READY, relay=relay)
        if before is not None:
            made.link, made.rhythm = before.link, before.rhythm
        if made.rhythm is None or before is None or before.tier != made.tier:
            made.rhythm = _rhythm(made.tier)
        made.rtt_seen, made.interval = made.link.rtt_ms, self._interval(made)
        self._nodes[node] = made
        self._watch(made)
        self._mark(node)
        return self._sessions

    def interval_of(self, node: str) -> float:
        """Seconds between two heartbeats of a connected node, as it is to be told first."""
        return self._nodes[node].interval

    def new_interval(self, node: str) -> float | None:
        """Seconds between heartbeats that a node is to be told now; None where what it knows will do."""
        state = self._nodes[node]
        wanted = max(self._interval(state), state.interval * _HALF)
        if 1 / _OFF < wanted / state.interval < _OFF:
            return None
        state.interval = wanted
        self._watch(state)
        return wanted

    def holds(self, node: str, session: int) -> bool:
        """Whether a stream is still the node's: a newer one supersedes it."""
        state = self._nodes.get(node)
        return state is not None and state.session == session

    def disconnect(self, node: str, session: int, *, evicted: bool = False) -> bool:
        """A stream ended; False where a newer one has replaced it. Who was evicted is not waited for."""
        state = self._nodes.get(node)
        if state is None or state.session != session:
            return False
        self._connected -= 1
        state.session, state.lost, state.evicted = 0, self._clock.monotonic(), evicted
        self._turn(state)
        self._watch(state)
        self._mark(node)
        return True

    def heartbeat(
        self, node: str, rtt_ms: float | None, statement: str, speeds: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        """A sign of life.

        Args:
            node: whose.
            rtt_ms: the round trip that it ends, where it ends one.
            statement: the node's new sealing statement; empty where it has not changed.
            speeds: bytes a second towards the node and from it, as it measured them; 0 where it has not.
        """
        state, now = self._nodes[node], self._clock.monotonic()
        if state.rhythm is not None:
            state.rhythm.sign(now - state.seen)
        state.seen = now
        if statement:
            state.statement = statement
            self._mark(node)
        if state.state != READY:
            self._watch(state)
        if state.link.carried(*speeds):
            self.touched.add(node)
        if rtt_ms is not None:
            state.link.pinged(rtt_ms)
            if abs(state.link.rtt_ms - state.rtt_seen) > max(_RTT_MS, _RTT_SHARE * state.rtt_seen):
                state.rtt_seen = state.link.rtt_ms
                self.touched.add(node)

    def tick(self) -> bool:
        """Look at the clock; whether any node's state changed. Looks only at nodes whose time has come."""
        changed, now = False, self._clock.monotonic()
        while self._dates and self._dates[0][0] <= now:
            due, node = heapq.heappop(self._dates)
            state = self._nodes[node]
            if state.due != due:
                continue  # it has another date by now
            state.due = math.inf
            turned = self._turn(state)
            self._watch(state)
            if turned:
                self._mark(node)
                changed = True
        return changed

    def absent_for(self, node: str) -> float:
        """Seconds since the node's stream broke or fell silent, less its grace; 0 while it is READY."""
        state = self._nodes.get(node)
        if state is None or state.state == READY:
            return 0.0
        since = state.lost if not state.session else state.seen
        return self._clock.monotonic() - since - state.grace

    def _mark(self, node: str) -> None:
        self.touched.add(node)
        self.turned.add(node)

    def _turn(self, state: NodeState) -> bool:
        """Judge anew; whether it stands otherwise than before."""
        before, state.state = state.state, self._judge(state)
        if before == READY != state.state and not state.evicted:
            self.losses.append(state.node)
        return before != state.state

    def _judge(self, state: NodeState) -> str:
        if state.evicted:
            return DEAD
        silent = self._clock.monotonic() - (state.seen if state.session else state.lost)
        if state.session and silent < self._suspect_after(state):
            return READY
        return DEAD if silent - state.grace >= self._lost_after(state) else SUSPECT

    def _suspect_after(self, state: NodeState) -> float:
        """Seconds of silence after which it is suspected."""
        patience = _SUSPECT_SECONDS[state.tier] if state.rhythm is None else state.rhythm.patience
        return patience * state.stretch

    def _lost_after(self, state: NodeState) -> float:
        """Seconds of absence after which it is dead; how often it is heard matters only while its stream is open."""
        return self.patience.of(state.tier) * (state.stretch if state.session else 1.0)

    def _interval(self, state: NodeState) -> float:
        return max(HEARTBEAT_SECONDS[state.tier], self._connected / HEARTBEATS_PER_SECOND)

    def _watch(self, state: NodeState) -> None:
        """Look at a node when its state may change by the clock alone; a date that is earlier already will do."""
        now, judged = self._clock.monotonic(), self._judge(state)
        if judged != state.state:
            due = now
        elif judged == READY:
            due = max(now + _SOON, state.seen + self._suspect_after(state))
        elif judged == SUSPECT:
            since = state.seen if state.session else state.lost
            due = max(now + _SOON, since + self._lost_after(state) + state.grace)
        else:
            return
        if due < state.due:
            state.due = due
            heapq.heappush(self._dates, (due, state.node))


def _rhythm(tier: str) -> Rhythm:
    return Rhythm(HEARTBEAT_SECONDS[tier], _SUSPECT_SECONDS[tier], _MOST_SUSPECT_SECONDS[tier])
