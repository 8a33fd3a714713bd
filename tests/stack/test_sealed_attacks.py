"""SEAL-3: what a malicious gateway and a malicious scheduler try with sealed calls; nothing is accepted or opened."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from evil_gateway import SEALED, Captured, EvilGateway, evil_gateway
from light_site import CAMERA_A, CAMERA_B, EDGE, LightSite, eventually, running
from stripped import push_stripped

from sealane.client.prediction import INFER_PATH
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import FailedPrecondition, InvalidArgument, NotFound, SealaneError, Unauthenticated
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.inference.v1 import sealed_inference_service_pb2_grpc
from sealane.rpc.status import from_rpc_error
from sealane.security import envelope, jws, statements, suites
from sealane.security.envelope import Bound, Target
from sealane.security.sealed_session import ClientSession
from sealane_local.plan import WorkerPlan

pytestmark = pytest.mark.stack
FAR = "far-1"
OTHER = "elsewhere"


@dataclass
class Scene:
    """A suite, the account of a victim, and true candidates by (deployment, node)."""

    site: LightSite
    account: str
    secret: str

    def candidates(self, deployment: str) -> pb.SealingContext:
        """What an honest gateway says."""
        with self.site.channel("inference") as channel:
            stub = sealed_inference_service_pb2_grpc.SealedInferenceServiceStub(channel)
            metadata = (("authorization", f"Bearer {self.site.client.token('sealane-inference')}"),)
            context: pb.SealingContext = stub.GetSealingContext(
                pb.GetSealingContextRequest(model=deployment), metadata=metadata, timeout=10
            )
        return context

    def runs(self) -> int:
        """Inferences of all deployments so far, wherever."""
        total = 0
        for deployment in (CAMERA_A, CAMERA_B, OTHER):
            body = oip.ModelStatisticsRequest(name=deployment).SerializeToString()
            metadata = (("authorization", f"Bearer {self.site.client.token('sealane-inference')}"),)
            with self.site.channel("inference") as channel:
                answer = channel.unary_unary("/inference.GRPCInferenceService/ModelStatistics")(
                    body, timeout=10, metadata=metadata
                )
            told = oip.ModelStatisticsResponse.FromString(answer).model_stats
            total += sum(item.inference_stats.success.count + item.inference_stats.fail.count for item in told)
        return total


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    far = WorkerPlan(FAR, "edge", "site-b", "restricted", 0.02, runtimes=("litert",), region="us")
    with running(tmp_path_factory.mktemp("attacks"), others=(far,)) as site:
        version = site.push()
        site.deploy_cameras(version)
        site.client.deployments.create(OTHER, version, data_class="restricted", residency=["site-b"])
        site.client.deployments.wait(OTHER, 30)
        site.client.accounts.create("victim", roles=["invoker"])
        yield Scene(site, "victim@default", site.client.accounts.add_credential("victim").secret)


@pytest.fixture
def gateway(scene: Scene) -> Iterator[EvilGateway]:
    with evil_gateway(scene.site, lambda request: scene.candidates(request.model)) as gateway:
        yield gateway


def predict(gateway: EvilGateway, scene: Scene, model: str = CAMERA_A, **options: object) -> np.ndarray:
    with gateway.victim(scene.account, scene.secret) as client:
        outputs = client.inference.predict(model, scene.site.image, **{"sealed": True, **options})  # type: ignore[arg-type]
    return outputs["probabilities"]


def test_it_may_carry_what_it_cannot_read(scene: Scene, gateway: EvilGateway) -> None:
    """The control: as long as it behaves, calls go through it, sessions too."""
    (right,) = scene.site.client.inference.predict(CAMERA_A, scene.site.image).values()
    for sealed in (True, "session"):
        np.testing.assert_allclose(predict(gateway, scene, sealed=sealed), right, atol=1e-6)
    content = scene.site.rows[:1].tobytes()
    assert not any(content in call.body for call in gateway.seen)


def captured(gateway: EvilGateway, scene: Scene, *, session: bool = False) -> Captured:
    """A good call of the victim, held back: it has not run."""
    held: list[Captured] = []

    def hold(call: Captured) -> bytes:
        if call.path != SEALED + "SealedInfer":
            return gateway.send(EDGE, call.path, call.body, call.authorization)
        held.append(call)
        raise _gone()

    gateway.answer = hold
    with pytest.raises(SealaneError):
        predict(gateway, scene, sealed="session" if session else True, timeout=1.5)
    return held[0]


class _Gone(grpc.RpcError):
    """A refusal that the SDK does not try again."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.ABORTED

    def details(self) -> str:
        return "held back"

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()


def _gone() -> grpc.RpcError:
    return _Gone()


Attack = Callable[[pb.SealedInferRequest], None]


