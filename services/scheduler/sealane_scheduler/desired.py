"""What each worker is to do, as its stream tells it."""

from __future__ import annotations

from dataclasses import dataclass

from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.scheduler.v1 import deployment_service_pb2 as deployment_pb
from sealane.scheduler.v1 import fleet_service_pb2 as pb
from sealane_scheduler.controller import Controller
from sealane_scheduler.ensembles import Ensembles
from sealane_scheduler.gateways import Gateways
from sealane_scheduler.grants import Grants
from sealane_scheduler.job_loop import JobLoop
from sealane_scheduler.present import labels_of
from sealane_scheduler.task_loop import TaskLoop


@dataclass(frozen=True, slots=True)
class DesiredStates:
    """Puts together what concerns a worker."""

    _controller: Controller
    _chains: Ensembles
    _loop: JobLoop
    _task_loop: TaskLoop
    _gateways: Gateways
    _grants: Grants

    async def of(self, node: str, revision: int) -> pb.DesiredState:
        """All that a worker is to do."""
        message = pb.DesiredState(revision=revision, gateways=self._gateways.addresses())
        for item, copy in self._controller.copies_on(node):
            version = model_pb.Version.FromString(item.row.version)
            variant = next((v for v in version.variants if v.name.endswith(f"/{copy.row.variant}")), None)
            if variant is None:
                continue
            demand = deployment_pb.Demand.FromString(item.row.demand)
            message.assignments.append(
                pb.Assignment(
                    deployment=item.row.name,
                    model_version=item.row.model_version,
                    variant=variant,
                    signatures=version.signatures,
                    epoch=copy.row.epoch,
                    data_class=demand.data_class,
                    pinned=demand.pinned,
                    grant=self._grants.to_serve(node, variant.name),
                    served_name=item.row.served_name,
                    labels=labels_of(item.row),
                )
            )
        for chained in self._chains.served_by(item.deployment for item in message.assignments):
            row = chained.row
            message.ensembles.add(deployment=row.name, epoch=row.epoch, ensemble=chained.message)
        for task in [*await self._loop.tasks_of(node), *self._task_loop.tasks_of(node)]:
            held = message.tasks.add()
            held.CopyFrom(task)
            for checked in held.check.variants:
                checked.grant = self._grants.to_serve(node, checked.variant.name)
            if not held.HasField("check"):
                held.grant = self._grants.to_work(node, task)
        return message
