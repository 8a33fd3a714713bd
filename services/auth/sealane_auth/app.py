"""Composition root of auth."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
import uvicorn

from sealane import telemetry
from sealane.auth.v1 import (
    enrollment_service_pb2,
    identity_service_pb2,
    sealing_key_service_pb2,
    token_service_pb2,
)
from sealane.clock import SystemClock
from sealane.records.database import Database
from sealane.records.migrate import migrate
from sealane.records.transactions import Transactions
from sealane.rpc import host, middleware
from sealane.rpc.dispatch import Served
from sealane.security import jws, tls
from sealane.security.keys import KeySet
from sealane.security.proof import ProofVerifier
from sealane.security.tokens import TokenVerifier
from sealane_auth import bootstrap, http_face, issuer, servicer
from sealane_auth.config import Config
from sealane_auth.store import Store
from sealane_auth.store_sql import SqlStore

_RENEW_CHECK_SECONDS = 60.0


async def run(config: Config) -> None:
    """Serve until terminated."""
    clock = SystemClock()
    now = datetime.datetime.now(datetime.UTC)
    config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    signer, trust = bootstrap.ensure_authority(config.data_dir / "pki", now)
    identity = bootstrap.own_identity(config.data_dir / "identity", signer, trust, config.hosts, now)
    database = Database.at(config.data_dir / "auth.db")

    def prepare(connection: sa.Connection) -> None:
        migrate(connection, Path(__file__).parent / "migrations")
        admin = config.data_dir / "admin.json"
        bootstrap.ensure_records(SqlStore(connection), config.project, admin, clock.now())

    database.start(prepare)
    records: Transactions[Store] = Transactions(database, SqlStore, clock)
    rules = issuer.Issuer(clock, signer)
    tokens = servicer.TokenServicer(records, rules)
    keys = KeySet(
        lambda: database.read(lambda c: {k: jws.encode(v) for k, v in issuer.public_keys(SqlStore(c)).items()}).result()
    )
    chain = middleware.Chain(
        middleware.standard(
            telemetry_=telemetry.configure(
                telemetry.TelemetryConfig("auth", config.trace_file, config.otlp_endpoint, config.sample_ratio)
            ),
            verifier=TokenVerifier(keys, issuer=issuer.ISSUER, audience="sealane-auth", clock=clock),
            proofs=ProofVerifier(clock),
        )
    )
    services = _services(tokens, records, rules, trust)
    server = host.Host(services, chain, host.Listeners(config.listen, config.mesh_listen))
    ports = await server.start(identity)
    http, ports["http"] = await _serve_http(http_face.build(tokens, issuer.ISSUER), config.http_listen, identity)
    server.health.set(True)

    async def renew_own_certificate() -> None:
        while True:
            await asyncio.sleep(_RENEW_CHECK_SECONDS)
            today = datetime.datetime.now(datetime.UTC)
            if identity.renewal_due(today):
                bootstrap.own_identity(identity.directory, signer, trust, config.hosts, today)
                http.reload(identity)

    renewal = asyncio.create_task(renew_own_certificate())
    await host.until_terminated(lambda: host.announce(config.data_dir, ports), [renewal])
    renewal.cancel()
    host.withdraw(config.data_dir)
    await server.stop()
    await http.stop()
    database.close()


def _services(
    tokens: servicer.TokenServicer, records: Transactions[Store], rules: issuer.Issuer, trust: bytes
) -> list[Served]:
    return [
        Served(tokens, token_service_pb2.DESCRIPTOR.services_by_name["TokenService"]),
        Served(
            servicer.IdentityServicer(records, rules),
            identity_service_pb2.DESCRIPTOR.services_by_name["IdentityService"],
        ),
        Served(
            servicer.EnrollmentServicer(records, rules, trust),
            enrollment_service_pb2.DESCRIPTOR.services_by_name["EnrollmentService"],
        ),
        Served(
            servicer.SealingKeyServicer(records, rules),
            sealing_key_service_pb2.DESCRIPTOR.services_by_name["SealingKeyService"],
        ),
    ]


class _Http(uvicorn.Server):
    """uvicorn without its own signal handlers: the host has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


class _HttpFace:
    """The HTTPS listener while it runs."""

    def __init__(self, server: uvicorn.Server, task: asyncio.Task[None]) -> None:
        self._server = server
        self._task = task

    def reload(self, identity: tls.PeerIdentity) -> None:
        """Use the files of `identity` for new connections."""
        context = self._server.config.ssl
        assert context is not None
        context.load_cert_chain(identity.directory / tls.CHAIN, identity.directory / tls.KEY)

    async def stop(self) -> None:
        """Finish what runs and close."""
        self._server.should_exit = True
        await self._task


async def _serve_http(application: object, address: str, identity: tls.PeerIdentity) -> tuple[_HttpFace, int]:
    name, _, port = address.rpartition(":")
    settings = uvicorn.Config(
        application,  # type: ignore[arg-type]  # an ASGI application
        host=name,
        port=int(port),
        ssl_keyfile=str(identity.directory / tls.KEY),
        ssl_certfile=str(identity.directory / tls.CHAIN),
        log_level="warning",
        lifespan="off",
        server_header=False,
        limit_concurrency=100,
    )
    server = _Http(settings)
    task = asyncio.create_task(server.serve())
    while not server.started:
        if task.done():
            raise OSError(f"cannot listen on {address}; is the port taken?")
        await asyncio.sleep(0.01)
    return _HttpFace(server, task), int(server.servers[0].sockets[0].getsockname()[1])
