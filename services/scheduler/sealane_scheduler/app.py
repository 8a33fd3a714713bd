"""Composition root of the scheduler."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from sealane import allocation, collector, telemetry
from sealane.auth.v1 import audit_service_pb2
from sealane.clock import SystemClock
from sealane.errors import InvalidArgument
from sealane.records.audit import Sealer
from sealane.records.audit_servicer import AuditServicer
from sealane.records.database import Database
from sealane.records.migrate import migrate
from sealane.records.transactions import Transactions
from sealane.rpc import host, middleware, order
from sealane.rpc.dispatch import Served
from sealane.scheduler.v1 import (
    deployment_service_pb2,
    fleet_service_pb2,
    job_service_pb2,
    node_service_pb2,
    placement_service_pb2,
    routing_service_pb2,
    served_model_service_pb2,
)
from sealane.security.membership import Membership, Place
from sealane_scheduler import columns, servicer, task_kinds
from sealane_scheduler.config import Config
from sealane_scheduler.controller import Controller
from sealane_scheduler.deployment_servicer import DeploymentServicer
from sealane_scheduler.desired import DesiredStates
from sealane_scheduler.drains import Drains
from sealane_scheduler.ensembles import Ensembles
from sealane_scheduler.filters import SANDBOX
from sealane_scheduler.fleet import Fleet, Patience
from sealane_scheduler.fleet_servicer import FleetServicer
from sealane_scheduler.gateways import Gateways
from sealane_scheduler.grants import Grants
from sealane_scheduler.job_loop import JobLoop
from sealane_scheduler.job_servicer import JobServicer
from sealane_scheduler.jobs import JobRules
from sealane_scheduler.leadership import Leadership, holder_in
from sealane_scheduler.node_servicer import NodeServicer
from sealane_scheduler.placement_servicer import PlacementServicer
from sealane_scheduler.quota_shares import QuotaShares
from sealane_scheduler.recovery import RECONNECT_SECONDS, TAKEOVER_SECONDS, Pace
from sealane_scheduler.registry_port import RegistryPort
from sealane_scheduler.served_model_servicer import ServedModelServicer
from sealane_scheduler.served_models import ServedModels
from sealane_scheduler.store import Store
from sealane_scheduler.store_sql import SqlStore
from sealane_scheduler.task_loop import TaskLoop
from sealane_scheduler.tasks import TaskRules
from sealane_scheduler.use_reports import UseReports
from sealane_scheduler.versions import Versions

#: Takes up what is recorded, with seconds for nodes to come to this process; returns the loops.
Lead = Callable[[float], Awaitable[Sequence[Coroutine[None, None, None]]]]

#: A process that is stopped in the middle of a transaction keeps its locks for no longer, so that another takes over.
STOPPED_SECONDS = 4.0


def _sandbox(config: Config) -> dict[str, str]:
    """Tier -> least sandbox of its workers.

    Raises:
        InvalidArgument: a level that does not exist.
    """
    levels = {"cloud": config.sandbox_cloud, "edge": config.sandbox_edge}
    if unknown := sorted(set(levels.values()) - SANDBOX.keys()):
        raise InvalidArgument(
            f"sandbox level {unknown} is unknown; use one of {list(SANDBOX)}", reason="SETTING_INVALID"
        )
    return levels


def _pace(config: Config) -> Pace:
    """How fast lost copies are placed anew.

    Raises:
        InvalidArgument: a rate at which nothing ever would be.
    """
    if not 0 < config.replacement_rate < math.inf or config.replacement_burst < 1:
        raise InvalidArgument(
            "replacement_rate must be more than 0 and replacement_burst at least 1", reason="SETTING_INVALID"
        )
    return Pace(config.replacement_rate, config.replacement_burst)


def _registry_loops(
    records: Transactions[Store], controller: Controller, registry: RegistryPort, clock: SystemClock
) -> tuple[Coroutine[None, None, None], ...]:
    """What keeps registry and scheduler in line with each other; in the process that decides alone."""
    return Versions(controller, registry).run(), UseReports(records, registry, clock).run()


def _services(served: Mapping[ModuleType, object]) -> list[Served]:
    """The one service of each module, with what implements it."""
    return [
        Served(implementation, next(iter(module.DESCRIPTOR.services_by_name.values())))
        for module, implementation in served.items()
    ]


def _database(config: Config) -> Database:
    """The database that is named, or the file in the folder; with every migration."""
    own = f"sqlite:///{config.data_dir / 'scheduler.db'}"
    database = Database(config.database or own, STOPPED_SECONDS)
    database.start(lambda connection: migrate(connection, Path(__file__).parent / "migrations"))
    return database


async def run(config: Config) -> None:
    """Serve until terminated."""
    allocation.keep_freed(columns.KEPT_BYTES, columns.KEPT_BYTES // 2)
    clock = SystemClock()
    config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    place = Place(config.data_dir, config.auth, config.auth_mesh, config.trust_bundle, config.join_token)
    member = await asyncio.to_thread(Membership.join, place, "sealane-scheduler", clock)
    database = await asyncio.to_thread(_database, config)
    leadership = Leadership(database, holder_in(config.data_dir), clock)
    sealer = Sealer(database, "scheduler", member.identity, clock, config.audit_checkpoint_file)
    served, lead, leave = _compose(config, member, database, leadership, sealer)
    telemetry_ = telemetry.configure(
        telemetry.TelemetryConfig("scheduler", config.trace_file, config.otlp_endpoint, config.sample_ratio)
    )
    guard = member.guard(clock, quota=[leadership])
    chain = middleware.Chain(order.standard(telemetry_=telemetry_, guard=guard))
    server = host.Host(_services(served), chain, host.Listeners(config.listen, config.mesh_listen))
    ports = await server.start(member.identity)
    member.start()

    async def in_turn() -> None:
        """Wait for the lead, take up what is recorded, and work until the lead is lost."""
        others = await leadership.gain(_reached(config, ports), lambda: host.announce(config.data_dir, ports))
        keeping = asyncio.create_task(leadership.keep())
        works = await lead(TAKEOVER_SECONDS if others else RECONNECT_SECONDS)
        leadership.open()
        server.health.set(True)
        host.announce(config.data_dir, ports)
        await asyncio.gather(keeping, *works, sealer.run())

    working = asyncio.create_task(in_turn())
    await host.until_terminated(server, loops=[working])
    host.withdraw(config.data_dir)
    await server.stop()
    working.cancel()
    if leadership.leads:
        await sealer.close()
    leadership.give_up()
    leave()
    member.stop()
    database.close()


def _reached(config: Config, ports: Mapping[str, int]) -> tuple[str, str]:
    """Where others reach the client port and the mesh port."""
    client, mesh = (listen.rpartition(":")[0] for listen in (config.listen, config.mesh_listen))
    return (
        config.advertise or f"{client}:{ports['client']}",
        config.advertise_mesh or f"{mesh}:{ports['mesh']}",
    )


def _compose(
    config: Config, member: Membership, database: Database, leadership: Leadership, sealer: Sealer
) -> tuple[dict[ModuleType, object], Lead, Callable[[], None]]:
    """The services, what is done once this process leads, and what is done when it ends."""
    clock = SystemClock()
    records: Transactions[Store] = Transactions(database, SqlStore, clock)
    registry = RegistryPort(member.channel("registry", config.registry_mesh))
    fleet = Fleet(clock, Patience(config.cloud_lost_after, config.edge_lost_after), _sandbox(config))
    controller = Controller(records, fleet, clock, _pace(config))
    controller.check = leadership.check
    chains = Ensembles(records, controller)
    rules, gateways = JobRules(clock, config.task_lease), Gateways()
    tasks = TaskRules(clock, config.task_lease, task_kinds.gather)
    loop = JobLoop(records, rules, controller, registry)
    task_loop = TaskLoop(records, (tasks, rules), controller, registry)
    drains = Drains(controller, (loop, task_loop), clock)
    served_models = ServedModels(records, controller, chains, registry, clock)
    desired = DesiredStates(controller, chains, loop, task_loop, gateways, Grants(member.identity, clock))
    served: dict[ModuleType, object] = {
        deployment_service_pb2: DeploymentServicer(records, controller, chains, registry, clock),
        placement_service_pb2: PlacementServicer(records, controller, registry, clock),
        node_service_pb2: NodeServicer(controller, drains, clock),
        routing_service_pb2: servicer.RoutingServicer(
            controller, chains, gateways, QuotaShares(clock.monotonic()), clock
        ),
        job_service_pb2: JobServicer(records, rules, registry, controller.changes, tasks=tasks, task_loop=task_loop),
        served_model_service_pb2: ServedModelServicer(served_models, member.keys, member.revocations, clock),
        audit_service_pb2: AuditServicer(sealer),
        fleet_service_pb2: FleetServicer(
            controller, (loop, task_loop), desired, member.keys, member.revocations, clock
        ),
    }

    async def lead(grace: float) -> Sequence[Coroutine[None, None, None]]:
        await controller.load(grace)
        await chains.load()
        await asyncio.gather(loop.prepare(), task_loop.prepare(grace))
        await served_models.recover()
        collector.settle()
        own = (controller.run(), loop.run(), task_loop.run(), drains.run())
        return (*own, *_registry_loops(records, controller, registry, clock))

    return served, lead, registry.close
