"""Chains at the gateway: forwarded whole where a worker serves all models, run from model to model where none does."""

from __future__ import annotations

import time
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from gateway_harness import OIP, PREDICTION, SIGNATURE, Gateway, LaneWorker

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.ensembles import Chain, Step, signature_of
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import InferenceCall, Target
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
