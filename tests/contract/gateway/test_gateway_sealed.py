"""Sealed sessions and streams at the gateway, which passes on what it cannot read, and what it refuses unsealed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import grpc
import pytest
from gateway_harness import OIP, PREDICTION, Gateway, LaneWorker, refuse

from sealane.errors import InvalidArgument, SealaneError
from sealane.inference.v1 import lane_service_pb2 as lane_pb
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import InferenceCall, Target
from sealane.protocols.sealed import INFER, OPEN_SESSION, OPEN_STREAM
from sealane.rpc.status import from_rpc_error
from sealane.security.sealing_policy import SealingPolicy
from sealane_inference.routing import Endpoint, Route

StartWorker = Callable[..., LaneWorker]
DEPLOYMENT = "projects/p/deployments/d"


def route(*endpoints: Endpoint, required: bool = False) -> Route:
    return Route("p", "d", "m", "3", endpoints, sealing_required=required)


def opening(method: str = OPEN_SESSION, key_id: str = "k1", deployment: str = DEPLOYMENT) -> bytes:
    recipients = [pb.Recipient(key_id=key_id, wrapped_key=b"w")]
    envelope = pb.SealedInferRequest(deployment=deployment, method=method, recipients=recipients)
    return pb.OpenSealedSessionRequest(envelope=envelope).SerializeToString()


def placed(counter: int, key_id: str = "k1", deployment: str = DEPLOYMENT) -> pb.SealedInferRequest:
    place = pb.SessionPlace(key_id=key_id, session_id=b"s", counter=counter)
    return pb.SealedInferRequest(deployment=deployment, session=place, chunks=[bytes([counter]) * 40])


def answer(call: lane_pb.CallFrame) -> lane_pb.ReplyFrame:
    """Names the method, and the number of a session's request."""
    if call.method == OPEN_SESSION:
        told = pb.SealedInferResponse(key_id="opened")
        return lane_pb.ReplyFrame(payload=pb.OpenSealedSessionResponse(answer=told).SerializeToString())
    number = pb.SealedInferRequest.FromString(call.payload).session.counter
    return lane_pb.ReplyFrame(payload=pb.SealedInferResponse(key_id=str(number)).SerializeToString())


def refused(work: Callable[[], object]) -> SealaneError:
    with pytest.raises(grpc.RpcError) as caught:
        work()
    return from_rpc_error(caught.value)


def stream(gateway: Gateway, bodies: Iterator[bytes]) -> Iterator[pb.SealedInferResponse]:
    method = gateway.channel.stream_stream(OPEN_STREAM)
    for body in method(bodies, timeout=10, metadata=(("authorization", f"Bearer {gateway.authority.token()}"),)):
        yield pb.SealedInferStreamResponse.FromString(body).answer


def test_a_session_goes_to_its_worker_alone(gateway: Gateway, start_worker: StartWorker) -> None:
    first, second = start_worker("w1", answer), start_worker("w2", answer)
    gateway.routes(route(first.endpoint("k1"), second.endpoint("k2")))
    for _ in range(3):
        told = pb.OpenSealedSessionResponse.FromString(gateway.call(OPEN_SESSION, opening(key_id="k2")))
        assert told.answer.key_id == "opened"
        gateway.call(INFER, placed(7, "k2").SerializeToString())
    assert not first.calls
    assert [call.method for call in second.calls] == [OPEN_SESSION, INFER] * 3
    assert second.calls[0].payload == opening(key_id="k2"), "untouched"
    assert second.calls[1].payload == placed(7, "k2").SerializeToString()


@pytest.mark.parametrize("path", [OPEN_SESSION, INFER])
def test_what_leads_nowhere_says_why(gateway: Gateway, start_worker: StartWorker, path: str) -> None:
    gateway.routes(route(start_worker("w1", answer).endpoint("k1")))

    def body(**told: str) -> bytes:
        return opening(**told) if path == OPEN_SESSION else placed(0, **told).SerializeToString()

    stale = refused(lambda: gateway.call(path, body(key_id="gone")))
    assert (stale.kind, stale.reason) == ("FAILED_PRECONDITION", "STALE_SEALING_KEY")
    for deployment in ("projects/q/deployments/d", "projects/p/deployments/e", ""):
        assert (
            refused(lambda deployment=deployment: gateway.call(path, body(deployment=deployment))).kind == "NOT_FOUND"
        )
    for nonsense in (b"", b"\xff", b"\x0a\x05ab"):
        assert refused(lambda nonsense=nonsense: gateway.call(path, nonsense)).kind == "INVALID_ARGUMENT"


