"""Every token that must be refused (SECURITY 2.6), at running services: its code, its reason, and nothing done.

The bodies are malformed: a service that parsed one before it knew the caller would answer INVALID_ARGUMENT, as it does
to a good token. The access log of each process is read too: one line for each call, which says what the caller saw.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from bench.token_cases import ACCEPTED, CASES, Forge, Make, Metadata, bearer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc import error_details_pb2, status_pb2
from light_site import CAMERA_B, EDGE, MODEL, LightSite, eventually, running

from sealane.auth.v1 import token_service_pb2 as tokens_pb
from sealane.client.access_tokens import ACCESS_TOKEN, EXCHANGE
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import SealaneError
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.rpc.channel import dial
from sealane.rpc.status import from_rpc_error
from sealane.security import jws, proof, tls
from sealane.security.enroll import mesh_target

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]
INFER = "/inference.GRPCInferenceService/ModelInfer"
LIST = "/sealane.registry.v1.ModelService/ListModels"
GET = "/sealane.registry.v1.ModelService/GetModel"
EXCHANGE_TOKEN = "/sealane.auth.v1.TokenService/ExchangeToken"
#: An asyncio server, the gateway, and a worker's synchronous front.
PLACES = ("registry", "inference", EDGE)
MALFORMED = b"\xff\xff\xff\xff"
#: So many characters in a row of a token are no coincidence.
SHOWN = 12


@dataclass(frozen=True)
class Answer:
    """What a caller was told, byte for byte, and the lines that the service wrote about it."""

    code: grpc.StatusCode
    details: str
    status: status_pb2.Status
    lines: tuple[dict[str, object], ...] = ()

    @property
    def reason(self) -> str:
        info = error_details_pb2.ErrorInfo()
        return info.reason if any(detail.Unpack(info) for detail in self.status.details) else ""

    def unlike(self, name: str, other: str) -> bytes:
        """All of it, with one name for another of the same length."""
        whole = self.details.encode() + self.status.SerializeToString(deterministic=True)
        return whole.replace(name.encode(), other.encode())


class Door:
    """A method of a service at one of its listeners."""

    def __init__(self, site: LightSite, place: str, channel: grpc.Channel) -> None:
        self.place = place
        self.path = LIST if place == "registry" else INFER
        self.channel = channel
        self.forge = Forge(
            site.signing_key,
            "sealane-registry" if place == "registry" else "sealane-inference",
            ("models:read",) if place == "registry" else ("infer",),
        )
        self._log = site.data / "logs" / f"{place}.log"

    def knock(self, metadata: Metadata, body: bytes = MALFORMED, path: str = "", identifier: str = "") -> Answer:
        """One call, which must be refused."""
        identifier = identifier or str(uuid.uuid4())
        begin = self._log.stat().st_size
        method = self.channel.unary_unary(path or self.path)
        with pytest.raises(grpc.RpcError) as caught:
            method(body, timeout=20, metadata=(*metadata, ("x-request-id", identifier)))
        trailers = dict(caught.value.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
        return Answer(caught.value.code(), caught.value.details() or "", status, self._lines(identifier, begin))

    def _lines(self, identifier: str, begin: int) -> tuple[dict[str, object], ...]:
        # A line is written before the answer is sent: whoever has the answer need not wait for it.
        with self._log.open("rb") as log:
            log.seek(begin)
            found = [line for line in log.read().splitlines() if identifier.encode() in line]
        return tuple(json.loads(line) for line in found)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    """A suite of its own, which writes a line for every call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEALANE_LOG_LEVEL", "INFO")
        with running(tmp_path_factory.mktemp("catalogue")) as site:
            site.deploy_cameras(site.push())
            eventually(lambda: EDGE in {node for node, _ in site.places(CAMERA_B)}, "camera B is at the edge")
            yield site


@pytest.fixture(scope="module")
def doors(own: LightSite) -> Iterator[dict[str, Door]]:
    with ExitStack() as stack:
        yield {place: Door(own, place, stack.enter_context(own.channel(place))) for place in PLACES}


@pytest.fixture(params=PLACES)
def door(request: pytest.FixtureRequest, doors: dict[str, Door]) -> Door:
    return doors[request.param]


