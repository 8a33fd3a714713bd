"""What the chains have done that ran from this gateway: no worker has seen them whole, so none could tell."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sealane.protocols.openinference_model import Duration, ModelCounts
from sealane_inference.routing import ChainRoute, Route, RouteTable


@dataclass(slots=True)
class _Done:
    chain: ChainRoute
    succeeded: int = 0
    seconds: float = 0.0
    failed: int = 0
    failed_seconds: float = 0.0
    rows: int = 0
    last_time: float = 0.0


class ChainCounts:
    """Counts by chain, on the event loop; a chain that is replaced begins anew."""

    def __init__(self) -> None:
        self._done: dict[str, _Done] = {}

    def succeeded(self, table: RouteTable, route: Route, rows: int, seconds: float) -> None:
        """A run of so many rows gave its outputs."""
        done = self._of(table, route)
        done.succeeded += 1
        done.seconds += seconds
        done.rows += rows
        done.last_time = time.time()

    def failed(self, table: RouteTable, route: Route, seconds: float) -> None:
        """A run ended in an error."""
        done = self._of(table, route)
        done.failed += 1
        done.failed_seconds += seconds

    def of(self, route: Route) -> ModelCounts:
        """What was counted; the queues are those of its models, which count them."""
        done = self._done.get(route.name)
        if done is None or done.chain != route.chain:
            return ModelCounts()
        return ModelCounts(
            success=Duration(done.succeeded, done.seconds),
            fail=Duration(done.failed, done.failed_seconds),
            queue=Duration(done.succeeded),
            infer=Duration(done.succeeded, done.seconds),
            rows=done.rows,
            executions=done.succeeded,
            last_time=done.last_time,
        )

    def _of(self, table: RouteTable, route: Route) -> _Done:
        assert route.chain is not None
        done = self._done.get(route.name)
        if done is None or done.chain != route.chain:
            known = {item.name for routes in table.routes.values() for item in routes.values() if item.chain}
            self._done = {name: kept for name, kept in self._done.items() if name in known}
            done = self._done[route.name] = _Done(route.chain)
        return done
