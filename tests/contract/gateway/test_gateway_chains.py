"""Chains at the gateway: forwarded whole where a worker serves all models, run from model to model where none does."""

from __future__ import annotations

import time
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from gateway_harness import OIP, PREDICTION, SIGNATURE, Gateway, LaneWorker, double, refuse

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.ensembles import Chain, Step, signature_of
from sealane.errors import MODEL_CRASHED, FailedPrecondition, InvalidArgument, SealaneError, Unavailable
from sealane.inference.v1 import lane_service_pb2 as lane_pb
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import InferenceCall, Target
from sealane.rpc.status import from_rpc_error
from sealane.security.tokens import ISSUER, Grant, issue
from sealane.tensors import Array
from sealane_inference import app
from sealane_inference.routing import ChainRoute, Endpoint, Route

StartWorker = Callable[..., LaneWorker]
X = np.arange(8, dtype=np.float32).reshape(2, 4)
#: y = 2 x, twice one after the other, and once beside.
CHAIN = Chain(
    (
        Step("a", {"x": "in"}, {"y": "half"}),
        Step("b", {"x": "half"}, {"y": "out"}),
        Step("a", {"x": "in"}, {"y": "beside"}),
    ),
    ("out", "beside"),
)
ROUTED = ChainRoute(CHAIN, signature_of(CHAIN, {"a": SIGNATURE, "b": SIGNATURE}), ("ma", "mb"))


def single(deployment: str, *endpoints: Endpoint) -> Route:
    return Route("p", deployment, f"m{deployment}", "3", endpoints)


def whole(*endpoints: Endpoint) -> Route:
    return Route("p", "both", "both", "1", endpoints, chain=ROUTED)


def infer(gateway: Gateway, *outputs: str, **options: object) -> dict[str, Array]:
    request = openinference.encode_request(InferenceCall(Target("both"), {"in": X}, outputs))
    answer = gateway.call(OIP + "ModelInfer", request.SerializeToString(), **options)  # type: ignore[arg-type]
    return openinference.decode_response(oip.ModelInferResponse.FromString(answer))


@pytest.fixture
def spread(gateway: Gateway, start_worker: StartWorker) -> tuple[LaneWorker, LaneWorker]:
    """Model a on one worker, model b on another."""
    first, second = start_worker("w1"), start_worker("w2")
    gateway.routes(single("a", first.endpoint()), single("b", second.endpoint()), whole())
    return first, second


def test_models_on_several_workers_are_called_one_after_the_other(
    gateway: Gateway, spread: tuple[LaneWorker, LaneWorker]
) -> None:
    outputs = infer(gateway)
    assert list(outputs) == ["out", "beside"]
    np.testing.assert_array_equal(outputs["out"], X * 4)
    np.testing.assert_array_equal(outputs["beside"], X * 2)
    assert [len(worker.calls) for worker in spread] == [2, 1]
    assert {call.deployment for call in spread[1].calls} == {"projects/p/deployments/b"}


def test_models_that_no_wanted_output_needs_are_not_called(
    gateway: Gateway, spread: tuple[LaneWorker, LaneWorker]
) -> None:
    assert list(infer(gateway, "beside")) == ["beside"]
    assert [len(worker.calls) for worker in spread] == [1, 0]


def test_tensorflow_serving_clients_call_it_as_any_model(
    gateway: Gateway, spread: tuple[LaneWorker, LaneWorker]
) -> None:
    body = tfserving.encode_request(InferenceCall(Target("both"), {"in": X})).SerializeToString()
    response = tfs.PredictResponse.FromString(gateway.call(PREDICTION + "Predict", body))
    np.testing.assert_array_equal(tfserving.decode_response(response)["out"], X * 4)
    assert (response.model_spec.name, response.model_spec.version.value) == ("both", 1)
    request = tfs.GetModelMetadataRequest(model_spec=tfs.ModelSpec(name="both"), metadata_field=["signature_def"])
    metadata = gateway.call(PREDICTION + "GetModelMetadata", request.SerializeToString())
    described = tfserving.decode_metadata(tfs.GetModelMetadataResponse.FromString(metadata))
    assert [spec.name for spec in described.signatures[0].inputs] == ["in"]


