"""The middleware as a caller meets it: who gets in, and with which answer."""

from __future__ import annotations

import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane import telemetry
from sealane.clock import SystemClock
from sealane.errors import InvalidArgument, SealaneError
from sealane.registry.v1 import model_service_pb2 as pb
from sealane.rpc.authentication import FORWARDED_BINDING
from sealane.rpc.call import Call, Peer
from sealane.rpc.dispatch import Dispatcher, Served
from sealane.rpc.middleware import Chain
from sealane.rpc.order import Guard, standard
from sealane.security import jws, tokens
from sealane.security.keys import KeySet, Published
from sealane.security.proof import prove
from sealane.security.tokens import ISSUER, Grant, TokenVerifier

KEY = Ed25519PrivateKey.generate()
HOLDER = Ed25519PrivateKey.generate()
THUMBPRINT = jws.thumbprint(HOLDER.public_key().public_bytes_raw())
PATH = "/sealane.registry.v1.ModelService/GetModel"
REQUEST = pb.GetModelRequest(name="projects/p/models/m").SerializeToString()


class Models:
    """Answers GetModel; every other method is there and fails."""

    def __init__(self) -> None:
        self.calls = 0

    def GetModel(self, request: pb.GetModelRequest, call: Call) -> pb.Model:
        self.calls += 1
        if request.name.endswith("/broken"):
            raise RuntimeError("secret detail")
        if request.name.endswith("/refused"):
            raise InvalidArgument("no good", field="name")
        return pb.Model(name=request.name)

    def __getattr__(self, name: str) -> object:
        return None


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def dispatcher(models: Models) -> Dispatcher:
    keys = KeySet(
        lambda: Published(
            {jws.thumbprint(KEY.public_key().public_bytes_raw()): jws.encode(KEY.public_key().public_bytes_raw())}
        )
    )
    verifier = TokenVerifier(keys, issuer=ISSUER, audience="sealane-registry", clock=SystemClock())
    chain = Chain(standard(telemetry_=telemetry.disabled(), guard=Guard(verifier), max_in_flight=2))
    return Dispatcher([Served(models, pb.DESCRIPTOR.services_by_name["ModelService"])], chain)


def issue(**change: object) -> str:
    values: dict[str, object] = {
        "subject": "a",
        "client_id": "a@p",
        "project": "p",
        "audience": "sealane-registry",
        "scopes": ("models:read",),
    }
    return tokens.issue(Grant(**(values | change)), key=KEY, issuer=ISSUER, now=time.time())  # type: ignore[arg-type]


def call(
    dispatcher: Dispatcher, metadata: dict[str, str], body: bytes = REQUEST, peer: Peer | None = None, left: float = 5
) -> bytes:
    route = dispatcher.route(PATH)
    return dispatcher.unary(
        route, Call(route.method, metadata, peer or Peer(tls_version="TLSv1.3"), time.monotonic() + left, body)
    )


def refusal(dispatcher: Dispatcher, metadata: dict[str, str], **more: object) -> SealaneError:
    with pytest.raises(SealaneError) as caught:
        call(dispatcher, metadata, **more)  # type: ignore[arg-type]
    return caught.value


def bearer(**change: object) -> dict[str, str]:
    return {"authorization": f"Bearer {issue(**change)}"}


def test_a_good_token_gets_in_even_before_its_key_is_known(dispatcher: Dispatcher) -> None:
    assert pb.Model.FromString(call(dispatcher, bearer())).name == "projects/p/models/m"


def test_refusals_come_before_the_body_is_parsed(dispatcher: Dispatcher, models: Models) -> None:
    broken = b"\xff\xff"
    assert refusal(dispatcher, {}, body=broken).kind == "UNAUTHENTICATED"
    assert refusal(dispatcher, {"authorization": "Bearer x.y.z"}, body=broken).kind == "UNAUTHENTICATED"
    assert refusal(dispatcher, bearer(scopes=("infer",)), body=broken).kind == "PERMISSION_DENIED"
    assert refusal(dispatcher, bearer(), body=broken).kind == "INVALID_ARGUMENT"
    assert models.calls == 0


def test_another_project_is_answered_as_an_absent_one(dispatcher: Dispatcher, models: Models) -> None:
    assert refusal(dispatcher, bearer(project="q")).kind == "NOT_FOUND"
    assert models.calls == 0


def test_old_tls_and_dead_calls_are_refused(dispatcher: Dispatcher, models: Models) -> None:
    assert refusal(dispatcher, bearer(), peer=Peer(tls_version="TLSv1.2")).reason == "TLS_VERSION"
    assert refusal(dispatcher, bearer(), left=-1).kind == "DEADLINE_EXCEEDED"
    assert models.calls == 0


def test_a_peer_gets_in_where_the_contract_names_it(dispatcher: Dispatcher) -> None:
    scheduler = Peer(spiffe_id="spiffe://sealane/service/scheduler", tls_version="TLSv1.3")
    assert call(dispatcher, {}, peer=scheduler)
    for other in (
        "spiffe://sealane/service/inference",
        "spiffe://sealane/node/scheduler",
        "spiffe://evil/service/scheduler",
    ):
        assert refusal(dispatcher, {}, peer=Peer(spiffe_id=other, tls_version="TLSv1.3")).kind == "UNAUTHENTICATED"


def test_a_bound_token_needs_its_key(dispatcher: Dispatcher) -> None:
    token = issue(key_thumbprint=THUMBPRINT)
    metadata = {"authorization": f"DPoP {token}"}
    assert refusal(dispatcher, metadata).reason == "PROOF_REFUSED"
    thief = prove(Ed25519PrivateKey.generate(), method_path=PATH, token=token, now=time.time())
    assert refusal(dispatcher, metadata | {"dpop": thief}).reason == "PROOF_REFUSED"
    proof = prove(HOLDER, method_path=PATH, token=token, now=time.time())
    assert call(dispatcher, metadata | {"dpop": proof})


def test_only_a_lane_may_vouch_for_a_binding(dispatcher: Dispatcher) -> None:
    metadata = {"authorization": f"DPoP {issue(key_thumbprint=THUMBPRINT)}", FORWARDED_BINDING: THUMBPRINT}
    assert refusal(dispatcher, metadata).reason == "PROOF_REFUSED"
    lane = Peer(tls_version="TLSv1.3", via_gateway=True)
    assert call(dispatcher, metadata, peer=lane)
    assert refusal(dispatcher, metadata | {FORWARDED_BINDING: "other"}, peer=lane).reason == "PROOF_REFUSED"


def test_an_unknown_failure_is_opaque(dispatcher: Dispatcher) -> None:
    body = pb.GetModelRequest(name="projects/p/models/broken").SerializeToString()
    failure = refusal(dispatcher, bearer() | {"x-request-id": "r-1"}, body=body)
    assert failure.kind == "INTERNAL"
    assert "secret" not in failure.message and "r-1" in failure.message


def test_load_is_counted_out_again(dispatcher: Dispatcher) -> None:
    for _ in range(5):
        refusal(dispatcher, {})
    assert call(dispatcher, bearer())
