"""Composition root of the registry."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sealane import telemetry
from sealane.clock import SystemClock
from sealane.records.database import Database
from sealane.records.migrate import migrate
from sealane.records.transactions import Transactions
from sealane.registry.v1 import artifact_service_pb2, model_service_pb2, variant_service_pb2
from sealane.rpc import host, middleware
from sealane.rpc.dispatch import Served
from sealane.security import enroll
from sealane.security.keys import KeySet
from sealane.security.proof import ProofVerifier
from sealane.security.tokens import ISSUER, TokenVerifier
from sealane_registry.artifact_servicer import ArtifactServicer
from sealane_registry.blobs import BlobFolder
from sealane_registry.catalog import CatalogRules
from sealane_registry.config import Config
from sealane_registry.servicer import ModelServicer, VariantServicer
from sealane_registry.store import Store
from sealane_registry.store_sql import SqlStore


async def run(config: Config) -> None:
    """Serve until terminated."""
    clock = SystemClock()
    config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    enrollment = enroll.EnrollConfig(
        config.data_dir / "identity", config.auth, config.auth_mesh, config.trust_bundle, config.join_token
    )
    identity = await asyncio.to_thread(enroll.ensure, enrollment)
    database = Database.at(config.data_dir / "registry.db")
    database.start(lambda connection: migrate(connection, Path(__file__).parent / "migrations"))
    records: Transactions[Store] = Transactions(database, SqlStore, clock)
    fetch = enroll.fetch_keys(enroll.MeshChannel(identity, "auth", config.auth_mesh))
    keys = KeySet(fetch, config.data_dir / "jwks.json")
    chain = middleware.Chain(
        middleware.standard(
            telemetry_=telemetry.configure(
                telemetry.TelemetryConfig("registry", config.trace_file, config.otlp_endpoint, config.sample_ratio)
            ),
            verifier=TokenVerifier(keys, issuer=ISSUER, audience="sealane-registry", clock=clock),
            proofs=ProofVerifier(clock),
        )
    )
    rules = CatalogRules(clock)
    artifacts = ArtifactServicer(records, BlobFolder(config.data_dir), clock)
    await artifacts.sweep()
    services = [
        Served(ModelServicer(records, rules), model_service_pb2.DESCRIPTOR.services_by_name["ModelService"]),
        Served(VariantServicer(records, rules), variant_service_pb2.DESCRIPTOR.services_by_name["VariantService"]),
        Served(artifacts, artifact_service_pb2.DESCRIPTOR.services_by_name["ArtifactService"]),
    ]
    server = host.Host(services, chain, host.Listeners(config.listen, config.mesh_listen))
    ports = await server.start(identity)
    renewer = enroll.Renewer(enrollment, identity)
    renewer.start()
    server.health.set(True)
    await host.until_terminated(lambda: host.announce(config.data_dir, ports))
    host.withdraw(config.data_dir)
    await server.stop()
    renewer.stop()
    database.close()
