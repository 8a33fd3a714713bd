"""Which workers there are and how they stand. In memory: a worker says all of it again when it connects.

Suspicion and death are two steps: a broken or silent stream stops new routes at once (cheap, reversible),
death after the lease moves the work (dear).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sealane.clock import Clock
from sealane_scheduler.links import Link, Rhythm

READY, SUSPECT, DEAD = "READY", "SUSPECT", "DEAD"
HEARTBEAT_SECONDS = {"cloud": 1.0, "edge": 5.0}
#: Silence after which a node is suspected; at the edge it is longer where the node's rhythm is uneven, up to the last.
_SUSPECT_SECONDS = {"cloud": 3.0, "edge": 12.0}
_MOST_SUSPECT_SECONDS = {"cloud": 3.0, "edge": 24.0}


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
    rhythm: Rhythm | None = None
    """Of its signs of life; none before its first stream."""
    state: str = SUSPECT

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
        self._clock = clock
        self._patience = patience
        self._nodes: dict[str, NodeState] = {}
        self._sessions = 0

    def __iter__(self) -> Iterator[NodeState]:
        return iter(sorted(self._nodes.values(), key=lambda state: state.node))

    def get(self, node: str) -> NodeState | None:
        """A worker that was ever seen."""
        return self._nodes.get(node)

    def expect(self, node: str, grace: float) -> None:
        """A worker that had placements before a restart: it gets `grace` seconds to come back."""
        now = self._clock.monotonic()
        self._nodes.setdefault(node, NodeState(node, Facts({}), seen=now, lost=now, grace=grace))
        self.touched.add(node)

    def connect(self, node: str, facts: Facts, statement: str) -> int:
        """A stream began; returns its number. An older stream of the same node is superseded."""
        self._sessions += 1
        now = self._clock.monotonic()
        before = self._nodes.get(node)
        made = NodeState(node, facts, statement, self._sessions, now, now, state=READY)
        if before is not None:
            made.link, made.rhythm = before.link, before.rhythm
        if made.rhythm is None or before is None or before.tier != made.tier:
            made.rhythm = _rhythm(made.tier)
        self._nodes[node] = made
        self.touched.add(node)
        return self._sessions

    def holds(self, node: str, session: int) -> bool:
        """Whether a stream is still the node's: a newer one supersedes it."""
        state = self._nodes.get(node)
        return state is not None and state.session == session

    def disconnect(self, node: str, session: int, *, evicted: bool = False) -> bool:
        """A stream ended; False where a newer one has replaced it. Who was evicted is not waited for."""
        state = self._nodes.get(node)
        if state is None or state.session != session:
            return False
        state.session, state.lost, state.evicted = 0, self._clock.monotonic(), evicted
        state.state = self._judge(state)
        self.touched.add(node)
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
        state.link.carried(*speeds)
        if rtt_ms is not None:
            state.link.pinged(rtt_ms)
            self.touched.add(node)

    def tick(self) -> bool:
        """Look at the clock; whether any node's state changed."""
        changed = False
        for state in self._nodes.values():
            before, state.state = state.state, self._judge(state)
            if before != state.state:
                self.touched.add(state.node)
                changed = True
        return changed

    def absent_for(self, node: str) -> float:
        """Seconds since the node's stream broke or fell silent, less its grace; 0 while it is READY."""
        state = self._nodes.get(node)
        if state is None or state.state == READY:
            return 0.0
        since = state.lost if not state.session else state.seen
        return self._clock.monotonic() - since - state.grace

    def _judge(self, state: NodeState) -> str:
        if state.evicted:
            return DEAD
        silent = self._clock.monotonic() - (state.seen if state.session else state.lost)
        if state.session and state.rhythm is not None and silent < state.rhythm.patience:
            return READY
        return DEAD if silent - state.grace >= self._patience.of(state.tier) else SUSPECT


def _rhythm(tier: str) -> Rhythm:
    return Rhythm(HEARTBEAT_SECONDS[tier], _SUSPECT_SECONDS[tier], _MOST_SUSPECT_SECONDS[tier])
