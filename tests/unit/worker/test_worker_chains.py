"""Chains on a worker: run from model to model here, with what the caller may and how long he waits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from worker_parts import DEPLOYMENT, DIGEST, Front

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.ensembles import Chain, Step, signature_of
from sealane.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import InferenceCall, Target
from sealane.tensors import Array
from sealane_worker.chains import ServedChain
from sealane_worker.deployment import Assignment, Inference

OIP = "/inference.GRPCInferenceService/"
NAME = "projects/p/deployments/twice"
#: The same model twice beside each other; a chain's own names for its tensors.
CHAIN = Chain(
    (
        Step("camera", {"image": "left"}, {"probabilities": "p"}),
        Step("camera", {"image": "right"}, {"probabilities": "q"}),
    )
)


@pytest.fixture
def chained(front: Front) -> Iterator[Front]:
    members = {"camera": next(iter(front.engine.model(DEPLOYMENT).signatures.values()))}
    front.engine.chain([ServedChain(NAME, 7, CHAIN, signature_of(CHAIN, members), ("digits",))])
    yield front
    front.engine.chain([])


def infer(front: Front, inputs: dict[str, Array], *outputs: str) -> dict[str, Array]:
    request = openinference.encode_request(InferenceCall(Target("twice"), inputs, outputs))
    return openinference.decode_response(oip.ModelInferResponse.FromString(front.call(OIP + "ModelInfer", request)))


def alone(front: Front, rows: Array) -> Array:
    request = openinference.encode_request(InferenceCall(Target("camera"), {"image": rows}))
    answer = oip.ModelInferResponse.FromString(front.call(OIP + "ModelInfer", request))
    return openinference.decode_response(answer)["probabilities"]


def test_a_chain_answers_as_its_models_do(chained: Front, digits: tuple[Array, Array]) -> None:
    left, right = digits[0][:3], digits[0][3:6]
    outputs = infer(chained, {"left": left, "right": right})
    np.testing.assert_array_equal(outputs["p"], alone(chained, left))
    np.testing.assert_array_equal(outputs["q"], alone(chained, right))
    assert list(infer(chained, {"left": left, "right": right}, "q")) == ["q"]
    body = tfserving.encode_request(InferenceCall(Target("twice"), {"left": left, "right": right}))
    response = tfs.PredictResponse.FromString(chained.call("/tensorflow.serving.PredictionService/Predict", body))
    np.testing.assert_array_equal(tfserving.decode_response(response)["p"], outputs["p"])


def test_it_is_described_counted_and_listed(chained: Front, digits: tuple[Array, Array]) -> None:
    infer(chained, {"left": digits[0][:2], "right": digits[0][:2]})
    config = oip.ModelConfigResponse.FromString(
        chained.call(OIP + "ModelConfig", oip.ModelConfigRequest(name="twice"))
    ).config
    assert config.platform == "ensemble" and len(config.ensemble_scheduling.step) == 2
    request = oip.ModelStatisticsRequest(name="twice")
    (stats,) = oip.ModelStatisticsResponse.FromString(chained.call(OIP + "ModelStatistics", request)).model_stats
    assert stats.inference_count == 2
    index = oip.RepositoryIndexResponse.FromString(chained.call(OIP + "RepositoryIndex", oip.RepositoryIndexRequest()))
    assert {item.name for item in index.models} == {"camera", "twice"}


def test_what_does_not_fit_is_refused(chained: Front, digits: tuple[Array, Array]) -> None:
    row = digits[0][:1]
    with pytest.raises(InvalidArgument, match="missing"):
        infer(chained, {"left": row})
    with pytest.raises(InvalidArgument, match="unexpected inference output"):
        infer(chained, {"left": row, "right": row}, "probabilities")
    with pytest.raises(NotFound):
        chained.call(
            OIP + "ModelInfer",
            openinference.encode_request(InferenceCall(Target("twice"), {"left": row, "right": row})),
            project="stranger",
        )


def asked(**more: object) -> Inference:
    rows = np.zeros((1, 8, 8, 1), np.float32)
    inputs: dict[str, Array] = {"left": rows, "right": rows}
    return Inference(NAME, inputs, **{"deadline": time.monotonic() + 5, **more})  # type: ignore[arg-type]


def test_deadline_and_epoch_hold_for_the_whole_chain(chained: Front) -> None:
    assert set(chained.engine.infer(asked(epoch=7)).outputs) == {"p", "q"}
    with pytest.raises(FailedPrecondition, match="another chain"):
        chained.engine.infer(asked(epoch=6))
    with pytest.raises(DeadlineExceeded):
        chained.engine.infer(asked(deadline=time.monotonic() - 1))


def test_callers_wait_for_a_model_that_is_not_there_yet(chained: Front) -> None:
    other = Chain((Step("nobody", {"image": "left"}, {"probabilities": "p"}),))
    signature = next(iter(chained.engine.model(DEPLOYMENT).signatures.values()))
    chained.engine.chain([ServedChain(NAME, 8, other, signature_of(other, {"nobody": signature}), ("digits",))])
    with pytest.raises(Unavailable, match="'nobody' of the chain"):
        rows = np.zeros((1, 8, 8, 1), np.float32)
        chained.engine.infer(Inference(NAME, {"left": rows}, time.monotonic() + 5))


def test_no_model_runs_that_the_chain_was_not_checked_with(chained: Front) -> None:
    members = {"camera": next(iter(chained.engine.model(DEPLOYMENT).signatures.values()))}
    chained.engine.chain([ServedChain(NAME, 9, CHAIN, signature_of(CHAIN, members), ("another-model",))])
    with pytest.raises(Unavailable, match="'camera' of the chain"):
        chained.engine.infer(asked())


def test_a_chain_is_never_unloaded_as_a_model_is(chained: Front) -> None:
    assert [model.assignment.deployment for model in chained.engine.models()] == [DEPLOYMENT]
    assert chained.engine.model(NAME).assignment == Assignment(
        NAME, "projects/p/models/twice", 1, "ensemble", "", 7, chained.engine.model(NAME).assignment.spec
    )
    assert chained.engine.model(NAME).assignment.spec.path == Path()
    assert DIGEST not in chained.engine.model(NAME).assignment.digest
