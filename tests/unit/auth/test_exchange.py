"""Token exchange: what comes out never does more, never lives longer."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import pytest
from auth_records import Auth, in_memory, serving
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from sealane.auth.v1 import token_service_pb2 as pb
from sealane.clock import ManualClock
from sealane.errors import InvalidArgument, PermissionDenied, SealaneError, Unauthenticated
from sealane.rpc.call import Peer
from sealane.security.certificate import facts_of
from sealane.security.permissions import MODEL_PERMISSIONS, PERMISSIONS, Bound, Grants
from sealane_auth import exchange
from sealane_auth.accounts import AccountRules
from sealane_auth.clients import Proof
from sealane_auth.exchange import CERTIFICATE, GRANT_TYPE, TYPES
from sealane_auth.minting import ACCESS_TOKEN, Issued, Wanted
from sealane_auth.token_servicer import Origin

JKT = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
GATEWAY = "spiffe://sealane/service/inference"


@pytest.fixture
def auth() -> Iterator[Auth]:
    with in_memory() as made:
        yield made


def subject(auth: Auth, *roles: str, audience: str = "sealane-inference", **wanted: str) -> str:
    account, secret = auth.account("camera", *roles)
    auth.accounts.rights.bind(auth.store, auth.admin, account.name, Bound("deployer", "digits-"))
    proven = auth.prove(Proof(account.client_id, secret))
    return auth.tokens.issue(auth.store, proven, Wanted(audience, **wanted)).token  # type: ignore[arg-type]


def narrow(auth: Auth, token: str, actor: str = "", audience: str = "sealane-inference", **wanted: object) -> Issued:
    return auth.tokens.exchange.narrow(auth.store, auth.claims(token), Wanted(audience, **wanted), actor)  # type: ignore[arg-type]


def test_fewer_scopes_and_models(auth: Auth) -> None:
    token = subject(auth, "invoker", "viewer")
    identity = auth.identity(narrow(auth, token, scope="infer models:read", model_prefixes=("digits-",)).token)
    assert identity.scopes == {"infer", "models:read"}
    assert identity.may_use("infer", "digits-1") and not identity.may_use("infer", "faces")
    assert (identity.subject, identity.actor) == ("projects/p/serviceAccounts/camera", "")
    again = narrow(auth, narrow(auth, token, model_prefixes=("digits-",)).token, model_prefixes=("d",))
    assert not auth.identity(again.token).may_use("infer", "dogs")  # a wider limit widens nothing


@pytest.mark.parametrize(
    "wanted",
    [
        {"scope": "models:write"},
        {"scope": "infer admin"},
        {"scope": "deploy", "model_prefixes": ("faces",)},
        {"scope": "nodes:read", "model_prefixes": ("digits-",)},
    ],
)
def test_more_than_the_subject_token_is_refused(auth: Auth, wanted: dict[str, object]) -> None:
    with pytest.raises(PermissionDenied):
        narrow(auth, subject(auth, "invoker", "viewer"), **wanted)


@pytest.mark.parametrize(
    "wanted",
    [
        {"audience": "elsewhere"},
        {"lifetime": -1},
        {"model_prefixes": ("",)},
        {"model_prefixes": ("a/b",)},
        {"model_prefixes": ("a",) * 17},
        {"scope": "everything"},
    ],
)
def test_requests_that_can_never_work(auth: Auth, wanted: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        narrow(auth, subject(auth, "invoker"), **wanted)


def test_never_later_than_the_subject_token(auth: Auth) -> None:
    token = subject(auth, "invoker")
    end = auth.claims(token)["exp"]
    auth.clock.advance(200)
    assert auth.claims(narrow(auth, token).token)["exp"] == end
    short = auth.claims(narrow(auth, token, lifetime=10).token)
    assert short["exp"] == short["iat"] + 10  # type: ignore[operator]
    auth.clock.advance(110)  # over, but within the leeway for clocks
    with pytest.raises(Unauthenticated):
        narrow(auth, token)


def test_a_bound_token_stays_bound(auth: Auth) -> None:
    token = subject(auth, "invoker", key_thumbprint=JKT)
    for asked in ("", JKT):
        assert auth.identity(narrow(auth, token, key_thumbprint=asked).token).key_thumbprint == JKT
    with pytest.raises(PermissionDenied):
        narrow(auth, token, key_thumbprint="A" * 43)


def test_a_certificate_bound_token_stays_bound(auth: Auth) -> None:
    token = subject(auth, "invoker", certificate_thumbprint=JKT)
    assert auth.identity(narrow(auth, token).token).certificate_thumbprint == JKT
    with pytest.raises(PermissionDenied):
        narrow(auth, token, key_thumbprint=JKT)


def test_a_bearer_token_can_be_bound(auth: Auth) -> None:
    token = subject(auth, "invoker")
    assert auth.identity(narrow(auth, token, key_thumbprint=JKT).token).key_thumbprint == JKT


def test_a_bearer_token_takes_no_administration_to_another_service(auth: Auth) -> None:
    token = subject(auth, "admin")
    assert "admin" in auth.identity(narrow(auth, token).token).scopes
    moved = auth.identity(narrow(auth, token, audience="sealane-auth").token)
    assert moved.scopes == {"models:read", "jobs:read", "nodes:read", "reflect"}
    with pytest.raises(PermissionDenied) as caught:
        narrow(auth, token, audience="sealane-auth", scope="admin")
    assert caught.value.reason == "SCOPE_NOT_CARRIED"


@pytest.mark.parametrize("actor", ["", "spiffe://sealane/node/edge-1"])
def test_a_worker_that_sees_a_bearer_token_changes_nothing_with_it(auth: Auth, actor: str) -> None:
    token = subject(auth, "publisher", "deployer", "invoker")
    for audience, scope in (("sealane-registry", "models:write"), ("sealane-scheduler", "deploy")):
        carried = auth.identity(narrow(auth, token, actor, audience).token).scopes
        assert carried == {"models:read", "jobs:read", "nodes:read", "reflect"}
        with pytest.raises(PermissionDenied) as caught:
            narrow(auth, token, actor, audience, scope=scope)
        assert caught.value.reason == "SCOPE_NOT_CARRIED"
    bound = auth.identity(narrow(auth, token, actor, key_thumbprint=JKT).token).scopes
    assert bound == {"models:read", "jobs:read", "nodes:read", "reflect", "infer"}


def test_binding_first_helps_no_thief(auth: Auth) -> None:
    stolen = subject(auth, "admin")
    with pytest.raises(PermissionDenied):
        narrow(auth, stolen, scope="admin", key_thumbprint=JKT)
    mine = narrow(auth, stolen, key_thumbprint=JKT).token
    assert "admin" not in auth.identity(narrow(auth, mine, audience="sealane-auth").token).scopes


def test_a_bound_token_takes_all_to_another_service(auth: Auth) -> None:
    bound = subject(auth, "admin", key_thumbprint=JKT)
    assert "admin" in auth.identity(narrow(auth, bound, audience="sealane-auth").token).scopes


def test_at_most_three_act_in_a_row(auth: Auth) -> None:
    token = subject(auth, "invoker")
    for actor in ("a", "b", "b", "c"):
        token = narrow(auth, token, actor).token
    assert auth.claims(token)["act"] == {"sub": "c", "act": {"sub": "b", "act": {"sub": "a"}}}
    with pytest.raises(PermissionDenied) as caught:
        narrow(auth, token, "d")
    assert caught.value.reason == "TOO_MANY_ACTORS"
    assert auth.claims(narrow(auth, token, "c").token)["act"]  # the same one again is no further actor


def test_a_revoked_subject_token_is_exchanged_for_nothing(auth: Auth) -> None:
    token = subject(auth, "invoker")
    newer = narrow(auth, token).token
    auth.tokens.revoke_subject(auth.store, auth.admin, "projects/p/serviceAccounts/camera")
    for each in (token, newer):
        with pytest.raises(Unauthenticated):
            narrow(auth, each)


def leaf(name: str) -> bytes:
    """A certificate with an account's SPIFFE id; whether its chain verifies is another module's business."""
    key = ec.generate_private_key(ec.SECP256R1())
    common = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "account")])
    now = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(common)
        .issuer_name(common)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://sealane/{name}")]), False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def test_a_certificate_gives_what_its_account_holds_bound_to_it(auth: Auth) -> None:
    camera, _ = auth.account("camera", "invoker")
    pem = leaf(camera.name)
    with pytest.raises(Unauthenticated):  # it has not joined
        auth.tokens.exchange.for_certificate(auth.store, pem, Wanted("sealane-inference"), GATEWAY)
    auth.join(camera)
    issued = auth.tokens.exchange.for_certificate(auth.store, pem, Wanted("sealane-inference"), GATEWAY)
    identity = auth.identity(issued.token)
    assert (identity.subject, identity.actor, identity.scopes) == (camera.name, GATEWAY, {"infer", "reflect"})
    assert identity.certificate_thumbprint == facts_of(pem).thumbprint != ""
    with pytest.raises(PermissionDenied):
        wanted = Wanted("sealane-inference", "models:write")
        auth.tokens.exchange.for_certificate(auth.store, pem, wanted, GATEWAY)
    with pytest.raises(PermissionDenied):
        auth.tokens.exchange.for_certificate(auth.store, pem, Wanted("sealane-auth"), GATEWAY)
    auth.accounts.delete_account(auth.store, auth.admin, camera.name)
    with pytest.raises(SealaneError):
        auth.tokens.exchange.for_certificate(auth.store, pem, Wanted("sealane-inference"), GATEWAY)


_PREFIX = st.text("ab", min_size=1, max_size=3)
_SCOPES = st.sets(st.sampled_from(sorted(PERMISSIONS)))


@given(
    _SCOPES,
    st.dictionaries(st.sampled_from(sorted(MODEL_PERMISSIONS)), st.lists(_PREFIX, min_size=1, max_size=3)),
    _SCOPES,
    st.lists(_PREFIX, max_size=3),
)
def test_no_exchange_ever_widens(
    held: set[str], limits: dict[str, list[str]], asked: set[str], prefixes: list[str]
) -> None:
    source = Grants(frozenset(held), {name: tuple(found) for name, found in limits.items() if name in held})
    wanted = Wanted("sealane-inference", " ".join(sorted(asked)), model_prefixes=tuple(prefixes))
    try:
        given_ = exchange._narrowed(source, wanted)
    except PermissionDenied:
        return
    assert given_.within(source) and given_.scopes
    assert not asked or given_.scopes == asked
    for scope in given_.scopes if prefixes else ():
        assert all(each.startswith(tuple(prefixes)) for each in given_.models[scope])


class Desk:
    """The token servicer with a bearer token of ``camera``, which may infer and read models."""

    def __init__(self) -> None:
        self.clock = ManualClock()

    async def refusal(self, peer: Peer, **request: object) -> SealaneError:
        """How an exchange is refused."""
        with serving(self.clock) as (records, servicer):

            def prepare(store: object) -> str:
                return AccountRules(self.clock).create_first_admin(store, "p")[1]  # type: ignore[arg-type]

            secret = await records.write(prepare)
            issued = await servicer.issue(
                pb.IssueTokenRequest(
                    grant_type="client_credentials",
                    client_id="admin@p",
                    client_secret=secret,
                    audience="sealane-inference",
                ),
                Origin(),
            )
            fields = {"grant_type": GRANT_TYPE, "subject_token": issued.access_token, "audience": "sealane-inference"}
            fields |= {"subject_token_type": ACCESS_TOKEN}
            fields |= request  # type: ignore[arg-type]
            with pytest.raises(SealaneError) as caught:
                await servicer.exchange(pb.ExchangeTokenRequest(**fields), Origin(peer))  # type: ignore[arg-type]
            return caught.value


@pytest.mark.parametrize(
    ("request_", "kind", "reason"),
    [
        ({"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"}, "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ({"subject_token_type": ""}, "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ({"grant_type": "client_credentials"}, "INVALID_ARGUMENT", "UNSUPPORTED_GRANT_TYPE"),
        ({"subject_token": "a.b.c"}, "UNAUTHENTICATED", "TOKEN_MALFORMED"),
        ({"subject_token": ""}, "UNAUTHENTICATED", "TOKEN_MALFORMED"),
        ({"subject_token_type": TYPES[1], "project": "projects/p"}, "UNAUTHENTICATED", "ISSUER_UNKNOWN"),
        ({"subject_token_type": CERTIFICATE}, "PERMISSION_DENIED", "CALLER_NOT_ALLOWED"),
        ({"scope": "models:write deploy everything"}, "INVALID_ARGUMENT", "UNKNOWN_SCOPE"),
    ],
)
async def test_each_refusal_has_its_code(request_: dict[str, object], kind: str, reason: str) -> None:
    error = await Desk().refusal(Peer(), **request_)
    assert (error.kind, error.reason) == (kind, reason)


@pytest.mark.parametrize("service", ["registry", "scheduler"])
async def test_only_the_gateway_brings_certificates(service: str) -> None:
    error = await Desk().refusal(Peer(spiffe_id=f"spiffe://sealane/service/{service}"), subject_token_type=CERTIFICATE)
    assert error.kind == "PERMISSION_DENIED"
