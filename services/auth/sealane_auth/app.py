"""Composition root of auth."""

from __future__ import annotations

import asyncio
from pathlib import Path

import sqlalchemy as sa
from google.protobuf.descriptor import FileDescriptor

from sealane import telemetry
from sealane.auth.v1 import (
    audit_service_pb2,
    enrollment_service_pb2,
    federation_service_pb2,
    identity_service_pb2,
    sealing_key_service_pb2,
    signing_key_service_pb2,
    token_service_pb2,
)
from sealane.clock import Clock, SystemClock
from sealane.records.audit import Sealer
from sealane.records.audit_servicer import AuditServicer
from sealane.records.database import Database
from sealane.records.migrate import migrate
from sealane.records.transactions import Transactions
from sealane.rpc import host, middleware, order
from sealane.rpc.dispatch import Served
from sealane.rpc.http_listener import HttpListener
from sealane.security import jws, tls
from sealane.security.keys import KeySet, Published
from sealane.security.revocations import Revocations
from sealane.security.tokens import ISSUER, TokenVerifier
from sealane_auth import bootstrap, http_face
from sealane_auth.accounts import AccountRules
from sealane_auth.bootstrap import Secrets
from sealane_auth.config import Config
from sealane_auth.enrollment import Enrollment
from sealane_auth.enrollment_servicer import EnrollmentServicer
from sealane_auth.federation import FederationRules
from sealane_auth.federation_servicer import FederationServicer
from sealane_auth.grants import Settings, TokenRules
from sealane_auth.identity_servicer import IdentityServicer
from sealane_auth.revocations import Hub
from sealane_auth.signing_key_servicer import SealingKeyServicer, SigningKeyServicer
from sealane_auth.site_grants import SiteGrants
from sealane_auth.store import Store
from sealane_auth.store_sql import SqlStore
from sealane_auth.token_servicer import TokenServicer
from sealane_auth.upkeep import Upkeep

AUDIENCE = "sealane-auth"


async def run(config: Config) -> None:
    """Serve until terminated."""
    clock = SystemClock()
    config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    secrets = bootstrap.open_secrets(config, clock)
    enrollment = Enrollment(clock, secrets.authority, secrets.keyring)
    identity = bootstrap.own_identity(config.data_dir / "identity", enrollment, config.hosts)
    database = _database(config, secrets, clock)
    records: Transactions[Store] = Transactions(database, SqlStore, clock)
    verifier, hub = _verifier(database, secrets, records, clock)
    await hub.changed()
    tokens = TokenServicer(records, TokenRules(clock, secrets.keyring, verifier, enrollment, _settings(config)), hub)
    sealer = Sealer(database, "auth", identity, clock, str(config.audit_checkpoint_file or ""))
    http: HttpListener | None = None

    def renew() -> tls.PeerIdentity:
        fresh = bootstrap.own_identity(identity.directory, enrollment, config.hosts)
        if http is not None:
            http.reload(fresh)
        return fresh

    upkeep = Upkeep(records, secrets.keyring, secrets.authority, clock, renew)
    grants = SiteGrants(clock, secrets.keyring)
    rules = (secrets.keyring, enrollment)
    servicers: dict[FileDescriptor, object] = {
        token_service_pb2.DESCRIPTOR: tokens,
        identity_service_pb2.DESCRIPTOR: IdentityServicer(records, AccountRules(clock), hub),
        federation_service_pb2.DESCRIPTOR: FederationServicer(records, FederationRules(clock), hub),
        enrollment_service_pb2.DESCRIPTOR: EnrollmentServicer(records, enrollment, grants, hub),
        signing_key_service_pb2.DESCRIPTOR: SigningKeyServicer(records, rules, hub, clock, upkeep.renewed),
        sealing_key_service_pb2.DESCRIPTOR: SealingKeyServicer(records, enrollment, clock),
        audit_service_pb2.DESCRIPTOR: AuditServicer(sealer),
    }
    served = [Served(servicer, next(iter(file.services_by_name.values()))) for file, servicer in servicers.items()]
    server = host.Host(served, _chain(config, verifier, clock), host.Listeners(config.listen, config.mesh_listen))
    ports = await server.start(identity)
    http = await HttpListener.start(http_face.build(tokens, ISSUER, config.hosts), config.http_listen, identity)
    ports["http"] = http.port
    server.health.set(True)
    loops = [asyncio.create_task(each) for each in (hub.run(verifier.keys), upkeep.run(identity), sealer.run())]
    await host.until_terminated(server, lambda: host.announce(config.data_dir, ports), loops)
    host.withdraw(config.data_dir)
    for task in loops:
        task.cancel()
    await server.stop()
    await http.stop()
    await sealer.close()
    database.close()


def _database(config: Config, secrets: Secrets, clock: Clock) -> Database:
    database = Database.at(config.data_dir / "auth.db")

    def prepare(connection: sa.Connection) -> None:
        migrate(connection, Path(__file__).parent / "migrations")
        admin = config.data_dir / "admin.json"
        bootstrap.ensure_records(SqlStore(connection), secrets.keyring, config.project, admin, clock)

    database.start(prepare)
    return database


def _verifier(
    database: Database, secrets: Secrets, records: Transactions[Store], clock: Clock
) -> tuple[TokenVerifier, Hub]:
    """Auth verifies as the others do, with keys and revocations from its own database."""

    def published() -> Published:
        found = database.read(lambda connection: secrets.keyring.public_keys(SqlStore(connection).keys)).result()
        return Published({kid: jws.encode(raw) for kid, raw in found.items()})

    keys, revocations = KeySet(published), Revocations(clock)
    verifier = TokenVerifier(keys, issuer=ISSUER, audience=AUDIENCE, clock=clock, revocations=revocations)
    revocations.subscribe(keys.expect)
    return verifier, Hub(records, revocations, clock)


def _chain(config: Config, verifier: TokenVerifier, clock: Clock) -> middleware.Chain:
    telemetry_ = telemetry.configure(
        telemetry.TelemetryConfig("auth", config.trace_file, config.otlp_endpoint, config.sample_ratio)
    )
    return middleware.Chain(
        order.standard(telemetry_=telemetry_, guard=order.Guard(verifier, verifier.revocations, clock))
    )


def _settings(config: Config) -> Settings:
    return Settings(
        token_seconds=config.token_seconds,
        key_cache_seconds=config.key_cache_seconds,
        federation_ca=config.federation_ca,
        federation_private=config.federation_private,
    )