def test_it_describes_itself(gateway: Gateway, spread: tuple[LaneWorker, LaneWorker]) -> None:
    asked = oip.ModelMetadataRequest(name="both").SerializeToString()
    metadata = oip.ModelMetadataResponse.FromString(gateway.call(OIP + "ModelMetadata", asked))
    assert (metadata.platform, [item.name for item in metadata.outputs]) == ("ensemble", ["out", "beside"])
    config = oip.ModelConfigResponse.FromString(gateway.call(OIP + "ModelConfig", asked)).config
    assert [step.model_name for step in config.ensemble_scheduling.step] == ["a", "b", "a"]
    assert oip.ModelReadyResponse.FromString(gateway.call(OIP + "ModelReady", asked)).ready
    spread[1].die()
    assert not oip.ModelReadyResponse.FromString(gateway.call(OIP + "ModelReady", asked)).ready


def test_bad_inputs_are_refused_before_any_model_is_called(
    gateway: Gateway, spread: tuple[LaneWorker, LaneWorker]
) -> None:
    for call in (InferenceCall(Target("both"), {"x": X}), InferenceCall(Target("both"), {"in": X}, ("half",))):
        with pytest.raises(grpc.RpcError) as refused:
            gateway.call(OIP + "ModelInfer", openinference.encode_request(call).SerializeToString())
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert not spread[0].calls


def test_a_worker_that_serves_all_models_gets_the_chain_whole(gateway: Gateway, start_worker: StartWorker) -> None:
    one = start_worker("w1")
    endpoint = one.endpoint()
    gateway.routes(single("a", endpoint), single("b", endpoint), whole(endpoint))
    with pytest.raises(grpc.RpcError):
        infer(gateway)  # the double of a worker knows no chain; what counts is what it was asked
    assert [(call.deployment, call.method) for call in one.calls] == [
        ("projects/p/deployments/both", OIP + "ModelInfer")
    ]


def test_a_caller_needs_the_right_to_every_model(gateway: Gateway, spread: tuple[LaneWorker, LaneWorker]) -> None:
    def token(*prefixes: str) -> str:
        grant = Grant("camera", "camera", "p", app.AUDIENCE, ("infer",), models={"infer": prefixes})
        return issue(grant, key=gateway.authority.tokens, issuer=ISSUER, now=time.time())

    assert infer(gateway, authorization=f"Bearer {token('ma', 'mb')}")
    with pytest.raises(grpc.RpcError) as refused:
        infer(gateway, authorization=f"Bearer {token('ma')}")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "told",
    [
        FailedPrecondition("quarantined", reason="MODEL_QUARANTINED"),
        InvalidArgument("of another shape", reason="INPUT_SHAPE_MISMATCH", field="inputs.x"),
        Unavailable("crashed", reason=MODEL_CRASHED, retry_after=0.4),
    ],
)
def test_what_a_model_answers_is_what_the_chain_answers(
    gateway: Gateway, start_worker: StartWorker, told: SealaneError
) -> None:
    """Both models of the first stage fail, so that one failure is not the only one."""
    first, second = start_worker("w1", lambda call: refuse(told)), start_worker("w2", lambda call: refuse(told))
    beside = Chain((Step("a", {"x": "in"}, {"y": "half"}), Step("b", {"x": "in"}, {"y": "other"})), ("half", "other"))
    chain = ChainRoute(beside, signature_of(beside, {"a": SIGNATURE, "b": SIGNATURE}), ("ma", "mb"))
    gateway.routes(
        single("a", first.endpoint()), single("b", second.endpoint()), Route("p", "both", "both", "1", chain=chain)
    )
    with pytest.raises(grpc.RpcError) as refused:
        infer(gateway)
    error = from_rpc_error(refused.value)
    assert (error.kind, error.reason, error.message) == (told.kind, told.reason, told.message)
    assert (error.field, error.retry_after) == (told.field, told.retry_after)
    assert len(first.calls) <= 1 and len(second.calls) <= 1