def assert_refused(answer: Answer, metadata: Metadata, reason: str, kind: str = "UNAUTHENTICATED") -> None:
    """The right code and reason, nothing of the token in any text, and one line that says the same."""
    assert (answer.code.name, answer.reason) == (kind, reason), answer.details
    assert len(answer.lines) == 1, "one line for one call"
    line = answer.lines[0]
    assert (line["logger"], line["code"], line["reason"]) == ("sealane.access", kind, reason)
    told = f"{answer.details} {answer.status} {line}"
    for name, value in metadata:
        text = value if isinstance(value, str) else value.decode("latin-1")
        secret = text.partition(" ")[2] or text
        if name in ("authorization", "authorization-bin", "dpop") and len(secret) >= SHOWN:
            shown = [secret[at : at + SHOWN] for at in range(len(secret) - SHOWN + 1)]
            assert not [piece for piece in shown if piece in told], "a part of the token is in the answer or the log"


# -- the token itself --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_good_token_gets_as_far_as_the_body(door: Door, name: str) -> None:
    """What makes the other tests able to fail: with these, the same body is parsed."""
    answer = door.knock(ACCEPTED[name](door.forge))
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, (name, answer.details)
    assert len(answer.lines) == 1 and answer.lines[0]["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("name", CASES)
def test_a_bad_token_is_refused_before_the_body_is_parsed(door: Door, name: str) -> None:
    case = CASES[name]
    metadata = case.make(door.forge)
    assert_refused(door.knock(metadata), metadata, case.reason)


def test_a_header_nested_100_000_deep_is_refused_with_its_metadata(door: Door) -> None:
    """It is far above the limit on metadata: the transport refuses it, and no code of ours sees the call."""
    nested = b'{"alg":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    answer = door.knock(bearer(door.forge.signed(nested, b"{}")))
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert answer.lines == ()
    assert door.knock(bearer(door.forge.good())).code is grpc.StatusCode.INVALID_ARGUMENT, "the connection goes on"


def test_a_token_without_the_scope_is_denied_before_the_body_is_parsed(door: Door) -> None:
    metadata = bearer(door.forge.good(scopes=("reflect",)))
    answer = door.knock(metadata)
    assert_refused(answer, metadata, "SCOPE_MISSING", "PERMISSION_DENIED")


def test_a_foreign_resource_is_answered_byte_for_byte_as_an_absent_one(door: Door) -> None:
    def body(resource: str) -> tuple[bytes, str]:
        if door.place == "registry":
            return model_pb.GetModelRequest(name=f"projects/default/models/{resource}").SerializeToString(), GET
        tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=[1, 8, 8, 1])
        request = oip.ModelInferRequest(model_name=resource, inputs=[tensor], raw_input_contents=[bytes(256)])
        return request.SerializeToString(), INFER

    there = MODEL if door.place == "registry" else CAMERA_B
    nowhere = "x" * len(there)
    request = str(uuid.uuid4())
    stranger, ours = bearer(door.forge.good(project="other")), bearer(door.forge.good())
    foreign = door.knock(stranger, *body(there), request)
    absent = door.knock(stranger, *body(nowhere), request)
    assert foreign.code is grpc.StatusCode.NOT_FOUND
    assert foreign.unlike(there, nowhere) == absent.unlike(there, nowhere)
    missing = door.knock(ours, *body(nowhere), request)
    assert (missing.code, missing.reason) == (foreign.code, foreign.reason)
    if door.place != "registry":  # a name at the registry says whose it is; elsewhere it may be the caller's own
        assert foreign.unlike(there, nowhere) == missing.unlike(there, nowhere)


