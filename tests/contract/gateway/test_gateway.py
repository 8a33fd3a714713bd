"""What callers of the gateway see: answers, refusals, and a worker that dies under them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from gateway_harness import OIP, PREDICTION, Gateway, LaneWorker, double, refuse
from google.protobuf import wrappers_pb2
from grpc_reflection.v1alpha import reflection_pb2

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import SealaneError, Unavailable
from sealane.inference.v1 import lane_service_pb2 as lane_pb
from sealane.inference.v1 import lane_service_pb2_grpc
from sealane.inference.v1 import sealed_inference_service_pb2 as sealed
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import InferenceCall, Target
from sealane.rpc.channel import Target as Address
from sealane.rpc.channel import connect
from sealane.rpc.status import from_rpc_error
from sealane.security import jws
from sealane.security.proof import prove
from sealane_inference.routing import Endpoint, Route

StartWorker = Callable[..., LaneWorker]
SEALED = "/sealane.inference.v1.SealedInferenceService/"
X = np.arange(8, dtype=np.float32).reshape(2, 4)


def route(*endpoints: Endpoint, deployment: str = "d", reason: str = "", constraint: str = "") -> Route:
    return Route("p", deployment, "m", "3", endpoints, reason, constraint)


def infer_body(model: str = "d", version: str = "", x: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = X) -> bytes:
    return openinference.encode_request(InferenceCall(Target(model, version), {"x": x})).SerializeToString()


def infer(gateway: Gateway, model: str = "d", **options: object) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    answer = gateway.call(OIP + "ModelInfer", infer_body(model), **options)  # type: ignore[arg-type]
    return openinference.decode_response(oip.ModelInferResponse.FromString(answer))["y"]


def refused(gateway: Gateway, path: str, body: bytes, **metadata: str) -> SealaneError:
    with pytest.raises(grpc.RpcError) as caught:
        gateway.call(path, body, **metadata)
    return from_rpc_error(caught.value)


def test_both_protocols_answer(gateway: Gateway, start_worker: StartWorker) -> None:
    gateway.routes(route(start_worker("w1").endpoint()))
    for model in ("d", "m"):
        np.testing.assert_array_equal(infer(gateway, model), X * 2)
        call = InferenceCall(Target(model), {"x": X})
        body = gateway.call(PREDICTION + "Predict", tfserving.encode_request(call).SerializeToString())
        response = tfs.PredictResponse.FromString(body)
        np.testing.assert_array_equal(tfserving.decode_response(response)["y"], X * 2)
        assert response.model_spec.name == model
        assert response.model_spec.version == wrappers_pb2.Int64Value(value=3)


def test_the_server_answers_for_itself(gateway: Gateway, start_worker: StartWorker) -> None:
    assert oip.ServerLiveResponse.FromString(gateway.call(OIP + "ServerLive", b"", authorization="")).live
    assert not oip.ServerReadyResponse.FromString(gateway.call(OIP + "ServerReady", b"", authorization="")).ready
    gateway.routes(route(start_worker("w1").endpoint()), route(deployment="e"))
    assert oip.ServerReadyResponse.FromString(gateway.call(OIP + "ServerReady", b"", authorization="")).ready
    assert (
        "classification" in oip.ServerMetadataResponse.FromString(gateway.call(OIP + "ServerMetadata", b"")).extensions
    )

    def ready(name: str) -> bool:
        body = oip.ModelReadyRequest(name=name).SerializeToString()
        return oip.ModelReadyResponse.FromString(gateway.call(OIP + "ModelReady", body)).ready

    assert ready("d") and not ready("e")
    assert not ready("nobody") and not ready(""), "an unknown model is not ready, and that is no error"


@pytest.mark.parametrize(
    ("status_route", "state"),
    [
        (route(Endpoint("w1", 1)), "AVAILABLE"),
        (route(), "LOADING"),
        (route(reason="needs the site", constraint="residency"), "END"),
    ],
)
def test_status_follows_from_the_routes(
    gateway: Gateway, start_worker: StartWorker, status_route: Route, state: str
) -> None:
    start_worker("w1")
    gateway.routes(status_route)
    request = tfs.GetModelStatusRequest(model_spec=tfs.ModelSpec(name="d"))
    body = gateway.call("/tensorflow.serving.ModelService/GetModelStatus", request.SerializeToString())
    (status,) = tfserving.decode_status(tfs.GetModelStatusResponse.FromString(body))
    assert (status.version, status.state) == (3, state)


def test_refusals_carry_the_known_codes_and_texts(gateway: Gateway, start_worker: StartWorker) -> None:
    gateway.routes(route(start_worker("w1").endpoint()), route(deployment="e"))
    predict = PREDICTION + "Predict"
    nothing = tfserving.encode_request(InferenceCall(Target("x", "3"), {})).SerializeToString()
    status = tfserving.encode_request(InferenceCall(Target("d", "9"), {})).SerializeToString()
    cases = [
        (refused(gateway, OIP + "ModelInfer", infer_body(), authorization=""), "UNAUTHENTICATED", "no access token"),
        (
            refused(
                gateway, OIP + "ModelInfer", infer_body(), authorization=f"Bearer {gateway.authority.token('deploy')}"
            ),
            "PERMISSION_DENIED",
            "'infer'",
        ),
        (refused(gateway, OIP + "ModelInfer", infer_body("x")), "NOT_FOUND", "Request for unknown model: 'x'"),
        (refused(gateway, OIP + "ModelInfer", infer_body("d", "9")), "NOT_FOUND", "'d' version 9"),
        (refused(gateway, OIP + "ModelInfer", infer_body("m")), "FAILED_PRECONDITION", "d, e"),
        (refused(gateway, OIP + "ModelInfer", infer_body("")), "INVALID_ARGUMENT", "names no model"),
        (refused(gateway, OIP + "ModelInfer", b"\xff"), "INVALID_ARGUMENT", "well-formed"),
        (refused(gateway, OIP + "ModelInfer", infer_body(x=X[:, :3])), "INVALID_ARGUMENT", "shape"),
        (refused(gateway, predict, nothing), "NOT_FOUND", "Servable not found for request: Specific(x, 3)"),
        (refused(gateway, predict, b""), "INVALID_ARGUMENT", "ModelSpec"),
        (
            refused(gateway, "/tensorflow.serving.ModelService/GetModelStatus", status),
            "NOT_FOUND",
            "Could not find version 9 of model d",
        ),
        (
            refused(
                gateway,
                OIP + "ModelInfer",
                infer_body(),
                authorization=f"Bearer {gateway.authority.token(project='q')}",
            ),
            "NOT_FOUND",
            "unknown model",
        ),
    ]
    for error, kind, text in cases:
        assert error.kind == kind, error
        assert text in error.message
    np.testing.assert_array_equal(infer(gateway), X * 2)


def test_the_worker_gets_what_the_gateway_vouches_for_and_nothing_else(
    gateway: Gateway, start_worker: StartWorker
) -> None:
    worker = start_worker("w1")
    gateway.routes(route(worker.endpoint()))
    token = gateway.authority.token()
    infer(gateway, authorization=f"Bearer {token}", x_sealane_cnf="forged", x_request_id="r-7", cookie="c")
    # One call in a hundred is sampled and then carries its trace, which is the gateway's own.
    got = {name: value for name, value in worker.calls[0].metadata.items() if name != "traceparent"}
    assert got == {"authorization": f"Bearer {token}", "x-request-id": "r-7"}
    assert (worker.calls[0].deployment, worker.calls[0].epoch) == ("projects/p/deployments/d", 1)
    assert worker.calls[0].payload == infer_body()
    assert 0 < worker.calls[0].timeout_us <= 10_000_000


def test_a_bound_token_needs_its_key_and_is_vouched_for(gateway: Gateway, start_worker: StartWorker) -> None:
    worker = start_worker("w1")
    gateway.routes(route(worker.endpoint()))
    key = Ed25519PrivateKey.generate()
    thumbprint = jws.thumbprint(key.public_key().public_bytes_raw())
    token = gateway.authority.token(thumbprint=thumbprint)
    stolen = refused(
        gateway, OIP + "ModelInfer", infer_body(), authorization=f"Bearer {token}", x_sealane_cnf=thumbprint
    )
    assert stolen.kind == "UNAUTHENTICATED" and not worker.calls
    proof = prove(key, method_path=OIP + "ModelInfer", token=token, now=time.time())
    infer(gateway, authorization=f"DPoP {token}", dpop=proof)
    assert worker.calls[0].metadata["x-sealane-cnf"] == thumbprint


def test_a_worker_that_dies_during_a_call_costs_no_answer(gateway: Gateway, start_worker: StartWorker) -> None:
    silent = start_worker("w1", lambda call: None)
    gateway.routes(route(silent.endpoint()))
    spare = start_worker("w2")
    answers = []
    caller = threading.Thread(target=lambda: answers.append(infer(gateway)))
    caller.start()
    assert silent.received.wait(5)
    gateway.routes(route(silent.endpoint(), spare.endpoint()))
    silent.die()
    caller.join(5)
    np.testing.assert_array_equal(answers[0], X * 2)


def test_a_stale_route_is_tried_elsewhere(gateway: Gateway, start_worker: StartWorker) -> None:
    stale = start_worker("w1", lambda call: refuse(Unavailable("another epoch", reason="STALE_ROUTE")))
    good = start_worker("w2")
    gateway.routes(route(stale.endpoint(), good.endpoint()))
    for _ in range(10):
        np.testing.assert_array_equal(infer(gateway), X * 2)
    assert len(good.calls) == 10


def test_a_call_waits_for_a_worker_that_is_being_placed(gateway: Gateway, start_worker: StartWorker) -> None:
    gateway.routes(route())
    worker = start_worker("w1")
    threading.Timer(0.3, lambda: gateway.routes(route(worker.endpoint()))).start()
    begun = time.monotonic()
    np.testing.assert_array_equal(infer(gateway), X * 2)
    assert time.monotonic() - begun > 0.2


def test_a_call_that_cannot_be_placed_is_refused_at_once_with_the_constraint(gateway: Gateway) -> None:
    gateway.routes(route(reason="data of class restricted must stay at site lab", constraint="residency"))
    error = refused(gateway, OIP + "ModelInfer", infer_body())
    assert (error.kind, error.reason) == ("UNAVAILABLE", "RESIDENCY")
    assert error.metadata["constraint"] == "residency"
    assert "site lab" in error.message


def test_nobody_is_waited_for_beyond_the_deadline(gateway: Gateway) -> None:
    gateway.routes(route())
    begun = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        infer(gateway, timeout=0.5)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)  # type: ignore[attr-defined]
    assert time.monotonic() - begun < 10


def test_calls_go_on_at_once_while_one_worker_is_slow(gateway: Gateway, start_worker: StartWorker) -> None:
    def slow(call: lane_pb.CallFrame) -> lane_pb.ReplyFrame:
        time.sleep(0.3)
        return double(call)

    slow_worker, quick = start_worker("w1", slow), start_worker("w2")
    gateway.routes(route(slow_worker.endpoint(), quick.endpoint()))
    for _ in range(30):
        infer(gateway)
    assert len(slow_worker.calls) <= 3


def envelope(*key_ids: str, deployment: str = "projects/p/deployments/d") -> bytes:
    recipients = [sealed.Recipient(key_id=key_id, wrapped_key=b"k") for key_id in key_ids]
    return sealed.SealedInferRequest(
        version=1, deployment=deployment, recipients=recipients, chunks=[b"\x07" * 100_000]
    ).SerializeToString()


def test_a_sealed_call_goes_to_a_recipient_untouched(gateway: Gateway, start_worker: StartWorker) -> None:
    first = start_worker("w1")
    second = start_worker("w2", lambda call: lane_pb.ReplyFrame(payload=b"sealed answer"))
    gateway.routes(route(first.endpoint("k1"), second.endpoint("k2")))
    for _ in range(5):
        assert gateway.call(SEALED + "SealedInfer", envelope("k2", "gone")) == b"sealed answer"
    assert not first.calls
    assert second.calls[0].payload == envelope("k2", "gone")
    stale = refused(gateway, SEALED + "SealedInfer", envelope("gone"))
    assert (stale.kind, stale.reason) == ("FAILED_PRECONDITION", "STALE_SEALING_KEY")
    foreign = refused(gateway, SEALED + "SealedInfer", envelope("k1", deployment="projects/q/deployments/d"))
    assert foreign.kind == "NOT_FOUND"
    nine = refused(gateway, SEALED + "SealedInfer", envelope(*"abcdefghi"))
    assert nine.kind == "INVALID_ARGUMENT"


def test_a_sealed_call_that_may_have_run_is_not_sent_again(gateway: Gateway, start_worker: StartWorker) -> None:
    silent = start_worker("w1", lambda call: None)
    gateway.routes(route(silent.endpoint("k1")))
    errors = []
    caller = threading.Thread(
        target=lambda: errors.append(refused(gateway, SEALED + "SealedInfer", envelope("k1", "k2")))
    )
    caller.start()
    assert silent.received.wait(5)
    spare = start_worker("w2")
    gateway.routes(route(silent.endpoint("k1"), spare.endpoint("k2")))
    silent.die()
    caller.join(5)
    assert (errors[0].kind, errors[0].reason) == ("UNAVAILABLE", "LANE_LOST")
    assert not spare.calls


def test_a_sealed_call_that_was_refused_goes_to_the_next_recipient(gateway: Gateway, start_worker: StartWorker) -> None:
    busy = start_worker("w1", lambda call: refuse(Unavailable("another epoch", reason="STALE_ROUTE")))
    good = start_worker("w2", lambda call: lane_pb.ReplyFrame(payload=b"sealed answer"))
    gateway.routes(route(busy.endpoint("k1"), good.endpoint("k2")))
    for _ in range(5):
        assert gateway.call(SEALED + "SealedInfer", envelope("k1", "k2")) == b"sealed answer"


def test_the_sealing_context_lists_reachable_workers_with_keys(gateway: Gateway, start_worker: StartWorker) -> None:
    keyed, keyless = start_worker("w1"), start_worker("w2")
    away = Endpoint("w3", 1, key_id="k3", statement="s3")
    gateway.routes(route(keyed.endpoint("k1"), keyless.endpoint(), away))
    body = sealed.GetSealingContextRequest(model="m").SerializeToString()
    context = sealed.SealingContext.FromString(gateway.call(SEALED + "GetSealingContext", body))
    assert context.deployment == "projects/p/deployments/d"
    assert context.model_version == "projects/p/models/m/versions/3"
    assert [candidate.statement for candidate in context.candidates] == ["s"]


def test_lanes_are_for_nodes(gateway: Gateway) -> None:
    identity = gateway.authority.identity(
        gateway.directory / "registry", "spiffe://sealane/service/registry", "registry.service.sealane"
    )
    channel = connect(
        Address(
            gateway.mesh,
            identity.trust_bundle,
            "inference.service.sealane",
            identity.private_key,
            identity.certificate_chain,
        )
    )
    hello = lane_pb.WorkerFrames(frames=[lane_pb.WorkerFrame(hello=lane_pb.HelloFrame())])
    with channel, pytest.raises(SealaneError) as caught:
        next(iter(lane_service_pb2_grpc.LaneServiceStub(channel).Open(iter([hello]))))
    assert caught.value.kind == "PERMISSION_DENIED"


def test_reflection_shows_the_foreign_names(gateway: Gateway) -> None:
    ask = gateway.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    questions = [
        reflection_pb2.ServerReflectionRequest(list_services="*"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="tensorflow.serving.PredictionService.Predict"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="nothing.Here"),
    ]
    metadata = [("authorization", f"Bearer {gateway.authority.token('reflect')}")]
    listed, triton, serving, nothing = ask(iter(questions), metadata=metadata, timeout=5)
    names = {service.name for service in listed.list_services_response.service}
    assert {"inference.GRPCInferenceService", "tensorflow.serving.PredictionService"} <= names
    assert len(triton.file_descriptor_response.file_descriptor_proto) == 2
    assert len(serving.file_descriptor_response.file_descriptor_proto) >= 2
    assert nothing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