def test_a_chain_says_which_of_its_models_is_gone(gateway: Gateway, start_worker: StartWorker) -> None:
    gateway.routes(single("a", start_worker("w1").endpoint()), whole())
    with pytest.raises(grpc.RpcError) as refused:
        infer(gateway)
    error = from_rpc_error(refused.value)
    assert (error.kind, error.reason) == ("UNAVAILABLE", "ENSEMBLE_PART") and "'b'" in error.message


def with_parameters(**parameters: oip.InferParameter) -> bytes:
    request = openinference.encode_request(InferenceCall(Target("both"), {"in": X}))
    for name, value in parameters.items():
        request.parameters[name].CopyFrom(value)
    body: bytes = request.SerializeToString()
    return body


def test_a_callers_timeout_is_for_the_whole_chain(gateway: Gateway, start_worker: StartWorker) -> None:
    first, second = start_worker("w1"), start_worker("w2", lambda call: None)
    gateway.routes(single("a", first.endpoint()), single("b", second.endpoint()), whole())
    body = with_parameters(timeout=oip.InferParameter(int64_param=2_000_000))
    with pytest.raises(grpc.RpcError) as refused:
        gateway.call(OIP + "ModelInfer", body, timeout=60.0)
    assert from_rpc_error(refused.value).reason == "WORKER_TIMEOUT", "it ended here, not at the caller"
    assert all(call.timeout_us <= 2_000_000 for call in (*first.calls, *second.calls))


def test_each_model_keeps_the_callers_sequence_on_one_worker(gateway: Gateway, start_worker: StartWorker) -> None:
    workers = [start_worker(f"w{number}") for number in range(3)]
    endpoints = [worker.endpoint() for worker in workers]
    gateway.routes(single("a", *endpoints[:2]), single("b", endpoints[2]), whole())
    for step in range(6):
        body = with_parameters(
            sequence_id=oip.InferParameter(int64_param=7),
            sequence_start=oip.InferParameter(bool_param=step == 0),
            sequence_end=oip.InferParameter(bool_param=step == 5),
        )
        gateway.call(OIP + "ModelInfer", body)
    asked = [openinference.decode_request(oip.ModelInferRequest.FromString(call.payload)) for call in workers[2].calls]
    places = [call.sequence for call in asked if call.sequence is not None]
    assert [(place.id, place.start, place.end) for place in places] == [
        ("7", step == 0, step == 5) for step in range(6)
    ]
    assert sorted(len(worker.calls) for worker in workers[:2]) == [0, 12]


def test_a_chain_over_several_workers_tells_what_it_has_done(gateway: Gateway, start_worker: StartWorker) -> None:
    fails: list[bool] = []

    def answer(call: lane_pb.CallFrame) -> lane_pb.ReplyFrame:
        return refuse(FailedPrecondition("no", reason="NO")) if fails else double(call)

    gateway.routes(
        single("a", start_worker("w1", answer).endpoint()), single("b", start_worker("w2").endpoint()), whole()
    )
    infer(gateway)
    infer(gateway)
    fails.append(True)
    with pytest.raises(grpc.RpcError):
        infer(gateway)
    asked = oip.ModelStatisticsRequest(name="both").SerializeToString()
    (told,) = oip.ModelStatisticsResponse.FromString(gateway.call(OIP + "ModelStatistics", asked)).model_stats
    assert (told.name, told.version, told.inference_count, told.execution_count) == ("both", "1", 4, 2)
    assert (told.inference_stats.success.count, told.inference_stats.fail.count) == (2, 1)


def test_no_model_is_called_that_the_chain_was_not_checked_with(
    gateway: Gateway, spread: tuple[LaneWorker, LaneWorker]
) -> None:
    first, second = spread
    other = Route("p", "b", "secret", "1", (second.endpoint(),))
    hiding = Route("p", "x-v1", "secret", "1", (second.endpoint(),), served_name="b")
    gateway.routes(single("a", first.endpoint()), other, hiding, whole())
    with pytest.raises(grpc.RpcError, match="'b' of the chain is gone"):
        infer(gateway, timeout=2.0)
    gateway.routes(single("a", first.endpoint()), single("b", second.endpoint()), hiding, whole())
    infer(gateway)
    assert {call.deployment for call in second.calls} == {"projects/p/deployments/b"}
