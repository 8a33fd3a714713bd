"""DeploymentService: deployments of one model, and chains of them."""

from __future__ import annotations

import asyncio
import secrets

from google.protobuf import empty_pb2

from sealane import names
from sealane.clock import Clock
from sealane.errors import InvalidArgument
from sealane.records.paging import page_of, read_token, write_token
from sealane.records.transactions import Transactions, actor, asked
from sealane.rpc.call import Call
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane_scheduler import present
from sealane_scheduler.cluster import Deployed
from sealane_scheduler.controller import Controller
from sealane_scheduler.creation import Creation
from sealane_scheduler.deployment_names import check_version, find, may_see, may_see_chain
from sealane_scheduler.ensembles import Chained, Ensembles
from sealane_scheduler.registry_port import RegistryPort
from sealane_scheduler.store import EnsembleRow, Store


class DeploymentServicer:
    """DeploymentService."""

    def __init__(
        self,
        records: Transactions[Store],
        controller: Controller,
        chains: Ensembles,
        registry: RegistryPort,
        clock: Clock,
    ) -> None:
        self._records = records
        self._controller = controller
        self._chains = chains
        self._registry = registry
        self._clock = clock

    async def CreateDeployment(self, request: pb.CreateDeploymentRequest, call: Call) -> pb.Deployment:
        (project,) = names.parse(request.parent, "projects/*", "parent")
        names.check_id(request.deployment_id, "deployment_id", label=True)
        if request.deployment.HasField("ensemble"):
            return await self._create_chain(request, call, project)
        present.demand(request.deployment.demand)
        check_version(request.deployment.model_version, project)
        version = await asyncio.to_thread(self._registry.version, request.deployment.model_version)
        now, who = self._clock.now(), actor(call, project)
        named, known = request.deployment, (version.name, version.SerializeToString())
        row = present.row((project, request.deployment_id), named.model_version, known, named.demand, now)
        wanted = Creation(
            [row],
            who,
            lambda _: pb.Deployment(name=row.name, etag=row.etag),
            asked(call, request, request.request_id),
        )
        stored = pb.Deployment.FromString(await self._controller.create(wanted))
        item = self._controller.get(stored.name)
        return stored if item is None else present.deployment(item, self._controller.fleet)

    async def GetDeployment(self, request: pb.GetDeploymentRequest, call: Call) -> pb.Deployment:
        chained = self._chain(request.name, call)
        if chained is not None:
            return present.chain(chained.row, self._chains.state(chained))
        return present.deployment(find(self._controller, call, request.name), self._controller.fleet)

    async def ListDeployments(self, request: pb.ListDeploymentsRequest, call: Call) -> pb.ListDeploymentsResponse:
        (project,) = names.parse(request.parent, "projects/*", "parent")
        size, after = page_of(request.page_size), read_token(request.page_token)
        mine: list[Deployed | Chained] = [
            item
            for item in self._controller.all()
            if item.row.project == project and may_see(call, item.row.model_version)
        ]
        mine += [item for item in self._chains.all() if item.row.project == project and may_see_chain(call, item)]
        mine = sorted((item for item in mine if item.row.name > after), key=lambda item: item.row.name)
        more = write_token(mine[size - 1].row.name) if len(mine) > size else ""
        return pb.ListDeploymentsResponse(
            deployments=[self._present(item) for item in mine[:size]], next_page_token=more
        )

    async def DeleteDeployment(self, request: pb.DeleteDeploymentRequest, call: Call) -> empty_pb2.Empty:
        if self._chain(request.name, call) is not None:
            return await self._delete_chain(request, call)
        row = find(self._controller, call, request.name).row
        self._chains.refuse_if_needed(row.name)
        who, now = actor(call, row.project), self._clock.now()

        def drop(store: Store) -> None:
            store.drop_deployment(row.project, row.deployment)
            store.record(who, "DeleteDeployment", row.name, now)

        await self._controller.delete(row.name, request.etag, drop)
        return empty_pb2.Empty()

    async def _create_chain(self, request: pb.CreateDeploymentRequest, call: Call, project: str) -> pb.Deployment:
        asked = request.deployment
        if asked.model_version or asked.HasField("demand"):
            raise InvalidArgument(
                "a chain runs where its models run; leave model_version and demand out", field="deployment"
            )
        checked = self._chains.check(project, asked.ensemble)
        now, who = self._clock.now(), actor(call, project)
        row = EnsembleRow(project, request.deployment_id, checked.SerializeToString(), now, secrets.token_hex(8))

        def create(store: Store) -> pb.Deployment:
            store.add_ensemble(row)
            store.record(who, "CreateDeployment", row.name, now, ensemble=",".join(checked.models))
            return pb.Deployment(name=row.name, etag=row.etag)

        stored = pb.Deployment.FromString(await self._records.once(call, request, request.request_id, create))
        chained = self._chains.add(row) if stored.etag == row.etag else self._chains.get(stored.name)
        return stored if chained is None else present.chain(chained.row, self._chains.state(chained))

    async def _delete_chain(self, request: pb.DeleteDeploymentRequest, call: Call) -> empty_pb2.Empty:
        project, deployment = names.parse(request.name, "projects/*/deployments/*")
        who, now = actor(call, project), self._clock.now()

        def drop(store: Store) -> None:
            store.drop_ensemble(project, deployment)
            store.record(who, "DeleteDeployment", request.name, now)

        await self._chains.delete(request.name, request.etag, drop)
        return empty_pb2.Empty()

    def _chain(self, name: str, call: Call) -> Chained | None:
        chained = self._chains.get(name)
        return chained if chained is not None and may_see_chain(call, chained) else None

    def _present(self, item: Deployed | Chained) -> pb.Deployment:
        if isinstance(item, Chained):
            return present.chain(item.row, self._chains.state(item))
        return present.deployment(item, self._controller.fleet)