# -- revoked -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def revoked(own: LightSite) -> dict[str, dict[str, str]]:
    """Tokens of auth that were good, by audience: one taken back by its id, one with its subject."""
    audiences = ("sealane-registry", "sealane-inference")
    account = own.client.accounts.create("leaver", ("infer", "models:read"))
    by_id, by_epoch = {}, {}
    with own.client_of(account.client_id, account.client_secret) as leaver:
        for audience in audiences:
            by_epoch[audience] = leaver.token(audience)
            by_id[audience] = own.client.access_tokens.narrow(audience, scope="infer models:read").access_token
    found = {"revoked by its id": by_id, "of an old epoch": by_epoch}
    for place in PLACES:
        with own.channel(place) as channel:
            door = Door(own, place, channel)
            for kind in found.values():
                code = door.knock(bearer(kind[door.forge.audience])).code
                assert code is grpc.StatusCode.INVALID_ARGUMENT, "it was good, and is in the cache"
    for token in by_id.values():
        own.client.access_tokens.revoke_id(json.loads(jws.decode(token.split(".")[1]))["jti"])
    assert own.client.access_tokens.revoke_subject("leaver") == 1
    return found


@pytest.mark.parametrize("kind", ["revoked by its id", "of an old epoch"])
def test_a_token_that_auth_took_back_is_refused(door: Door, revoked: dict[str, dict[str, str]], kind: str) -> None:
    metadata = bearer(revoked[kind][door.forge.audience])
    unauthenticated = grpc.StatusCode.UNAUTHENTICATED
    eventually(lambda: door.knock(metadata).code is unauthenticated, "the service has heard of it")
    assert_refused(door.knock(metadata), metadata, "TOKEN_REVOKED")


# -- bound -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tool(own: LightSite, tmp_path_factory: pytest.TempPathFactory) -> tls.PeerIdentity:
    """The certificate of an account."""
    own.client.accounts.create("tool", ("infer", "models:read"))
    return own.client.peers.certificate("tool", tmp_path_factory.mktemp("tool"))


def test_a_token_bound_to_a_certificate_is_refused_where_none_is_shown(door: Door) -> None:
    metadata = bearer(door.forge.good(certificate_thumbprint=jws.encode(bytes(32))))
    assert_refused(door.knock(metadata), metadata, "CERTIFICATE_BINDING")


@pytest.mark.parametrize("place", ["registry", "inference"])
def test_a_token_bound_to_another_certificate_is_refused(
    own: LightSite, tool: tls.PeerIdentity, tmp_path: Path, place: str
) -> None:
    other = own.client.peers.certificate("tool", tmp_path)
    with dial(mesh_target(tool, place, own.endpoints[f"{place}_mesh"])) as channel:
        door = Door(own, place, channel)
        thumbprints = [thumbprint(identity) for identity in (tool, other)]
        answers = [door.knock(bearer(door.forge.good(certificate_thumbprint=value))) for value in thumbprints]
        assert answers[0].code is grpc.StatusCode.INVALID_ARGUMENT, "over its own it is good"
        metadata = bearer(door.forge.good(certificate_thumbprint=thumbprints[1]))
        assert_refused(answers[1], metadata, "CERTIFICATE_BINDING")


