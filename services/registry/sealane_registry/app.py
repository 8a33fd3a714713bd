"""Composition root of the registry."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sealane import allocation, telemetry
from sealane.auth.v1 import audit_service_pb2
from sealane.clock import SystemClock
from sealane.records.audit import Sealer
from sealane.records.audit_servicer import AuditServicer
from sealane.records.database import Database
from sealane.records.migrate import migrate, newest
from sealane.records.transactions import Transactions
from sealane.registry.v1 import artifact_service_pb2, backup_service_pb2
from sealane.rpc import host, middleware, order
from sealane.rpc.dispatch import Served
from sealane.security.membership import Membership, Place
from sealane.security.work_grants import WorkGrants
from sealane_registry.access import Access
from sealane_registry.artifact_servicer import ArtifactServicer
from sealane_registry.backup_servicer import BackupServicer
from sealane_registry.catalog_services import catalog_services, defaults_of
from sealane_registry.config import Config
from sealane_registry.files import files_of
from sealane_registry.inspector import Inspector
from sealane_registry.store import Store
from sealane_registry.store_sql import SqlStore
from sealane_registry.upkeep import Collecting, Encrypting, Scrubbing

#: What each of two arenas keeps: buffers of transfers.
KEPT_BYTES = 8 << 20
MIGRATIONS = Path(__file__).parent / "migrations"


async def run(config: Config) -> None:
    """Serve until terminated."""
    allocation.keep_freed(KEPT_BYTES, KEPT_BYTES, arenas=2)
    clock = SystemClock()
    config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    place = Place(config.data_dir, config.auth, config.auth_mesh, config.trust_bundle, config.join_token)
    member = await asyncio.to_thread(Membership.join, place, "sealane-registry", clock)
    identity = member.identity
    database = Database(config.database) if config.database else Database.at(config.data_dir / "registry.db")
    database.start(lambda connection: migrate(connection, MIGRATIONS))
    sealer = Sealer(database, "registry", identity, clock, config.audit_checkpoint_file)
    records: Transactions[Store] = Transactions(database, SqlStore, clock)
    telemetry_ = telemetry.configure(
        telemetry.TelemetryConfig("registry", config.trace_file, config.otlp_endpoint, config.sample_ratio)
    )
    chain = middleware.Chain(order.standard(telemetry_=telemetry_, guard=member.guard(clock)))
    access = Access(WorkGrants(lambda: identity.trust_bundle, member.revocations, clock))
    files = await asyncio.to_thread(files_of, config)
    artifacts = ArtifactServicer(records, files, access, clock, defaults=defaults_of(config))
    await artifacts.sweep()
    backups = BackupServicer(
        database, records, files.blobs, clock, folder=config.data_dir, schema_revision=newest(MIGRATIONS)
    )
    services = [
        Served(backups, backup_service_pb2.DESCRIPTOR.services_by_name["BackupService"]),
        *catalog_services(records, clock, Inspector(records, files.blobs), defaults_of(config)),
        Served(
            artifacts,
            artifact_service_pb2.DESCRIPTOR.services_by_name["ArtifactService"],
            raw=frozenset({"UploadChunks"}),  # a message would copy each chunk
        ),
        Served(AuditServicer(sealer), audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"]),
    ]
    server = host.Host(services, chain, host.Listeners(config.listen, config.mesh_listen))
    ports = await server.start(identity)
    member.start()
    server.health.set(True)
    sealing = asyncio.create_task(sealer.run())
    scrubbing = Scrubbing(files.blobs, records, clock, config.scrub_mib_per_second * (1 << 20))
    collecting = Collecting(files.blobs, records, clock, lambda: backups.holding)
    encrypting = Encrypting(files.blobs, config.encrypt_mib_per_second * (1 << 20))
    upkeep = [
        asyncio.create_task(encrypting.run()),
        asyncio.create_task(scrubbing.run(config.scrub_seconds)),
        asyncio.create_task(collecting.run(config.collect_seconds)),
    ]
    await host.until_terminated(server, lambda: host.announce(config.data_dir, ports), [sealing])
    host.withdraw(config.data_dir)
    scrubbing.stop()
    encrypting.stop()
    await server.stop()
    for task in upkeep:
        task.cancel()
    sealing.cancel()
    await sealer.close()
    member.stop()
    database.close()