def _claims(call: Captured) -> dict[str, object]:
    token = str(dict(call.authorization)["authorization"]).partition(" ")[2]
    return dict(jws.parse(token, header_names=frozenset({"alg", "typ", "kid"})).claims)


ALTERED: dict[str, Attack] = {
    "another deployment": lambda r: setattr(r, "deployment", f"projects/default/deployments/{CAMERA_B}"),
    "another project": lambda r: setattr(r, "deployment", f"projects/other/deployments/{CAMERA_A}"),
    "another method": lambda r: setattr(r, "method", "/tensorflow.serving.PredictionService/Predict"),
    "the weaker suite": lambda r: setattr(r, "suite", suites.X25519),
    "a fresh time": lambda r: setattr(r, "issued_at_ms", int(time.time() * 1000)),
    "a fresh id": lambda r: setattr(r, "request_id", os.urandom(16)),
    "a flipped chunk": lambda r: r.chunks.__setitem__(0, bytes([r.chunks[0][0] ^ 1]) + r.chunks[0][1:]),
    "a chunk more": lambda r: r.chunks.append(r.chunks[0]),
    "no signature": lambda r: setattr(r, "signature", b""),
    "no chunks": lambda r: r.ClearField("chunks"),
}


def _attempts(scene: Scene) -> dict[str, Callable[[Captured], tuple[str, str, bytes]]]:
    """Name -> the worker, method and body that a gateway makes of a captured call."""

    def altered(change: Attack) -> Callable[[Captured], tuple[str, str, bytes]]:
        def make(call: Captured) -> tuple[str, str, bytes]:
            request = pb.SealedInferRequest.FromString(call.body)
            change(request)
            return EDGE, "SealedInfer", request.SerializeToString()

        return make

    def signed_by_another(call: Captured) -> tuple[str, str, bytes]:
        request, forged = pb.SealedInferRequest.FromString(call.body), _forge(scene, call, Ed25519PrivateKey.generate())
        request.sender_key, request.signature = forged.sender_key, forged.signature
        return EDGE, "SealedInfer", request.SerializeToString()

    def as_an_opening(call: Captured) -> tuple[str, str, bytes]:
        opening = pb.OpenSealedSessionRequest(envelope=pb.SealedInferRequest.FromString(call.body))
        return EDGE, "OpenSealedSession", opening.SerializeToString()

    def forged(call: Captured) -> tuple[str, str, bytes]:
        return EDGE, "SealedInfer", _forge(scene, call, Ed25519PrivateKey.generate()).SerializeToString()

    return {
        **{name: altered(change) for name, change in ALTERED.items()},
        "a forged envelope under the captured token": forged,
        "a forged session": lambda call: (EDGE, "OpenSealedSession", _forge_session(scene, call).SerializeToString()),
        "another worker": lambda call: (FAR, "SealedInfer", call.body),
        "as if it opened a session": as_an_opening,
        "another's signature": signed_by_another,
    }


def test_nothing_that_a_gateway_makes_of_a_captured_call_is_accepted(scene: Scene, gateway: EvilGateway) -> None:
    before, tried, accepted = scene.runs(), 0, []
    for name, make in _attempts(scene).items():
        call = captured(gateway, scene)  # of each its own, whose id no worker has seen
        worker, method, body = make(call)
        tried += 1
        try:
            gateway.send(worker, SEALED + method, body, call.authorization)
            accepted.append(name)
        except grpc.RpcError as failure:
            error = from_rpc_error(failure)
            public = error.reason in ("STALE_SEALING_KEY", "SENDER_KEY")
            assert public or error.message == "cannot open sealed payload", (name, error.kind, error.message)
    assert not accepted
    assert scene.runs() == before
    # A call that is left as it is runs once, and its replay does not.
    call = captured(gateway, scene)
    gateway.send(EDGE, call.path, call.body, call.authorization)
    for worker in (EDGE, EDGE, FAR):
        tried += 1
        with pytest.raises(grpc.RpcError):
            gateway.send(worker, call.path, call.body, call.authorization)
    opened = scene.runs() - before - 1
    print(f"figure: malicious gateway: {tried} attempts, {len(accepted)} accepted, {opened} opened")
    assert opened == 0


def test_a_captured_token_is_good_for_nothing_else(scene: Scene, gateway: EvilGateway) -> None:
    call = captured(gateway, scene)
    token = str(dict(call.authorization)["authorization"]).partition(" ")[2]
    row = scene.site.rows[:1]
    infer = oip.ModelInferRequest(model_name=CAMERA_A, raw_input_contents=[row.tobytes()])
    infer.inputs.add(name="image", datatype="FP32", shape=row.shape)
    for scheme in ("DPoP", "Bearer"):
        for path, body in (
            (INFER_PATH, infer.SerializeToString()),
            (SEALED + "GetSealingContext", pb.GetSealingContextRequest(model=CAMERA_A).SerializeToString()),
        ):
            for place in (EDGE, "inference"):
                with scene.site.channel(place) as channel, pytest.raises(grpc.RpcError) as told:
                    channel.unary_unary(path)(body, timeout=10, metadata=(("authorization", f"{scheme} {token}"),))
                assert told.value.code() == grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]