def test_messages_of_a_stream_are_calls_in_their_order(gateway: Gateway, start_worker: StartWorker) -> None:
    worker = start_worker("w1", answer)
    gateway.routes(route(worker.endpoint("k1")))
    first = pb.SealedInferStreamRequest.FromString(opening(OPEN_STREAM)).SerializeToString()
    later = [pb.SealedInferStreamRequest(request=placed(number)).SerializeToString() for number in range(30)]
    answers = list(stream(gateway, iter([first, *later])))
    assert [told.key_id for told in answers] == ["opened", *map(str, range(30))]
    assert [call.method for call in worker.calls] == [OPEN_SESSION, *[INFER] * 30]
    assert [call.payload for call in worker.calls[1:]] == [placed(number).SerializeToString() for number in range(30)]


@pytest.mark.parametrize("method", [OPEN_SESSION, INFER, ""])
def test_a_stream_that_opens_no_stream_is_refused(gateway: Gateway, start_worker: StartWorker, method: str) -> None:
    """What its order is kept by is the opening's method, which the sender signed."""
    worker = start_worker("w1", answer)
    gateway.routes(route(worker.endpoint("k1")))
    error = refused(lambda: list(stream(gateway, iter([opening(method)]))))
    assert (error.kind, error.reason) == ("INVALID_ARGUMENT", "STREAM_OPENING")
    assert not worker.calls


def test_a_message_that_is_refused_ends_the_stream(gateway: Gateway, start_worker: StartWorker) -> None:
    def some(call: lane_pb.CallFrame) -> lane_pb.ReplyFrame:
        told = answer(call)
        if call.method == INFER and pb.SealedInferResponse.FromString(told.payload).key_id == "1":
            return refuse(InvalidArgument("cannot open sealed payload", reason="CANNOT_OPEN"))
        return told

    worker = start_worker("w1", some)
    gateway.routes(route(worker.endpoint("k1")))
    later = [pb.SealedInferStreamRequest(request=placed(number)).SerializeToString() for number in range(5)]
    got: list[str] = []

    def read() -> None:
        for told in stream(gateway, iter([opening(OPEN_STREAM), *later])):
            got.append(told.key_id)

    assert refused(read).reason == "CANNOT_OPEN"
    assert got == ["opened", "0"] and len(worker.calls) == 3


def test_the_context_tells_what_owners_demand(gateway: Gateway, start_worker: StartWorker) -> None:
    worker = start_worker("w1")
    policy = SealingPolicy(required=True, regions=("eu",))
    gateway.routes(route(replace(worker.endpoint("k1"), policies=(policy,))))
    body = pb.GetSealingContextRequest(model="d", version="3").SerializeToString()
    context = pb.SealingContext.FromString(
        gateway.call("/sealane.inference.v1.SealedInferenceService/GetSealingContext", body)
    )
    (told,) = context.candidates[0].policies
    assert told.required and list(told.regions) == ["eu"]
    other = pb.GetSealingContextRequest(model="d", version="4").SerializeToString()
    path = "/sealane.inference.v1.SealedInferenceService/GetSealingContext"
    assert refused(lambda: gateway.call(path, other)).kind == "NOT_FOUND"


def test_plaintext_that_an_owner_refuses_reaches_no_worker(gateway: Gateway, start_worker: StartWorker) -> None:
    worker = start_worker("w1")
    gateway.routes(route(worker.endpoint("k1"), required=True))
    call = InferenceCall(Target("d"), {})
    bodies = {
        OIP + "ModelInfer": openinference.encode_request(call).SerializeToString(),
        PREDICTION + "Predict": tfserving.encode_request(call).SerializeToString(),
    }
    for path, body in bodies.items():
        error = refused(lambda path=path, body=body: gateway.call(path, body))
        assert (error.kind, error.reason) == ("FAILED_PRECONDITION", "SEALED_REQUIRED")
    assert not worker.calls
