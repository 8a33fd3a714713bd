"""PlacementService, RoutingService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from sealane import names
from sealane.clock import Clock
from sealane.errors import InvalidArgument, NotFound
from sealane.records.transactions import Transactions
from sealane.rpc.call import Call
from sealane.rpc.times import time_of
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane.scheduler.v1 import placement_service_pb2 as placement_pb
from sealane.scheduler.v1 import routing_service_pb2 as routing_pb
from sealane_scheduler import present, quota_present, routes
from sealane_scheduler.controller import Controller
from sealane_scheduler.deployment_names import check_version, find, may_see, may_see_chain
from sealane_scheduler.ensembles import Ensembles
from sealane_scheduler.filters import NodeView, VariantView, task
from sealane_scheduler.gateways import Gateways
from sealane_scheduler.moves import GlobalPlan, Movable
from sealane_scheduler.quota_shares import QuotaShares
from sealane_scheduler.registry_port import RegistryPort
from sealane_scheduler.store import DeploymentRow, Store

REFRESH_SECONDS = 10.0
HOLD_SECONDS = 24 * 3600.0
OPTIMIZE_SECONDS = 2.0
DEFAULT_MOVES, MOST_MOVES = 10, 1000
_NAME = "projects/*/deployments/*"
_VERSION = "projects/*/models/*/versions/*"


def _plan(movable: Sequence[Movable], nodes: Sequence[NodeView], most: int) -> GlobalPlan:
    from sealane_scheduler import global_plan  # the solver takes 50 MB that most schedulers never need

    return global_plan.plan(movable, nodes, most, OPTIMIZE_SECONDS)


class PlacementServicer:
    """PlacementService."""

    def __init__(
        self, records: Transactions[Store], controller: Controller, registry: RegistryPort, clock: Clock
    ) -> None:
        self._records = records
        self._controller = controller
        self._registry = registry
        self._clock = clock

    async def Plan(self, request: placement_pb.PlanRequest, call: Call) -> pb.Decision:
        (project,) = names.parse(request.parent, "projects/*", "parent")
        demand = present.demand(request.demand)
        variants, name = await self._variants(request, project)
        return present.decision(self._controller.plan(demand, variants, name), 0, self._clock.now())

    async def Optimize(self, request: placement_pb.OptimizeRequest, call: Call) -> placement_pb.OptimizeResponse:
        (project,) = names.parse(request.parent, "projects/*", "parent")
        if not 0 <= request.max_moves <= MOST_MOVES:
            raise InvalidArgument(f"max_moves must be 1 to {MOST_MOVES}", field="max_moves")

        def allowed(row: DeploymentRow) -> bool:
            return row.project == project and may_see(call, row.model_version)

        movable, nodes = self._controller.movable(allowed), self._controller.nodes()
        most = request.max_moves or DEFAULT_MOVES
        found = await asyncio.to_thread(_plan, movable, nodes, most)
        begun = [request.apply and await self._controller.move(move) for move in found.moves]
        return present.global_plan(found, begun)

    async def Explain(self, request: placement_pb.ExplainRequest, call: Call) -> placement_pb.ExplainResponse:
        project, deployment = names.parse(request.deployment, _NAME, "deployment")
        rows = await self._records.read(lambda store: store.decisions(project, deployment))
        decisions = [pb.Decision.FromString(row.content) for row in rows]
        if "nodes:read" not in call.caller.scopes:
            for decision in decisions:
                decision.ClearField("record")
        item = self._controller.get(request.deployment)
        limited = call.caller.models.get("models:read") is not None
        if not rows or (limited and (item is None or not may_see(call, item.row.model_version))):
            raise NotFound(f"no decision about {request.deployment}; check the name with 'sealane deployments list'")
        return placement_pb.ExplainResponse(decisions=decisions)

    async def _variants(self, request: placement_pb.PlanRequest, project: str) -> tuple[Sequence[VariantView], str]:
        """Of what there is to choose, and what tells equal nodes apart."""
        if not request.model_version:
            return [task(request.runtime)], request.runtime
        if request.runtime:
            raise InvalidArgument("a version runs where its variants can; leave runtime out", field="runtime")
        check_version(request.model_version, project)
        version = await asyncio.to_thread(self._registry.version, request.model_version)
        return present.variants(version), version.name


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
        self._gateways.open(request.gateway, request.lane_address)
        self._controller.changes.announce()
        try:
            revision = -1
            while call.remaining > 0:
                table = routes.table(self._controller, self._chains)
                if table.revision > revision:
                    revision = table.revision
                    yield table
                await self._controller.changes.after(revision, REFRESH_SECONDS)
        finally:
            self._gateways.close(request.gateway)

    async def ShareQuotas(self, request: routing_pb.ShareQuotasRequest, call: Call) -> routing_pb.ShareQuotasResponse:
        enforcer, needs = quota_present.enforcer(request.gateway, call.peer), quota_present.needs(request)
        return quota_present.answer(needs, self._quotas.share(enforcer, needs, self._clock.monotonic()))
