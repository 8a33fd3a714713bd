"""Deployments and their copies as the controller works on them: rows plus what the nodes report."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from sealane.errors import NotFound
from sealane_scheduler.batch import Placed
from sealane_scheduler.decision import Decision
from sealane_scheduler.filters import Demand, NodeView, VariantView, cpu_of, memory_of
from sealane_scheduler.fleet import READY, Fleet, NodeState
from sealane_scheduler.queue_order import Waiting
from sealane_scheduler.store import DeploymentRow, PlacementRow

PREPARING, SERVING, FAILED = "PREPARING", "SERVING", "FAILED"


@dataclass(frozen=True, slots=True)
class Told:
    """What a node tells of a copy beside its state."""

    memory_bytes: int = 0
    resident: bool = False
    warmed_requests: int = 0
    warmed_batch_sizes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Stuck:
    """Why a copy stays where it should not.

    Args:
        constraint: the filter that keeps others from taking it.
        reason: the same in words.
        asked: when others were asked last, monotonic seconds.
    """

    constraint: str
    reason: str
    asked: float


@dataclass(slots=True)
class Copy:
    """One placement and how its node says it stands."""

    row: PlacementRow
    state: str = PREPARING
    message: str = ""
    digest: str = ""
    told: Told = Told()
    leaving: bool = False
    """Whether another copy was placed for it to move to; the first to go when there are more than are wanted."""
    gives_way: float = 0.0
    """When it ends for a deployment of higher priority, by the monotonic clock; 0 where it need not."""
    since: float = 0.0
    """When it was placed, or the scheduler started, in seconds since 1970."""
    stuck: Stuck | None = None
    """Why nothing else can take it, while its node is drained."""


@dataclass(frozen=True, slots=True)
class Nomination:
    """A place that is kept for a deployment until others have left it.

    Args:
        placed: the decision, and what is reserved.
        node: where it is.
        victims: who has to leave: names of deployments and epochs of their copies.
    """

    placed: Placed
    node: str
    victims: tuple[tuple[str, int], ...]


@dataclass(slots=True)
class Deployed:
    """One deployment."""

    row: DeploymentRow
    demand: Demand
    variants: tuple[VariantView, ...]
    copies: list[Copy] = field(default_factory=list)
    refusal: Decision | None = None
    """Why nothing can take it now; None while something does, or may come back."""
    placed: bytes = b""
    """The last decision that found a place, serialized."""
    refused: bytes = b""
    """The refusal, serialized."""
    bereft: bool = False
    """Whether it has fewer copies than it wants because it lost some."""
    nominated: Nomination | None = None
    """The place that others leave for it."""
    asked: int = -1
    """State of the cluster for which a place was last looked for."""
    asked_at: float = 0.0
    """When that was, by the monotonic clock."""

    def waiting(self, copies: int) -> Waiting:
        """Itself in the queue, with so many copies to be placed."""
        variants = [memory_of(self.demand, variant) for variant in self.variants]
        needs = copies * float(min(variants, default=0)), copies * float(cpu_of(self.demand))
        return Waiting(self.row.name, self.row.project, self.demand.priority, self.row.create_time, needs)

    @property
    def decision(self) -> bytes:
        """The last decision about it, serialized."""
        return self.placed if self.refusal is None and self.nominated is None else self.refused

    @property
    def sealing_required(self) -> bool:
        """Whether plaintext is refused: one variant that demands it is enough, whichever serves."""
        return any(item.sealing.required for item in self.variants)

    def variant(self, name: str) -> VariantView | None:
        """A variant of its version."""
        return next((item for item in self.variants if item.variant == name), None)

    def copy(self, node: str, epoch: int) -> Copy | None:
        """The copy on a node, if it is still bound with that epoch."""
        return next((item for item in self.copies if item.row.node == node and item.row.epoch == epoch), None)

    def ready(self, fleet: Fleet) -> list[Copy]:
        """Copies on nodes that are there, oldest first."""
        return [copy for copy in self.copies if _is_ready(fleet, copy) and copy.state != FAILED]

    def staying(self, fleet: Fleet) -> list[Copy]:
        """Copies that are there and need not give their place to others."""
        return [copy for copy in self.ready(fleet) if not copy.gives_way]

    def stay(self) -> None:
        """Nobody came in the place of its copies."""
        for copy in self.copies:
            copy.leaving = bool(copy.gives_way)

    def serving(self, fleet: Fleet) -> list[Copy]:
        """Copies that answer now."""
        return [copy for copy in self.ready(fleet) if copy.state == SERVING]

    def state(self, fleet: Fleet) -> str:
        """State of the deployment, by its proto name without the prefix."""
        if self.serving(fleet):
            return "SERVING"
        if self.ready(fleet):
            return "PREPARING"
        return "DEGRADED" if self.copies else "PENDING"


def _is_ready(fleet: Fleet, copy: Copy) -> bool:
    state = fleet.get(copy.row.node)
    return state is not None and state.state == READY


def renamed(
    deployed: Mapping[str, Deployed], wanted: Iterable[DeploymentRow], now: float
) -> list[tuple[Deployed, DeploymentRow]]:
    """Deployments that are served under other names or labels than wanted, with rows that say as wanted.

    Raises:
        NotFound: one is not there any more.
    """
    changed = []
    for want in wanted:
        item = deployed.get(want.name)
        if item is None:
            raise NotFound(f"{want.name} does not exist any more")
        if (item.row.served_name, item.row.labels) != (want.served_name, want.labels):
            named = replace(item.row, served_name=want.served_name, labels=want.labels)
            changed.append((item, replace(named, update_time=now, etag=secrets.token_hex(8))))
    return changed


def place_of(state: NodeState) -> NodeView:
    """A node by where it stands and what it is trusted with alone."""
    attributes = state.facts.attributes
    return NodeView(
        node=state.node,
        tier=state.tier,
        zone=attributes.get("zone", ""),
        clearance=attributes.get("clearance", ""),
        alive=state.state == READY,
        facts={**attributes, "suite": state.facts.suite},
    )
