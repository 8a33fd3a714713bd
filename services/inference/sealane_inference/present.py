"""What is true now: the last route table and the open lanes, and a signal when either changes.

Lives on the event loop; the watch posts to it from its thread.
"""

from __future__ import annotations

import asyncio

from sealane.clock import Clock
from sealane.errors import Unavailable
from sealane_inference.lanes import Lane
from sealane_inference.routing import Endpoint, Route, RouteTable

#: Routes that nobody refreshes hold this long: a running data plane needs no scheduler.
HOLD_SECONDS = 24 * 3600.0


class Present:
    """The gateway's view of the world."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._table: RouteTable | None = None
        self._lost: float | None = None
        self._lanes: dict[str, Lane] = {}
        self._changed = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether there is a table to route by."""
        return self._table is not None

    @property
    def has_chains(self) -> bool:
        """Whether a route is a chain of models."""
        return self._table is not None and self._table.has_chains

    @property
    def table(self) -> RouteTable:
        """The last table.

        Raises:
            Unavailable: none was received yet, or the last one is too old to be trusted.
        """
        if self._table is None:
            raise Unavailable("no routes yet; retry in a moment", reason="NO_ROUTES", retry_after=0.2)
        if self._lost is not None and self._clock.monotonic() - self._lost > HOLD_SECONDS:
            raise Unavailable("the routes are older than a day; bring the scheduler back", reason="STALE_ROUTES")
        return self._table

    def models(self) -> list[tuple[str, str, str]]:
        """Project, deployment and version of every route."""
        routes = self._table.routes if self._table is not None else {}
        return [(item.project, item.deployment, item.version) for known in routes.values() for item in known.values()]

    def replace(self, table: RouteTable) -> None:
        """Take over a newer table."""
        self._table = table
        self._lost = None
        self._signal()

    def lose(self) -> None:
        """The scheduler is out of reach; the last table holds."""
        if self._lost is None:
            self._lost = self._clock.monotonic()

    def attach(self, lane: Lane) -> None:
        """Use a lane; a newer one of the same node replaces the older, whose calls run out."""
        self._lanes[lane.node] = lane
        self._signal()

    def detach(self, lane: Lane) -> bool:
        """Stop using a lane; whether it was the node's present one."""
        if self._lanes.get(lane.node) is not lane:
            return False
        del self._lanes[lane.node]
        self._signal()
        return True

    def lane(self, node: str) -> Lane | None:
        """The open lane of a node."""
        return self._lanes.get(node)

    def reachable(self, route: Route) -> list[Endpoint]:
        """The endpoints of a route whose lanes are open."""
        return [endpoint for endpoint in route.endpoints if endpoint.node in self._lanes]

    def change(self) -> asyncio.Event:
        """The event that the next change sets; take it before looking, then wait for it."""
        return self._changed

    def _signal(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
