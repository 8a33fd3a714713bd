"""A worker's answers beyond inference: examples, configuration, statistics, index, and inferences over a stream."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
from google.protobuf.message import Message
from worker_parts import Front

from sealane.compat.openinference.v2 import model_config_pb2
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import example_pb2
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import InvalidArgument, NotFound, SealaneError, Unimplemented
from sealane.protocols import openinference
from sealane.protocols.call import InferenceCall, Target
from sealane.rpc.call import Call, Peer
from sealane.tensors import Array

OIP = "/inference.GRPCInferenceService/"
TFS = "/tensorflow.serving.PredictionService/"


def example(row: Array, **features: Array) -> example_pb2.Example:
    message = example_pb2.Example()
    for name, values in {"image": row, **features}.items():
        message.features.feature[name].float_list.value.extend(values.ravel().tolist())
    return message


def examples(rows: Array) -> tfs.Input:
    return tfs.Input(example_list=tfs.ExampleList(examples=[example(row) for row in rows]))


def classify(front: Front, source: tfs.Input, model: str = "camera") -> tfs.ClassificationResponse:
    request = tfs.ClassificationRequest(model_spec=tfs.ModelSpec(name=model), input=source)
    return tfs.ClassificationResponse.FromString(front.call(TFS + "Classify", request))


def test_classify_asks_a_litert_model_by_features(front: Front, digits: tuple[Array, Array]) -> None:
    x, y = digits[0][:20], digits[1][:20]
    answer = classify(front, examples(x))
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("camera", 3)
    scores = [[item.score for item in row.classes] for row in answer.result.classifications]
    assert (np.argmax(scores, axis=1) == y).mean() >= 0.9
    assert {item.label for row in answer.result.classifications for item in row.classes} == {""}


def test_features_of_the_context_are_those_of_every_example(front: Front, digits: tuple[Array, Array]) -> None:
    row, other = digits[0][0], digits[0][1]
    source = tfs.Input(
        example_list_with_context=tfs.ExampleListWithContext(
            examples=[example_pb2.Example(), example(other)], context=example(row)
        )
    )
    alike = classify(front, examples(np.stack([row, other])))
    assert classify(front, source) == alike


def test_regress_refuses_what_is_no_regression(front: Front, digits: tuple[Array, Array]) -> None:
    request = tfs.RegressionRequest(model_spec=tfs.ModelSpec(name="camera"), input=examples(digits[0][:2]))
    with pytest.raises(InvalidArgument, match=r"\[batch_size, 1\] but got \[2, 10\]"):
        front.call(TFS + "Regress", request)


def test_multi_inference_runs_every_task_over_the_same_examples(front: Front, digits: tuple[Array, Array]) -> None:
    task = tfs.InferenceTask(model_spec=tfs.ModelSpec(name="camera"), method_name="tensorflow/serving/classify")
    request = tfs.MultiInferenceRequest(tasks=[task], input=examples(digits[0][:3]))
    answer = tfs.MultiInferenceResponse.FromString(front.call(TFS + "MultiInference", request))
    assert [result.WhichOneof("result") for result in answer.results] == ["classification_result"]
    assert answer.results[0].classification_result == classify(front, examples(digits[0][:3])).result
    request.tasks.add(model_spec=tfs.ModelSpec(name="digits"), method_name="tensorflow/serving/regress")
    with pytest.raises(InvalidArgument, match="same model name and version"):
        front.call(TFS + "MultiInference", request)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (tfs.Input(), "Input is empty"),
        (tfs.Input(example_list=tfs.ExampleList(examples=[example_pb2.Example()])), "no feature 'image'"),
        (examples(np.zeros((1, 3))), "3 values"),
    ],
)
def test_examples_that_do_not_fit_are_refused(front: Front, source: tfs.Input, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        classify(front, source)


def test_the_configuration_says_how_a_model_is_served(front: Front) -> None:
    config = oip.ModelConfigResponse.FromString(
        front.call(OIP + "ModelConfig", oip.ModelConfigRequest(name="camera"))
    ).config
    assert (config.name, config.backend, config.platform) == ("camera", "litert", "litert_tflite")
    assert [(item.name, item.data_type, list(item.dims)) for item in config.input] == [
        ("image", model_config_pb2.TYPE_FP32, [8, 8, 1])
    ]
    assert config.max_batch_size > 1
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    with pytest.raises(NotFound, match="Request for unknown model"):
        front.call(OIP + "ModelConfig", oip.ModelConfigRequest(name="nobody"))


def statistics(front: Front, name: str = "") -> oip.ModelStatistics:
    request = oip.ModelStatisticsRequest(name=name)
    (found,) = oip.ModelStatisticsResponse.FromString(front.call(OIP + "ModelStatistics", request)).model_stats
    return found


def test_statistics_count_rows_runs_and_refusals(front: Front, digits: tuple[Array, Array]) -> None:
    before = statistics(front, "digits")
    for rows in (1, 4):
        infer(front, digits[0][:rows])
    after = statistics(front, "digits")
    assert after.inference_count - before.inference_count == 5
    assert after.execution_count - before.execution_count == 2
    assert after.inference_stats.success.count - before.inference_stats.success.count == 2
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert {batch.batch_size for batch in after.batch_stats} >= {1, 4}
    assert abs(after.last_inference / 1000 - time.time()) < 60
    assert after.memory_usage[0].byte_size > 1 << 20
    assert statistics(front).name == "camera"
    assert front.call(OIP + "ModelStatistics", oip.ModelStatisticsRequest(), project="stranger") == b""


def test_the_index_lists_the_callers_deployments_alone(front: Front) -> None:
    index = oip.RepositoryIndexResponse.FromString(front.call(OIP + "RepositoryIndex", oip.RepositoryIndexRequest()))
    assert [(item.name, item.version, item.state) for item in index.models] == [("camera", "3", "READY")]
    assert front.call(OIP + "RepositoryIndex", oip.RepositoryIndexRequest(), project="stranger") == b""


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        (OIP + "RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="camera")),
        (OIP + "RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name="camera")),
        ("/tensorflow.serving.ModelService/HandleReloadConfigRequest", tfs.ReloadConfigRequest()),
    ],
)
def test_what_a_worker_serves_is_not_its_own_to_change(front: Front, path: str, request_: Message) -> None:
    with pytest.raises(Unimplemented, match="at the gateway"):
        front.call(path, request_)


def infer(front: Front, rows: Array, **parameters: int) -> bytes:
    request = openinference.encode_request(InferenceCall(Target("camera"), {"image": rows}))
    for name, value in parameters.items():
        request.parameters[name].int64_param = value
    return front.call(OIP + "ModelInfer", request)


def test_a_timeout_parameter_ends_the_wait(front: Front, digits: tuple[Array, Array]) -> None:
    with pytest.raises(SealaneError) as refused:
        infer(front, digits[0][:1], timeout=1)
    assert refused.value.kind == "DEADLINE_EXCEEDED"
    assert infer(front, digits[0][:1], timeout=10_000_000)


def stream(front: Front, bodies: Iterator[bytes], **metadata: str) -> Iterator[oip.ModelStreamInferResponse]:
    route = front.dispatcher.route(OIP + "ModelStreamInfer")
    call = Call(route.method, metadata, Peer(), time.monotonic() + 20)
    for answer in front.dispatcher.stream(route, call, bodies):
        yield oip.ModelStreamInferResponse.FromString(answer)


def body(rows: Array, request_id: str, model: str = "camera") -> bytes:
    call = InferenceCall(Target(model), {"image": rows}, request_id=request_id)
    serialized: bytes = openinference.encode_request(call).SerializeToString()
    return serialized


def test_a_stream_is_answered_in_order_and_errors_are_answers(front: Front, digits: tuple[Array, Array]) -> None:
    rows = digits[0][:40]
    bodies = [body(rows[index : index + 1], str(index)) for index in range(40)]
    bodies[7] = body(rows[:1], "7", "nobody")
    bodies[9] = b"\xff\xff"
    answers = list(stream(front, iter(bodies)))
    assert [item.infer_response.id for item in answers] == [str(index) if index != 9 else "" for index in range(40)]
    assert "unknown model" in answers[7].error_message
    assert "well-formed" in answers[9].error_message
    assert [index for index, item in enumerate(answers) if item.error_message] == [7, 9]
    assert answers[0].infer_response.parameters["triton_final_response"].bool_param
    alone = openinference.decode_response(oip.ModelInferResponse.FromString(infer(front, rows[3:4])))
    np.testing.assert_array_equal(
        openinference.decode_response(answers[3].infer_response)["probabilities"], alone["probabilities"]
    )


def test_a_stream_ends_with_the_status_where_that_is_asked_for(front: Front, digits: tuple[Array, Array]) -> None:
    bodies = iter([body(digits[0][:1], "1"), body(digits[0][:1], "2", "nobody"), body(digits[0][:1], "3")])
    answers = stream(front, bodies, triton_grpc_error="true")
    assert next(answers).infer_response.id == "1"
    with pytest.raises(NotFound, match="unknown model"):
        next(answers)
