"""PlacementService."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from sealane import names
from sealane.clock import Clock
from sealane.errors import InvalidArgument, NotFound
from sealane.records.transactions import Transactions, actor, asked
from sealane.rpc.call import Call
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane.scheduler.v1 import placement_service_pb2 as placement_pb
from sealane_scheduler import placing, present
from sealane_scheduler.controller import Controller
from sealane_scheduler.creation import Creation
from sealane_scheduler.deployment_names import check_version, may_see
from sealane_scheduler.filters import NodeView, VariantView, task
from sealane_scheduler.moves import GlobalPlan, Movable
from sealane_scheduler.placing import Binding
from sealane_scheduler.registry_port import RegistryPort
from sealane_scheduler.store import DeploymentRow, Store

OPTIMIZE_SECONDS = 2.0
DEFAULT_MOVES, MOST_MOVES = 10, 1000
MOST_ITEMS = 64
_NAME = "projects/*/deployments/*"


def _plan(movable: Sequence[Movable], nodes: Sequence[NodeView], most: int) -> GlobalPlan:
    from sealane_scheduler import global_plan  # the solver takes 50 MB that most schedulers never need

    return global_plan.plan(movable, nodes, most, OPTIMIZE_SECONDS)


def _placed(bindings: Sequence[Binding]) -> placement_pb.PlaceResponse:
    return placement_pb.PlaceResponse(placed=[placing.told(binding) for binding in bindings])


class PlacementServicer:
    """PlacementService."""

    def __init__(
        self, records: Transactions[Store], controller: Controller, registry: RegistryPort, clock: Clock
    ) -> None:
        self._records = records
        self._controller = controller
        self._registry = registry
        self._clock = clock

    async def Place(self, request: placement_pb.PlaceRequest, call: Call) -> placement_pb.PlaceResponse:
        (project,) = names.parse(request.parent, "projects/*", "parent")
        if not 1 <= len(request.items) <= MOST_ITEMS:
            raise InvalidArgument(
                f"{len(request.items)} items; one call places 1 to {MOST_ITEMS}, make several calls", field="items"
            )
        for index, item in enumerate(request.items):
            self._check(item, project, call, f"items[{index}]")
        ids = [item.deployment_id for item in request.items]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise InvalidArgument(f"items has {twice[0]!r} twice; give each an id of its own", field="items")
        versions = await self._versions({item.model_version for item in request.items})
        now, who = self._clock.now(), actor(call, project)
        rows = [
            present.row(
                (project, item.deployment_id), item.model_version, versions[item.model_version], item.demand, now
            )
            for item in request.items
        ]
        asked_ = asked(call, request, request.request_id)
        wanted = Creation(rows, who, _placed, asked_, request.gang)
        return placement_pb.PlaceResponse.FromString(await self._controller.create(wanted))

    def _check(self, item: placement_pb.PlaceRequest.Item, project: str, call: Call, field: str) -> None:
        """Refuse what is not well formed, or about a model that the caller may not deploy."""
        names.check_id(item.deployment_id, f"{field}.deployment_id", label=True)
        check_version(item.model_version, project)
        if not may_see(call, item.model_version):
            raise NotFound(f"{item.model_version} does not exist, or is not yours to deploy; check the name")
        present.demand_of(item.demand.SerializeToString())

    async def _versions(self, wanted: Iterable[str]) -> dict[str, tuple[str, bytes]]:
        """Name and content of each version; those that are deployed are known, and kept up to date."""
        found = {}
        for name in sorted(wanted):
            known = self._controller.version(name)
            if known is None:
                version = await asyncio.to_thread(self._registry.version, name)
                known = version.name, version.SerializeToString()
            found[name] = known
        return found

    async def Plan(self, request: placement_pb.PlanRequest, call: Call) -> pb.Decision:
        (project,) = names.parse(request.parent, "projects/*", "parent")
        demand = present.demand(request.demand)
        variants, name = await self._variants(request, project)
        return present.decision(self._controller.plan(demand, variants, name, project), 0, self._clock.now())

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
