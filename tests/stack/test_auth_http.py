"""A real auth process over TLS: Authlib as the client, Keycloak- and GitHub-shaped issuers beside it."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from authlib.integrations.requests_client import OAuth2Session
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from control_plane import Service
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc.jwk import ECKey, RSAKey
from oidc_issuer import OidcIssuer, running

from sealane.auth.v1 import federation_service_pb2 as federation_pb
from sealane.auth.v1 import federation_service_pb2_grpc, identity_service_pb2_grpc, token_service_pb2_grpc
from sealane.auth.v1 import identity_service_pb2 as identity_pb
from sealane.auth.v1 import token_service_pb2 as token_pb
from sealane.client import Client, connect
from sealane.errors import PermissionDenied, SealaneError, Unauthenticated
from sealane.rpc.channel import Target
from sealane.rpc.channel import connect as channel_to
from sealane.security import jws, proof
from sealane.security.tokens import ISSUER

ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT = "urn:ietf:params:oauth:token-type:jwt"
PHRASE = "correct horse battery"

pytestmark = pytest.mark.filterwarnings("ignore::authlib.deprecate.AuthlibDeprecationWarning")


@dataclass(slots=True)
class Auth:
    """The process, its address, and a client of the first admin."""

    url: str
    ca_file: str
    client: Client
    stubs: dict[str, object]
    sessions: list[OAuth2Session] = field(default_factory=list)

    def account(self, *roles: str, **fields: object) -> identity_pb.ServiceAccount:
        """A new account."""
        request = identity_pb.CreateServiceAccountRequest(
            parent="projects/default",
            service_account_id=f"t{uuid.uuid4().hex[:10]}",
            roles=roles,
            **fields,  # type: ignore[arg-type]
        )
        return self.stubs["identity"].CreateServiceAccount(request)  # type: ignore[attr-defined, no-any-return]

    def session(self, client_id: str, secret: object = None, **settings: object) -> OAuth2Session:
        """A client as Authlib makes it."""
        made = OAuth2Session(client_id, secret, token_endpoint=f"{self.url}/oauth2/token", **settings)
        made.verify, made.trust_env = self.ca_file, False
        self.sessions.append(made)
        return made

    def discovery(self) -> dict[str, object]:
        """The discovery document."""
        session = self.session("nobody")
        return session.request("GET", f"{self.url}/.well-known/openid-configuration", withhold_token=True).json()  # type: ignore[no-any-return]

    def claims(self, token: str) -> dict[str, object]:
        """What a token says."""
        return jws.parse(token, header_names=frozenset({"alg", "kid", "typ"})).claims


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OidcIssuer]:
    with running(tmp_path_factory.mktemp("issuer"), "/realms/acme") as made:
        yield made


@pytest.fixture(scope="module")
def auth(tmp_path_factory: pytest.TempPathFactory, issuer: OidcIssuer) -> Iterator[Auth]:
    home = tmp_path_factory.mktemp("auth-http")
    settings = {"FEDERATION_CA": str(issuer.ca_file), "FEDERATION_PRIVATE": "true"}
    service = Service("auth", home / "auth", settings)
    try:
        ports = service.start()
        (home / "pki").mkdir()
        ca_file = home / "pki" / "ca.pem"
        shutil.copy(service.directory / "pki" / "root.pem", ca_file)
        shutil.copy(service.directory / "admin.json", home / "admin.json")
        (home / "endpoints.json").write_text(json.dumps({"auth": f"127.0.0.1:{ports['client']}"}))
        with connect(home) as client:
            channel = client._session.channel("auth")
            target = Target(f"127.0.0.1:{ports['client']}", ca_file.read_bytes(), "auth.service.sealane")
            stubs = {
                "identity": identity_service_pb2_grpc.IdentityServiceStub(channel),
                "federation": federation_service_pb2_grpc.FederationServiceStub(channel),
                "token": token_service_pb2_grpc.TokenServiceStub(channel),
            }
            with channel_to(target) as public:
                stubs["public"] = token_service_pb2_grpc.TokenServiceStub(public)
                made = Auth(f"https://127.0.0.1:{ports['http']}", str(ca_file), client, stubs)
                yield made
                for session in made.sessions:
                    session.close()
    finally:
        service.stop()


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
def test_client_credentials(auth: Auth, method: str) -> None:
    account = auth.account("invoker")
    session = auth.session(account.client_id, account.client_secret, token_endpoint_auth_method=method)
    token = session.fetch_token(grant_type="client_credentials", scope="infer", audience="sealane-inference")
    assert (token["token_type"], token["scope"], token["expires_in"]) == ("Bearer", "infer", 300)
    assert auth.claims(token["access_token"])["sub"] == account.name
    with pytest.raises(Exception, match="invalid_scope"):
        session.fetch_token(grant_type="client_credentials", scope="admin")
    wrong = auth.session(account.client_id, "x" * 43, token_endpoint_auth_method=method)
    with pytest.raises(Exception, match="invalid_client"):
        wrong.fetch_token(grant_type="client_credentials")


def rsa_key() -> tuple[str, object, dict[str, object]]:
    key = RSAKey.generate_key(2048)
    return "RS256", key.as_pem(private=True), key.as_dict(private=False)


def p256_key() -> tuple[str, object, dict[str, object]]:
    key = ECKey.generate_key("P-256")
    return "ES256", key, key.as_dict(private=False)


@pytest.mark.parametrize("make", [rsa_key, p256_key])
@pytest.mark.parametrize("audience", ["endpoint", "issuer"])
def test_private_key_jwt(auth: Auth, make: Callable[[], tuple[str, object, dict[str, object]]], audience: str) -> None:
    algorithm, key, jwk = make()
    account = auth.account("invoker", credential=identity_pb.Credential(public_key_jwk=json.dumps(jwk)))
    endpoint = f"{auth.url}/oauth2/token"
    with auth.session(account.client_id, key, token_endpoint_auth_method="private_key_jwt") as session:
        session.register_client_auth_method(
            PrivateKeyJWT(endpoint if audience == "endpoint" else ISSUER, alg=algorithm)
        )
        for _ in range(2):  # each with an assertion of its own
            token = session.fetch_token(grant_type="client_credentials")
            assert auth.claims(token["access_token"])["client_id"] == account.client_id


def test_refresh_introspection_and_revocation(auth: Auth) -> None:
    account = auth.account("invoker", "operator")
    session = auth.session(account.client_id, account.client_secret)
    first = session.fetch_token(grant_type="client_credentials", scope="infer offline_access")
    second = session.refresh_token(refresh_token=first["refresh_token"])
    assert second["refresh_token"] != first["refresh_token"] and second["scope"] == "infer"
    found = session.introspect_token(f"{auth.url}/oauth2/introspect", token=second["access_token"]).json()
    assert found["active"] is True and found["sub"] == account.name and found["iss"] == ISSUER
    assert session.revoke_token(f"{auth.url}/oauth2/revoke", token=second["refresh_token"]).status_code == 200
    for token in (first, second):
        found = session.introspect_token(f"{auth.url}/oauth2/introspect", token=token["access_token"]).json()
        assert found == {"active": False}
    with pytest.raises(Exception, match="invalid_grant"):
        session.refresh_token(refresh_token=second["refresh_token"])


def test_exchange(auth: Auth) -> None:
    account = auth.account("invoker", "viewer")
    session = auth.session(account.client_id, account.client_secret)
    token = session.fetch_token(grant_type="client_credentials")["access_token"]
    asked = {"grant_type": EXCHANGE, "subject_token": token, "subject_token_type": ACCESS_TOKEN}
    narrowed = session.fetch_token(**asked, scope="infer", model_prefixes="digits-")
    assert (narrowed["scope"], narrowed["issued_token_type"]) == ("infer", ACCESS_TOKEN)
    assert auth.claims(narrowed["access_token"])["models"] == {"infer": ["digits-"]}
    with pytest.raises(Exception, match="invalid_scope"):
        session.fetch_token(**asked, scope="deploy")
    with pytest.raises(Exception, match="invalid_target"):
        session.fetch_token(**asked, audience="elsewhere")


def test_every_endpoint_that_discovery_names_is_there(auth: Auth) -> None:
    found = auth.discovery()
    session = auth.session("nobody")
    for name in ("token_endpoint", "introspection_endpoint", "revocation_endpoint"):
        assert session.request("POST", str(found[name]), withhold_token=True).status_code in (400, 401)
    keys = session.request("GET", str(found["jwks_uri"]), withhold_token=True)
    assert keys.json()["keys"] and keys.headers["cache-control"] == "public, max-age=300"


def trust(auth: Auth, issuer: OidcIssuer, claims: dict[str, str], *roles: str, prefix: str = "") -> str:
    """Trust the issuer by one rule; returns the name of the trust."""
    rule = federation_pb.ClaimRule(claims=claims, roles=roles, model_prefix=prefix)
    request = federation_pb.CreateTrustedIssuerRequest(
        parent="projects/default",
        trusted_issuer_id=f"i{uuid.uuid4().hex[:10]}",
        trusted_issuer=federation_pb.TrustedIssuer(issuer=issuer.url, audience="sealane", rules=[rule]),
    )
    return str(auth.stubs["federation"].CreateTrustedIssuer(request).name)  # type: ignore[attr-defined]


@pytest.fixture
def distrusted(auth: Auth) -> Iterator[None]:
    yield
    stub = auth.stubs["federation"]
    request = federation_pb.ListTrustedIssuersRequest(parent="projects/default")
    for found in stub.ListTrustedIssuers(request).trusted_issuers:  # type: ignore[attr-defined]
        stub.DeleteTrustedIssuer(federation_pb.DeleteTrustedIssuerRequest(name=found.name))  # type: ignore[attr-defined]


def exchange(auth: Auth, token: str, **fields: object) -> token_pb.IssueTokenResponse:
    """Exchange an external token by gRPC, without any credential of ours."""
    request = token_pb.ExchangeTokenRequest(
        grant_type=EXCHANGE,
        subject_token=token,
        subject_token_type=JWT,
        audience="sealane-registry",
        project="projects/default",
    )
    request.MergeFrom(token_pb.ExchangeTokenRequest(**fields))  # type: ignore[arg-type]
    return auth.stubs["public"].ExchangeToken(request)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.usefixtures("distrusted")
def test_a_person_comes_from_keycloak(auth: Auth, issuer: OidcIssuer) -> None:
    trust(auth, issuer, {"realm_access.roles": "ml-engineer", "azp": "ml-portal"}, "publisher")
    issued = exchange(auth, issuer.keycloak_token("ml-engineer"), scope="models:read models:write")
    claims = auth.claims(issued.access_token)
    assert str(claims["sub"]).endswith("/f%3A1b2c%3Aada") and claims["scope"] == "models:read models:write"
    for refused, kind in (
        (issuer.keycloak_token("ml-guest"), PermissionDenied),
        (issuer.keycloak_token("ml-engineer", azp="other"), PermissionDenied),
        (issuer.keycloak_token("ml-engineer", aud=["account"]), Unauthenticated),
        (issuer.keycloak_token("ml-engineer", iss="https://localhost"), Unauthenticated),
        (issuer.keycloak_token("ml-engineer", exp=1), Unauthenticated),
    ):
        with pytest.raises(kind):
            exchange(auth, refused)


@pytest.mark.usefixtures("distrusted")
def test_a_pipeline_comes_from_github_and_loses_all_with_the_trust(auth: Auth, issuer: OidcIssuer) -> None:
    name = trust(auth, issuer, {"sub": "repo:acme/*:ref:refs/heads/main"}, "publisher", prefix="digits-")
    issued = exchange(auth, issuer.github_token())
    claims = auth.claims(issued.access_token)
    assert claims["models"]["models:write"] == ["digits-"]  # type: ignore[index]
    with pytest.raises(PermissionDenied):
        exchange(auth, issuer.github_token(ref="refs/pull/7/merge"))
    session = auth.session("nobody")
    by_http = {
        "grant_type": EXCHANGE,
        "subject_token": issuer.github_token(),
        "subject_token_type": JWT,
        "project": "projects/default",
        "audience": "sealane-registry",
    }
    url = f"{auth.url}/oauth2/token"
    assert session.request("POST", url, withhold_token=True, data=by_http).status_code == 200
    ask = token_pb.IntrospectTokenRequest(token=issued.access_token)
    assert auth.stubs["token"].IntrospectToken(ask).active  # type: ignore[attr-defined]
    auth.stubs["federation"].DeleteTrustedIssuer(  # type: ignore[attr-defined]
        federation_pb.DeleteTrustedIssuerRequest(name=name)
    )
    assert not auth.stubs["token"].IntrospectToken(ask).active  # type: ignore[attr-defined]
    with pytest.raises(Unauthenticated):
        exchange(auth, issuer.github_token())


def test_a_dpop_proof_at_the_token_endpoint_binds_the_token_for_grpc(auth: Auth) -> None:
    account = auth.account("operator")
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    url, session = f"{auth.url}/oauth2/token", auth.session("nobody")
    claims = {"jti": str(uuid.uuid4()), "htm": "POST", "htu": url, "iat": int(time.time())}
    header = {"dpop": jws.sign(key, {"typ": "dpop+jwt", "jwk": jws.public_jwk(public)}, claims)}
    form = {
        "grant_type": "client_credentials",
        "client_id": account.client_id,
        "client_secret": account.client_secret,
        "audience": "sealane-auth",
    }
    answer = session.request("POST", url, withhold_token=True, data=form, headers=header).json()
    assert answer["token_type"] == "DPoP"
    stub, path = auth.stubs["public"], "/sealane.auth.v1.TokenService/IntrospectToken"
    ask = token_pb.IntrospectTokenRequest(token=answer["access_token"])
    bearer = [("authorization", f"DPoP {answer['access_token']}")]
    with pytest.raises(SealaneError) as caught:
        stub.IntrospectToken(ask, metadata=bearer)  # type: ignore[attr-defined]
    assert caught.value.kind == "UNAUTHENTICATED"
    proven = proof.prove(key, method_path=path, token=answer["access_token"], now=time.time())
    found = stub.IntrospectToken(ask, metadata=[*bearer, ("dpop", proven)])  # type: ignore[attr-defined]
    assert found.active and found.key_thumbprint == jws.thumbprint(public)


def test_state_survives_kill(tmp_path: Path) -> None:
    """What was acknowledged is there after kill -9: an account, its session, and what was revoked."""
    service = Service("auth", tmp_path / "auth", {})
    try:
        for attempt in range(2):
            ports = service.start()
            (tmp_path / "pki").mkdir(exist_ok=True)
            shutil.copy(service.directory / "pki" / "root.pem", tmp_path / "pki" / "ca.pem")
            shutil.copy(service.directory / "admin.json", tmp_path / "admin.json")
            (tmp_path / "endpoints.json").write_text(json.dumps({"auth": f"127.0.0.1:{ports['client']}"}))
            target = Target(
                f"127.0.0.1:{ports['client']}", (tmp_path / "pki" / "ca.pem").read_bytes(), "auth.service.sealane"
            )
            with connect(tmp_path) as client, channel_to(target) as public:
                identity = identity_service_pb2_grpc.IdentityServiceStub(client._session.channel("auth"))
                tokens = token_service_pb2_grpc.TokenServiceStub(public)
                if attempt == 0:
                    credential = identity_pb.Credential(passphrase=PHRASE)
                    request = identity_pb.CreateServiceAccountRequest(
                        parent="projects/default", service_account_id="ada", roles=["viewer"], credential=credential
                    )
                    identity.CreateServiceAccount(request)
                    asked = token_pb.IssueTokenRequest(
                        grant_type="client_credentials",
                        client_id="ada@default",
                        client_secret=PHRASE,
                        audience="sealane-registry",
                        scope="offline_access",
                    )
                    kept, ended = tokens.IssueToken(asked), tokens.IssueToken(asked)
                    tokens.RevokeToken(token_pb.RevokeTokenRequest(token=ended.refresh_token))
                    service.kill()
                    continue
                again = token_pb.IssueTokenRequest(grant_type="refresh_token", audience="sealane-registry")
                again.refresh_token = kept.refresh_token
                assert tokens.IssueToken(again).access_token
                again.refresh_token = ended.refresh_token
                with pytest.raises(Unauthenticated):
                    tokens.IssueToken(again)
                admin = token_service_pb2_grpc.TokenServiceStub(client._session.channel("auth"))
                ask = token_pb.IntrospectTokenRequest(token=ended.access_token)
                assert not admin.IntrospectToken(ask).active
    finally:
        service.stop()