def thumbprint(identity: tls.PeerIdentity) -> str:
    """RFC 8705 section 3.1."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    leaf = x509.load_pem_x509_certificates(identity.certificate_chain)[0]
    return jws.encode(hashlib.sha256(leaf.public_bytes(Encoding.DER)).digest())


KEY = Ed25519PrivateKey.generate()
JKT = jws.thumbprint(KEY.public_key().public_bytes_raw())
ABSENT = object()


@dataclass(frozen=True)
class Proof:
    """A proof that is wrong in one way: changes of its header and claims, the key that signs, its entry twice."""

    header: Mapping[str, object] | None = None
    claims: Mapping[str, object] | None = None
    signer: Ed25519PrivateKey = KEY
    late: int = 0
    alter: Callable[[str], str] | None = None

    def make(self, door: Door, token: str) -> str:
        """It, for a call at the door."""
        good = proof.prove(KEY, method_path=door.path, token=token, now=time.time() - self.late)
        head, claims = (json.loads(jws.decode(part)) for part in good.split(".")[:2])
        texts = []
        for made, changes in ((head, self.header), (claims, self.claims)):
            changed = {**made, **(changes or {})}
            texts.append(json.dumps({name: value for name, value in changed.items() if value is not ABSENT}).encode())
        data = f"{jws.encode(texts[0])}.{jws.encode(texts[1])}"
        signed = f"{data}.{jws.encode(self.signer.sign(data.encode()))}"
        return self.alter(signed) if self.alter else signed


OTHER = Ed25519PrivateKey.generate()
PROOFS = {
    "for another method": Proof(claims={"htu": GET}),
    "for a URL": Proof(claims={"htu": f"https://registry.service.sealane{LIST}"}),
    "htu missing": Proof(claims={"htu": ABSENT}),
    "for GET": Proof(claims={"htm": "GET"}),
    "htm missing": Proof(claims={"htm": ABSENT}),
    "two minutes old": Proof(late=120),
    "two minutes ahead": Proof(late=-120),
    "iat missing": Proof(claims={"iat": ABSENT}),
    "iat a text": Proof(claims={"iat": "0"}),
    "ath missing": Proof(claims={"ath": ABSENT}),
    "ath of another token": Proof(claims={"ath": jws.encode(bytes(32))}),
    "jti missing": Proof(claims={"jti": ABSENT}),
    "jti empty": Proof(claims={"jti": ""}),
    "jti of 1 KB": Proof(claims={"jti": "j" * 1024}),
    "by another key": Proof(header={"jwk": jws.public_jwk(OTHER.public_key().public_bytes_raw())}, signer=OTHER),
    "by another key under the token's": Proof(signer=OTHER),
    "with the private key": Proof(header={"jwk": {**jws.public_jwk(KEY.public_key().public_bytes_raw()), "d": "x"}}),
    "jwk missing": Proof(header={"jwk": ABSENT}),
    "alg none": Proof(header={"alg": "none"}, alter=lambda text: text.rpartition(".")[0] + "."),
    "alg ES256": Proof(header={"alg": "ES256"}),
    "typ at+jwt": Proof(header={"typ": "at+jwt"}),
    "kid beside jwk": Proof(header={"kid": JKT}),
    "padded": Proof(alter=lambda text: text + "=="),
    "cut": Proof(alter=lambda text: text.rpartition(".")[0]),
}


def bound(door: Door, *proofs: str, token: str = "") -> Metadata:
    return (*bearer(token or door.forge.good(key_thumbprint=JKT)), *(("dpop", text) for text in proofs))


@pytest.mark.parametrize("name", PROOFS)
def test_a_bad_proof_is_refused(door: Door, name: str) -> None:
    token = door.forge.good(key_thumbprint=JKT)
    metadata = bound(door, PROOFS[name].make(door, token), token=token)
    assert_refused(door.knock(metadata), metadata, "PROOF_REFUSED")


def test_a_proof_is_good_once_and_alone(door: Door) -> None:
    assert_refused(door.knock(bound(door)), bound(door), "PROOF_REFUSED")
    token = door.forge.good(key_thumbprint=JKT)
    first, second = Proof().make(door, token), Proof().make(door, token)
    both = bound(door, first, second, token=token)
    assert_refused(door.knock(both), both, "PROOF_REFUSED")
    metadata = bound(door, first, token=token)
    assert door.knock(metadata).code is grpc.StatusCode.INVALID_ARGUMENT, "as far as the body"
    assert_refused(door.knock(metadata), metadata, "PROOF_REFUSED")
    again = Proof(claims={"jti": json.loads(jws.decode(first.split(".")[1]))["jti"]}).make(door, token)
    replayed = bound(door, again, token=token)
    assert_refused(door.knock(replayed), replayed, "PROOF_REFUSED")


# -- exchange (RFC 8693) -----------------------------------------------------------------------------


def exchange(channel: grpc.Channel, **changes: object) -> tokens_pb.IssueTokenResponse:
    request = tokens_pb.ExchangeTokenRequest(
        **{
            "grant_type": EXCHANGE,
            "subject_token_type": ACCESS_TOKEN,
            "audience": "sealane-inference",
            **changes,
        }
    )
    try:
        answer = channel.unary_unary(EXCHANGE_TOKEN)(request.SerializeToString(), timeout=10)
    except grpc.RpcError as failure:
        raise from_rpc_error(failure) from failure
    return tokens_pb.IssueTokenResponse.FromString(answer)


def claims_of(token: str) -> dict[str, object]:
    claims: dict[str, object] = json.loads(jws.decode(token.split(".")[1]))
    return claims


@dataclass(frozen=True)
class Exchange:
    """A request that asks for more than it may."""

    kind: str
    reason: str
    subject: Make
    changes: Mapping[str, object]


def _subject(**changes: object) -> Make:
    return lambda forge: bearer(forge.good(**changes))


UNKNOWN_TYPES = ("urn:ietf:params:oauth:token-type:saml2", "urn:ietf:params:oauth:token-type:refresh_token", "jwt", "")
EXCHANGES = {
    **{
        f"token type {kind!r}": Exchange(
            "INVALID_ARGUMENT", "INVALID_ARGUMENT", _subject(), {"subject_token_type": kind}
        )
        for kind in UNKNOWN_TYPES
    },
    "an unknown scope": Exchange("INVALID_ARGUMENT", "UNKNOWN_SCOPE", _subject(), {"scope": "infer root"}),
    "a wider scope": Exchange("PERMISSION_DENIED", "SCOPE_MISSING", _subject(), {"scope": "infer models:write"}),
    "an admin's scope for another service": Exchange(
        "PERMISSION_DENIED", "SCOPE_NOT_CARRIED", _subject(scopes=("infer", "admin")),
        {"scope": "admin", "audience": "sealane-registry"},
    ),
    "a subject token with four actors": Exchange(
        "UNAUTHENTICATED", "TOKEN_INVALID", _subject(actors=("a", "b", "c", "d")), {}
    ),
    "a subject token of another issuer": Exchange(
        "UNAUTHENTICATED", "TOKEN_ISSUER",
        lambda forge: bearer(forge.token(forge.header(), forge.claims(iss="https://attacker.example"))), {},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def at_auth(own: LightSite) -> Iterator[grpc.Channel]:
    with own.channel("auth") as channel:
        yield channel


@pytest.mark.parametrize("name", EXCHANGES)
def test_an_exchange_for_more_is_refused(at_auth: grpc.Channel, doors: dict[str, Door], name: str) -> None:
    case = EXCHANGES[name]
    token = str(case.subject(doors["inference"].forge)[0][1]).partition(" ")[2]
    with pytest.raises(SealaneError) as caught:
        exchange(at_auth, subject_token=token, **case.changes)
    assert (caught.value.kind, caught.value.reason) == (case.kind, case.reason), caught.value.message


def test_a_fourth_actor_is_refused(own: LightSite, doors: dict[str, Door], tool: tls.PeerIdentity) -> None:
    """The account whose certificate asks is the next actor; three may be in a row, and it may be the third."""
    forge = doors["inference"].forge
    with dial(mesh_target(tool, "auth", own.endpoints["auth_mesh"])) as channel:
        third = exchange(channel, subject_token=forge.good(actors=("b", "a"))).access_token
        assert claims_of(third)["act"] == {
            "sub": "projects/default/serviceAccounts/tool",
            "act": {"sub": "b", "act": {"sub": "a"}},
        }
        with pytest.raises(SealaneError) as caught:
            exchange(channel, subject_token=forge.good(actors=("c", "b", "a")))
    assert (caught.value.kind, caught.value.reason) == ("PERMISSION_DENIED", "TOO_MANY_ACTORS")


def test_what_is_exchanged_never_outlives_its_subject_token(at_auth: grpc.Channel, doors: dict[str, Door]) -> None:
    """A longer life is not granted: ``lifetime_seconds`` is a bound of the caller's, and the subject's end another."""
    subject = doors["inference"].forge.good(lifetime=40)
    for wanted in (0, 30, 3600):
        issued = exchange(at_auth, subject_token=subject, lifetime_seconds=wanted)
        end = claims_of(issued.access_token)["exp"]
        assert isinstance(end, int) and end <= int(str(claims_of(subject)["exp"])), wanted
        assert issued.expires_in <= (wanted or 40)
    with pytest.raises(SealaneError) as caught:
        exchange(at_auth, subject_token=subject, lifetime_seconds=-1)
    assert caught.value.kind == "INVALID_ARGUMENT"
