"""Accounts with certificates against a real auth process: tokens by certificate, and the gateway's exchange."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from control_plane import Service

from sealane.auth.v1 import token_service_pb2 as pb
from sealane.auth.v1 import token_service_pb2_grpc
from sealane.client import CertificateCredentials, Client, ClientCredentials, connect
from sealane.errors import InvalidArgument, NotFound, PermissionDenied, Unauthenticated
from sealane.security import enroll, jws, tls

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
X509 = "urn:sealane:params:oauth:token-type:x509"
GATEWAY = "spiffe://sealane/service/inference"


@dataclass(slots=True)
class Mesh:
    """The process, its admin, and the means to join."""

    home: Path
    ports: dict[str, int]
    client: Client

    def join(self, name: str, **subject: str) -> tls.PeerIdentity:
        """A certificate for a subject."""
        token = self.home / f"{name}.token"
        token.write_text(self.client.join_tokens.create(**subject).token)  # type: ignore[arg-type]
        return enroll.ensure(
            enroll.EnrollConfig(
                self.home / name,
                f"127.0.0.1:{self.ports['client']}",
                f"127.0.0.1:{self.ports['mesh']}",
                self.home / "pki" / "ca.pem",
                token,
            )
        )

    def channel(self, identity: tls.PeerIdentity) -> grpc.Channel:
        """A channel to the mesh port that shows a certificate."""
        return enroll.MeshChannel(identity, "auth", f"127.0.0.1:{self.ports['mesh']}")()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    home = tmp_path_factory.mktemp("certificates")
    service = Service("auth", home / "auth", {})
    try:
        ports = service.start()
        (home / "pki").mkdir()
        shutil.copy(service.directory / "pki" / "root.pem", home / "pki" / "ca.pem")
        shutil.copy(service.directory / "admin.json", home / "admin.json")
        (home / "endpoints.json").write_text(json.dumps({"auth": f"127.0.0.1:{ports['client']}"}))
        with connect(home) as client:
            yield Mesh(home, ports, client)
    finally:
        service.stop()


def asked(audience: str = "sealane-inference", **fields: object) -> pb.IssueTokenRequest:
    return pb.IssueTokenRequest(grant_type="client_credentials", audience=audience, **fields)  # type: ignore[arg-type]


def claims_of(token: str) -> dict[str, object]:
    return jws.parse(token, header_names=frozenset({"alg", "kid", "typ"})).claims


def test_an_account_with_a_certificate_needs_no_secret(mesh: Mesh) -> None:
    account = mesh.client.accounts.create("plc", roles=["invoker"])
    identity = mesh.join("plc", account=account.name)
    with mesh.channel(identity) as channel:
        stub = token_service_pb2_grpc.TokenServiceStub(channel)
        claims = claims_of(stub.IssueToken(asked(certificate_bound=True)).access_token)
        assert claims["sub"] == account.name and set(claims["cnf"]) == {"x5t#S256"}  # type: ignore[call-overload]
        assert "cnf" not in claims_of(stub.IssueToken(asked(client_id="plc@default")).access_token)
        with pytest.raises(InvalidArgument):  # two proofs
            stub.IssueToken(asked(client_id="plc@default", client_secret=account.client_secret))
        with pytest.raises(Unauthenticated):
            stub.IssueToken(asked(client_id="admin@default"))
        mesh.client.accounts.delete("plc")
        with pytest.raises((Unauthenticated, PermissionDenied)):
            stub.IssueToken(asked())


def test_a_token_is_bound_to_no_certificate_that_is_not_there(mesh: Mesh) -> None:
    account = mesh.client.accounts.create("phone", roles=["invoker"])
    request = asked(client_id=account.client_id, client_secret=account.client_secret, certificate_bound=True)
    with pytest.raises(InvalidArgument):
        mesh.client._session.issue(request)


def test_a_new_projects_admin_begins_with_a_certificate(mesh: Mesh) -> None:
    mesh.client.projects.create("tenant", admin="root")
    identity = mesh.client.peers.certificate("projects/tenant/serviceAccounts/root", mesh.home / "root")
    endpoints = {"auth": f"127.0.0.1:{mesh.ports['client']}"}
    bundle = mesh.home / "pki" / "ca.pem"
    certificate = CertificateCredentials(identity.directory, f"127.0.0.1:{mesh.ports['mesh']}")
    with Client(endpoints, trust_bundle=bundle, credentials=certificate) as root:
        secret = root.accounts.add_credential("root").secret
    with Client(endpoints, trust_bundle=bundle, credentials=ClientCredentials("root@tenant", secret)) as root:
        assert [account.client_id for account in root.accounts.list()] == ["root@tenant"]
        with pytest.raises(NotFound):
            root.accounts.get("projects/default/serviceAccounts/admin")
        with pytest.raises(PermissionDenied):
            root.roles.bind("root", "admin", platform=True)


def test_the_gateway_exchanges_a_certificate_and_others_may_not(mesh: Mesh) -> None:
    account = mesh.client.accounts.create("scanner", roles=["invoker"])
    chain = mesh.join("scanner", account=account.name).certificate_chain.decode()
    gateway, registry = mesh.join("inference", service="inference"), mesh.join("registry", service="registry")
    request = pb.ExchangeTokenRequest(
        grant_type=EXCHANGE, subject_token=chain, subject_token_type=X509, audience="sealane-inference"
    )
    with mesh.channel(gateway) as channel:
        stub = token_service_pb2_grpc.TokenServiceStub(channel)
        claims = claims_of(stub.ExchangeToken(request).access_token)
        assert claims["sub"] == account.name and claims["act"] == {"sub": GATEWAY}
        assert set(claims["cnf"]) == {"x5t#S256"}  # type: ignore[call-overload]
        for foreign in (gateway.certificate_chain.decode(), "nonsense"):
            wrong = pb.ExchangeTokenRequest()
            wrong.CopyFrom(request)
            wrong.subject_token = foreign
            with pytest.raises((Unauthenticated, InvalidArgument)):
                stub.ExchangeToken(wrong)
        own = mesh.client.token("sealane-inference")
        request_ = pb.ExchangeTokenRequest(
            grant_type=EXCHANGE,
            subject_token=own,
            subject_token_type="urn:ietf:params:oauth:token-type:access_token",
            audience="sealane-inference",
        )
        assert claims_of(stub.ExchangeToken(request_).access_token)["act"] == {"sub": GATEWAY}
    with mesh.channel(registry) as channel, pytest.raises(PermissionDenied):
        token_service_pb2_grpc.TokenServiceStub(channel).ExchangeToken(request)
    with pytest.raises(PermissionDenied):
        mesh.client._session.issue(request)
    mesh.client.peers.evict(GATEWAY)
    with mesh.channel(gateway) as channel, pytest.raises(Unauthenticated):
        token_service_pb2_grpc.TokenServiceStub(channel).ExchangeToken(request)