def test_nothing_that_a_gateway_makes_of_a_session_is_accepted(scene: Scene, gateway: EvilGateway) -> None:
    call = captured(gateway, scene, session=True)
    before = scene.runs()
    changes: dict[str, Attack] = {
        **{name: change for name, change in ALTERED.items() if name not in ("no signature", "a fresh id")},
        "another number": lambda r: setattr(r.session, "counter", 7),
        "the end": lambda r: setattr(r.session, "end", True),
        "another session": lambda r: setattr(r.session, "session_id", os.urandom(16)),
        "another key": lambda r: setattr(r.session, "key_id", "x"),
    }
    for name, change in changes.items():
        altered = pb.SealedInferRequest.FromString(call.body)
        change(altered)
        with pytest.raises(grpc.RpcError) as told:
            gateway.send(EDGE, call.path, altered.SerializeToString(), call.authorization)
        reason = from_rpc_error(told.value).reason
        assert reason in ("CANNOT_OPEN", "STALE_SEALING_KEY", "STALE_SEALED_SESSION"), (name, reason)
    other = f"DPoP {_token_of_another_sender(scene)}"
    with pytest.raises(grpc.RpcError) as told:
        gateway.send(EDGE, call.path, call.body, (("authorization", other),))
    assert from_rpc_error(told.value).reason == "SENDER_KEY"
    assert scene.runs() == before
    gateway.send(EDGE, call.path, call.body, call.authorization)
    with pytest.raises(grpc.RpcError):
        gateway.send(EDGE, call.path, call.body, call.authorization)
    assert scene.runs() == before + 1


def test_an_answer_of_its_own_does_not_open(scene: Scene, gateway: EvilGateway) -> None:
    answers: list[bytes] = []

    def swap(call: Captured) -> bytes:
        answers.append(gateway.send(EDGE, call.path, call.body, call.authorization))
        return answers[0]

    gateway.answer = swap
    with gateway.victim(scene.account, scene.secret) as client:
        client.inference.predict(CAMERA_A, scene.site.image, sealed=True)
        with pytest.raises(InvalidArgument, match="sealed answer"):
            client.inference.predict(CAMERA_A, scene.site.image, sealed=True)
    made = pb.SealedInferResponse(key_id="x", nonce=bytes(16), chunks=[bytes(32)]).SerializeToString()
    gateway.answer = lambda call: made
    with pytest.raises(InvalidArgument, match="sealed answer"):
        predict(gateway, scene)


def test_a_client_that_is_sent_to_another_deployment_gets_nothing_run(scene: Scene, gateway: EvilGateway) -> None:
    """Both are the victim's own: key and digest are good, but it is not what the victim asked for."""
    gateway.context = lambda request: scene.candidates(OTHER if request.model == CAMERA_A else CAMERA_B)
    before = scene.runs()
    gateway.answer = lambda call: gateway.send(FAR, call.path, call.body, call.authorization)
    with pytest.raises(NotFound):
        predict(gateway, scene, CAMERA_A)
    assert scene.runs() == before


def test_a_worker_that_auth_does_not_vouch_for_is_not_sealed_to(scene: Scene, gateway: EvilGateway) -> None:
    forger, pair = Ed25519PrivateKey.generate(), suites.generate(suites.HYBRID)
    honest = scene.candidates(CAMERA_A)

    def forged(**change: str) -> pb.SealingContext:
        attributes = {"tier": "edge", "zone": "site-a", "region": "eu", "pool": "edge", "clearance": "restricted"}
        statement = statements.issue(
            node="edge-1",
            suite=pair.suite,
            public_key=pair.public_key,
            attributes=attributes,
            key=forger,
            now=time.time(),
        )
        context = pb.SealingContext.FromString(honest.SerializeToString())
        context.candidates[0].statement = change.get("statement", statement)
        return context

    said = honest.candidates[0].statement
    header, claims, signature = said.split(".")
    moved = json.loads(jws.decode(claims))
    moved["region"] = "mars"
    altered = ".".join((header, jws.encode(json.dumps(moved).encode()), signature))
    gateway.answer = lambda call: b""
    for statement in ({}, {"statement": altered}, {"statement": said[:-4]}, {"statement": "x"}):
        gateway.context = lambda request, statement=statement: forged(**statement)
        gateway.seen.clear()
        with pytest.raises(SealaneError):
            predict(gateway, scene)
        assert not [call for call in gateway.seen if call.path.endswith("SealedInfer")], "nothing was sent"


