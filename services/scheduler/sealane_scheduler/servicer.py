"""DeploymentService, PlacementService, NodeService, RoutingService."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

from google.protobuf import empty_pb2

from sealane import names
from sealane.clock import Clock
from sealane.errors import NotFound
from sealane.records.paging import page_of, read_token, write_token
from sealane.records.transactions import Transactions, actor
from sealane.rpc.authorisation import model_id
from sealane.rpc.call import Call
from sealane.rpc.times import time_of
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane.scheduler.v1 import node_service_pb2 as node_pb
from sealane.scheduler.v1 import placement_service_pb2 as placement_pb
from sealane.scheduler.v1 import routing_service_pb2 as routing_pb
from sealane_scheduler import present, quota_present, routes
from sealane_scheduler.cluster import Deployed
from sealane_scheduler.controller import Controller
from sealane_scheduler.gateways import Gateways
from sealane_scheduler.quota_shares import QuotaShares
from sealane_scheduler.registry_port import RegistryPort
from sealane_scheduler.store import DeploymentRow, Store

REFRESH_SECONDS = 10.0
HOLD_SECONDS = 24 * 3600.0
_NAME = "projects/*/deployments/*"
_VERSION = "projects/*/models/*/versions/*"


class DeploymentServicer:
    """DeploymentService."""

    def __init__(
        self, records: Transactions[Store], controller: Controller, registry: RegistryPort, clock: Clock
    ) -> None:
        self._records = records
        self._controller = controller
        self._registry = registry
        self._clock = clock

    async def CreateDeployment(self, request: pb.CreateDeploymentRequest, call: Call) -> pb.Deployment:
        (project,) = names.parse(request.parent, "projects/*", "parent")
        names.check_id(request.deployment_id, "deployment_id", label=True)
        present.demand(request.deployment.demand)
        _check_version(request.deployment.model_version, project)
        version = await asyncio.to_thread(self._registry.version, request.deployment.model_version)
        now, who = self._clock.now(), actor(call, project)
        row = DeploymentRow(
            project=project,
            deployment=request.deployment_id,
            model_version=version.name,
            demand=request.deployment.demand.SerializeToString(),
            version=version.SerializeToString(),
            create_time=now,
            update_time=now,
            etag=secrets.token_hex(8),
        )

        def create(store: Store) -> pb.Deployment:
            store.add_deployment(row)
            store.record(who, "CreateDeployment", row.name, now, version=version.name)
            return pb.Deployment(name=row.name, etag=row.etag)

        stored = pb.Deployment.FromString(await self._records.once(call, request, request.request_id, create))
        known = self._controller.get(stored.name)
        item = known or (self._controller.add(row) if stored.etag == row.etag else None)
        if item is None:
            return stored
        await self._controller.reconcile(item)
        return present.deployment(item, self._controller.fleet)

    async def GetDeployment(self, request: pb.GetDeploymentRequest, call: Call) -> pb.Deployment:
        return present.deployment(_find(self._controller, call, request.name), self._controller.fleet)

    async def ListDeployments(self, request: pb.ListDeploymentsRequest, call: Call) -> pb.ListDeploymentsResponse:
        (project,) = names.parse(request.parent, "projects/*", "parent")
        size, after = page_of(request.page_size), read_token(request.page_token)
        mine = [
            item
            for item in self._controller.all()
            if item.row.project == project and item.row.name > after and _may_see(call, item.row.model_version)
        ]
        more = write_token(mine[size - 1].row.name) if len(mine) > size else ""
        found = [present.deployment(item, self._controller.fleet) for item in mine[:size]]
        return pb.ListDeploymentsResponse(deployments=found, next_page_token=more)

    async def DeleteDeployment(self, request: pb.DeleteDeploymentRequest, call: Call) -> empty_pb2.Empty:
        row = _find(self._controller, call, request.name).row
        who, now = actor(call, row.project), self._clock.now()

        def drop(store: Store) -> None:
            store.drop_deployment(row.project, row.deployment)
            store.record(who, "DeleteDeployment", row.name, now)

        await self._controller.delete(row.name, request.etag, drop)
        return empty_pb2.Empty()


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
        _check_version(request.model_version, project)
        version = await asyncio.to_thread(self._registry.version, request.model_version)
        return present.decision(self._controller.plan(request.demand, version), 0, self._clock.now())

    async def Explain(self, request: placement_pb.ExplainRequest, call: Call) -> placement_pb.ExplainResponse:
        project, deployment = names.parse(request.deployment, _NAME, "deployment")
        rows = await self._records.read(lambda store: store.decisions(project, deployment, 50))
        decisions = [pb.Decision.FromString(row.content) for row in rows]
        item = self._controller.get(request.deployment)
        limited = call.caller.models.get("models:read") is not None
        if not rows or (limited and (item is None or not _may_see(call, item.row.model_version))):
            raise NotFound(f"no decision about {request.deployment}; check the name with 'sealane deployments list'")
        return placement_pb.ExplainResponse(decisions=decisions)


class NodeServicer:
    """NodeService."""

    def __init__(self, controller: Controller, clock: Clock) -> None:
        self._controller = controller
        self._clock = clock

    async def ListNodes(self, request: node_pb.ListNodesRequest, call: Call) -> node_pb.ListNodesResponse:
        size, after = page_of(request.page_size), read_token(request.page_token)
        states = [state for state in self._controller.fleet if state.node > after]
        more = write_token(states[size - 1].node) if len(states) > size else ""
        now, monotonic = self._clock.now(), self._clock.monotonic()
        found = [present.node(state, now, monotonic) for state in states[:size]]
        return node_pb.ListNodesResponse(nodes=found, next_page_token=more)


class RoutingServicer:
    """RoutingService."""

    def __init__(self, controller: Controller, gateways: Gateways, quotas: QuotaShares, clock: Clock) -> None:
        self._controller = controller
        self._gateways = gateways
        self._quotas = quotas
        self._clock = clock

    async def ResolveRoute(self, request: routing_pb.ResolveRouteRequest, call: Call) -> routing_pb.RoutingLease:
        item = _find(self._controller, call, request.deployment, "deployment")
        now = self._clock.now()
        return routing_pb.RoutingLease(
            route=routes.route(item, self._controller.fleet),
            revision=self._controller.changes.revision,
            refresh_time=time_of(now + REFRESH_SECONDS),
            expire_time=time_of(now + HOLD_SECONDS),
        )

    async def WatchRoutes(
        self, request: routing_pb.WatchRoutesRequest, call: Call
    ) -> AsyncIterator[routing_pb.RouteTable]:
        self._gateways.open(request.gateway, request.lane_address)
        self._controller.changes.announce()
        try:
            revision = -1
            while call.remaining > 0:
                table = routes.table(self._controller)
                if table.revision > revision:
                    revision = table.revision
                    yield table
                await self._controller.changes.after(revision, REFRESH_SECONDS)
        finally:
            self._gateways.close(request.gateway)

    async def ShareQuotas(self, request: routing_pb.ShareQuotasRequest, call: Call) -> routing_pb.ShareQuotasResponse:
        enforcer, needs = quota_present.enforcer(request.gateway, call.peer), quota_present.needs(request)
        return quota_present.answer(needs, self._quotas.share(enforcer, needs, self._clock.monotonic()))


def _may_see(call: Call, model_version: str) -> bool:
    """Whether the caller's token, if it is limited to some models, is for this one."""
    return call.caller.may_use(call.method.access.permission, model_id(model_version))


def _find(controller: Controller, call: Call, name: str, field: str = "name") -> Deployed:
    names.parse(name, _NAME, field)
    item = controller.get(name)
    if item is None or not _may_see(call, item.row.model_version):
        raise NotFound(f"{name} does not exist, or is not yours to see; list them with 'sealane deployments list'")
    return item


def _check_version(name: str, project: str) -> None:
    owner, *_ = names.parse(name, _VERSION, "model_version")
    if owner != project:
        raise NotFound(f"{name} does not exist, or is not yours to see; check the name")
