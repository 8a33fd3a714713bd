"""Composition root of the registry."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sealane import telemetry
from sealane.auth.v1 import audit_service_pb2
from sealane.clock import Clock, SystemClock
from sealane.records.audit import Sealer
from sealane.records.audit_servicer import AuditServicer
from sealane.records.database import Database
from sealane.records.migrate import migrate
from sealane.records.transactions import Transactions
from sealane.registry.v1 import (
    artifact_service_pb2,
    dataset_service_pb2,
    model_service_pb2,
    policy_service_pb2,
    signature_service_pb2,
    variant_service_pb2,
)
from sealane.rpc import host, middleware, order
from sealane.rpc.dispatch import Served
from sealane.security.membership import Membership, Place
from sealane.security.work_grants import WorkGrants
from sealane_registry.access import Access
from sealane_registry.aliases import AliasRules
from sealane_registry.artifact_servicer import ArtifactServicer
from sealane_registry.blobs import BlobFolder
from sealane_registry.catalog import CatalogRules
from sealane_registry.config import Config
from sealane_registry.dataset_servicer import DatasetServicer
from sealane_registry.datasets import DatasetRules
from sealane_registry.facts import facts_of
from sealane_registry.inspector import Inspector
from sealane_registry.limits import Defaults, LimitRules
from sealane_registry.model_servicer import ModelServicer, Rules
from sealane_registry.policy_servicer import PolicyServicer
from sealane_registry.reviews import ReviewRules
from sealane_registry.signature_servicer import SignatureServicer
from sealane_registry.signing import SignatureRules
from sealane_registry.store import Store
from sealane_registry.store_sql import SqlStore
from sealane_registry.variant_servicer import VariantServicer
from sealane_registry.watch import Watches


def defaults_of(config: Config) -> Defaults:
    """What every project may store."""
    return Defaults(config.max_project_bytes, config.max_models, config.max_versions)


def catalog_services(
    records: Transactions[Store], clock: Clock, inspector: Inspector, defaults: Defaults
) -> list[Served]:
    """Everything about models, datasets and policies."""
    watches = Watches(records)
    records.after_write(watches.announce)
    rules = Rules(
        CatalogRules(clock, defaults), AliasRules(clock, facts_of), ReviewRules(clock, facts_of), LimitRules(clock)
    )
    signatures = SignatureServicer(records, SignatureRules(clock), rules.catalog, inspector)
    made: list[tuple[object, object]] = [
        (ModelServicer(records, rules, inspector, watches), model_service_pb2),
        (VariantServicer(records, rules.catalog, rules.reviews, inspector), variant_service_pb2),
        (DatasetServicer(records, DatasetRules(clock)), dataset_service_pb2),
        (PolicyServicer(records, rules.limits, defaults), policy_service_pb2),
        (signatures, signature_service_pb2),
    ]
    return [
        Served(servicer, next(iter(module.DESCRIPTOR.services_by_name.values())))  # type: ignore[attr-defined]
        for servicer, module in made
    ]


async def run(config: Config) -> None:
    """Serve until terminated."""
    clock = SystemClock()
    config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    place = Place(config.data_dir, config.auth, config.auth_mesh, config.trust_bundle, config.join_token)
    member = await asyncio.to_thread(Membership.join, place, "sealane-registry", clock)
    identity = member.identity
    database = Database(config.database) if config.database else Database.at(config.data_dir / "registry.db")
    database.start(lambda connection: migrate(connection, Path(__file__).parent / "migrations"))
    sealer = Sealer(database, "registry", identity, clock, config.audit_checkpoint_file)
    records: Transactions[Store] = Transactions(database, SqlStore, clock)
    telemetry_ = telemetry.configure(
        telemetry.TelemetryConfig("registry", config.trace_file, config.otlp_endpoint, config.sample_ratio)
    )
    chain = middleware.Chain(order.standard(telemetry_=telemetry_, guard=member.guard(clock)))
    access = Access(WorkGrants(lambda: identity.trust_bundle, member.revocations, clock))
    blobs = BlobFolder(config.data_dir)
    artifacts = ArtifactServicer(records, blobs, access, clock)
    await artifacts.sweep()
    services = [
        *catalog_services(records, clock, Inspector(records, blobs), defaults_of(config)),
        Served(artifacts, artifact_service_pb2.DESCRIPTOR.services_by_name["ArtifactService"]),
        Served(AuditServicer(sealer), audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"]),
    ]
    server = host.Host(services, chain, host.Listeners(config.listen, config.mesh_listen))
    ports = await server.start(identity)
    member.start()
    server.health.set(True)
    sealing = asyncio.create_task(sealer.run())
    await host.until_terminated(server, lambda: host.announce(config.data_dir, ports), [sealing])
    host.withdraw(config.data_dir)
    await server.stop()
    sealing.cancel()
    await sealer.close()
    member.stop()
    database.close()
