"""RoutingService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sealane.clock import Clock
from sealane.rpc.call import Call
from sealane.rpc.times import time_of
from sealane.scheduler.v1 import routing_service_pb2 as routing_pb
from sealane_scheduler import quota_present, routes
from sealane_scheduler.changes import NOBODY
from sealane_scheduler.controller import Controller
from sealane_scheduler.deployment_names import find, may_see_chain
from sealane_scheduler.ensembles import Ensembles
from sealane_scheduler.gateways import Gateways
from sealane_scheduler.quota_shares import QuotaShares

REFRESH_SECONDS = 10.0
#: Changes of routes that follow each other within this time are told together.
GATHER_SECONDS = 0.01
#: How often it is looked whether workers have come back, after a restart.
AWAIT_SECONDS = 0.2
HOLD_SECONDS = 24 * 3600.0


class RoutingServicer:
    """RoutingService."""

    def __init__(
        self, controller: Controller, chains: Ensembles, gateways: Gateways, quotas: QuotaShares, clock: Clock
    ) -> None:
        self._controller = controller
        self._chains = chains
        self._gateways = gateways
        self._quotas = quotas
        self._clock = clock

    async def ResolveRoute(self, request: routing_pb.ResolveRouteRequest, call: Call) -> routing_pb.RoutingLease:
        now = self._clock.now()
        return routing_pb.RoutingLease(
            route=self._route(request.deployment, call),
            revision=self._controller.changes.revision,
            refresh_time=time_of(now + REFRESH_SECONDS),
            expire_time=time_of(now + HOLD_SECONDS),
        )

    def _route(self, name: str, call: Call) -> routing_pb.Route:
        chained = self._chains.get(name)
        if chained is not None and may_see_chain(call, chained):
            return routes.chain_route(chained, self._chains, self._controller.fleet)
        return routes.route(find(self._controller, call, name, "deployment"), self._controller.fleet)

    async def WatchRoutes(
        self, request: routing_pb.WatchRoutesRequest, call: Call
    ) -> AsyncIterator[routing_pb.RouteTable]:
        new = self._gateways.open(request.gateway, request.lane_address)
        self._controller.changes.announce(None if new else NOBODY)
        try:
            while call.remaining > 0 and self._controller.fleet.is_awaited():
                # Who watches has the routes of before, and they are right: workers are on their way back.
                await self._controller.changes.after(self._controller.changes.revision, AWAIT_SECONDS)
            tables = routes.Tables(self._controller, self._chains, request.takes_changes)
            while call.remaining > 0:
                self._controller.check()
                revision = self._controller.changes.revision
                table = tables.next()
                if table is not None:
                    yield table
                    await asyncio.sleep(GATHER_SECONDS)
                await self._controller.changes.after(revision, REFRESH_SECONDS)
        finally:
            self._gateways.close(request.gateway)

    async def ShareQuotas(self, request: routing_pb.ShareQuotasRequest, call: Call) -> routing_pb.ShareQuotasResponse:
        enforcer, needs = quota_present.enforcer(request.gateway, call.peer), quota_present.needs(request)
        return quota_present.answer(needs, self._quotas.share(enforcer, needs, self._clock.monotonic()))