def test_a_wrong_region_that_the_scheduler_chose_is_not_sealed_to(scene: Scene, gateway: EvilGateway) -> None:
    """A scheduler that routes to the wrong region: the statement says where the worker really is."""
    gateway.context = lambda request: scene.candidates(OTHER)
    gateway.answer = lambda call: gateway.send(FAR, call.path, call.body, call.authorization)
    for require in ({"region": "eu"}, {"zone": ["site-a", "site-c"]}, {"node": EDGE}):
        gateway.seen.clear()
        with pytest.raises(FailedPrecondition) as told:
            predict(gateway, scene, OTHER, require=require)
        assert told.value.reason == "NO_CANDIDATE"
        assert not [call for call in gateway.seen if call.path.endswith("SealedInfer")], "nothing was sent"


def test_a_worker_does_not_load_what_its_owner_forbids_it_whatever_the_scheduler_says(scene: Scene) -> None:
    """The registry's record says nothing of the policy, as if it or the scheduler had dropped it; the manifest does."""
    client = scene.site.client
    version = push_stripped(scene.site, "stripped", {"regions": ["us"]})
    client.deployments.create("stripped", version, residency=["site-a"], tier="edge")

    def refused() -> bool:
        rejections = client.deployments.get("stripped").decision.rejections
        return any(item.node == f"nodes/{EDGE}" and "could not load litert-int8" in item.detail for item in rejections)

    eventually(refused, "the worker refuses it", 30)
    log = (scene.site.data / "logs" / f"{EDGE}.log").read_text()
    assert "SEALING_POLICY" in log
    with pytest.raises(SealaneError):
        client.inference.predict("stripped", scene.site.image, sealed=True, timeout=2)
    client.deployments.delete("stripped")
    # Where it may be, it is served; plaintext is refused by the worker itself, whatever the gateway knows.
    client.deployments.create("stripped", version, residency=["site-b"], tier="edge")
    client.deployments.wait("stripped", 30)
    assert client.inference.predict("stripped", scene.site.image, sealed=True)["probabilities"].shape == (1, 10)
    for via in ("gateway", "direct"):
        with pytest.raises(FailedPrecondition) as told:
            client.inference.predict("stripped", scene.site.image, via=via)  # type: ignore[arg-type]
        assert told.value.reason == "SEALED_REQUIRED"
    client.deployments.delete("stripped")


def _forge(scene: Scene, call: Captured, key: Ed25519PrivateKey) -> pb.SealedInferRequest:
    """A request of the thief's own to the true worker, under the victim's token."""
    context = scene.candidates(CAMERA_A)
    claims, said = _claims(call), statements.claims_of(context.candidates[0].statement)
    bound = _bound(context, claims, INFER_PATH)
    target = Target(said["key_id"], jws.decode(said["public_key"]), context.candidates[0].variant_digest)
    return envelope.seal(b"mine", bound, [target], key).request


def _forge_session(scene: Scene, call: Captured) -> pb.OpenSealedSessionRequest:
    context = scene.candidates(CAMERA_A)
    claims, said = _claims(call), statements.claims_of(context.candidates[0].statement)
    target = Target(said["key_id"], jws.decode(said["public_key"]), context.candidates[0].variant_digest)
    session = ClientSession(_bound(context, claims, SEALED + "OpenSealedSession"), target, Ed25519PrivateKey.generate())
    return pb.OpenSealedSessionRequest(envelope=session.opening.request)


def _bound(context: pb.SealingContext, claims: dict[str, object], method: str) -> Bound:
    return Bound(
        suite=suites.HYBRID,
        project=str(claims["project"]),
        deployment=context.deployment,
        method=method,
        request_id=os.urandom(16),
        token_id=str(claims["jti"]),
        issued_at_ms=int(time.time() * 1000),
    )


def _token_of_another_sender(scene: Scene) -> str:
    with scene.site.client_of(scene.account, scene.secret) as other:
        return other.token("sealane-inference", bound=True)


def test_the_control_plane_never_sees_the_secret_of_who_was_refused(scene: Scene, gateway: EvilGateway) -> None:
    """A refusal names no content: texts are constant."""
    call = captured(gateway, scene)
    altered = pb.SealedInferRequest.FromString(call.body)
    altered.deployment = "projects/default/deployments/" + CAMERA_B
    with pytest.raises(grpc.RpcError) as told:
        gateway.send(EDGE, call.path, altered.SerializeToString(), call.authorization)
    error = from_rpc_error(told.value)
    assert (error.kind, error.message) == ("INVALID_ARGUMENT", "cannot open sealed payload")
    assert isinstance(error, InvalidArgument) and not isinstance(error, Unauthenticated)
