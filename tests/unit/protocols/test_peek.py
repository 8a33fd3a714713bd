"""The scanner reads the same model name as a full parse of the same bytes, or refuses them."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import InvalidArgument
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import Target
from sealane.protocols.peek import MAX_FIELDS, names_model, peek, peek_options

INFER = "/inference.GRPCInferenceService/ModelInfer"
PREDICT = "/tensorflow.serving.PredictionService/Predict"


def infer_body() -> bytes:
    request = oip.ModelInferRequest(model_name="résumé", model_version="3", id="i")
    request.parameters["p"].double_param = 1.5
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    request.raw_input_contents.append(b"\0\0\0\0")
    return request.SerializeToString()


def predict_body() -> bytes:
    request = tfs.PredictRequest(model_spec=tfs.ModelSpec(name="m", signature_name="s"), client_id=b"c")
    request.model_spec.version.value = -5
    request.inputs["x"].float_val.append(1)
    return request.SerializeToString(deterministic=True)


def test_reads_name_and_version() -> None:
    assert peek(INFER, infer_body()) == Target("résumé", "3")
    assert peek(PREDICT, predict_body()) == Target("m", "-5", signature="s")


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        ("/inference.GRPCInferenceService/ModelReady", oip.ModelReadyRequest(name="m", version="live")),
        ("/inference.GRPCInferenceService/ModelMetadata", oip.ModelMetadataRequest(name="m", version="live")),
        (
            "/tensorflow.serving.ModelService/GetModelStatus",
            tfs.GetModelStatusRequest(model_spec=tfs.ModelSpec(name="m", version_label="live")),
        ),
        (
            "/tensorflow.serving.PredictionService/GetModelMetadata",
            tfs.GetModelMetadataRequest(model_spec=tfs.ModelSpec(name="m", version_label="live")),
        ),
    ],
)
def test_reads_every_method_that_names_a_model(path: str, request_: tfs.GetModelStatusRequest) -> None:
    assert names_model(path)
    assert peek(path, request_.SerializeToString()) == Target("m", label="live")


def test_methods_without_a_model_are_refused() -> None:
    assert not names_model("/inference.GRPCInferenceService/ServerLive")
    with pytest.raises(InvalidArgument):
        peek("/inference.GRPCInferenceService/ServerLive", b"")


def agree_on_infer(body: bytes) -> None:
    try:
        seen = peek(INFER, body)
    except InvalidArgument:
        return
    try:
        parsed = oip.ModelInferRequest.FromString(body)
    except DecodeError:
        return
    if parsed.model_name:
        assert openinference.target(parsed) == seen
    else:
        assert not seen.model


def agree_on_predict(body: bytes) -> None:
    try:
        seen = peek(PREDICT, body)
    except InvalidArgument:
        return
    try:
        parsed = tfs.PredictRequest.FromString(body)
    except DecodeError:
        return
    if parsed.model_spec.name:
        assert tfserving.target(parsed) == seen
    else:
        assert not seen.model


SPECS = [
    tfs.ModelSpec(name="a"),
    tfs.ModelSpec(name="b", version_label="l"),
    tfs.ModelSpec(signature_name="s"),
    tfs.ModelSpec(version_label="k"),
]
for number in (0, 7, -1):
    numbered = tfs.ModelSpec()
    numbered.version.value = number
    SPECS.append(numbered)


@given(st.lists(st.sampled_from(SPECS), max_size=5))
def test_repeated_model_specs_merge_as_a_parser_merges_them(specs: list[tfs.ModelSpec]) -> None:
    agree_on_predict(b"".join(tfs.PredictRequest(model_spec=spec).SerializeToString() for spec in specs))


@given(st.lists(st.sampled_from(["a", "b", "", "7"]), max_size=5))
def test_the_last_name_counts(names: list[str]) -> None:
    # An empty string is not written by the library, so the field is spelt out.
    body = b"".join(b"\x0a" + bytes([len(name)]) + name.encode() for name in names)
    agree_on_infer(body + infer_body())
    agree_on_infer(infer_body() + body)


@settings(max_examples=200)
@given(st.data())
def test_mutated_bodies_are_read_alike_or_refused(data: st.DataObject) -> None:
    for seed, agree in ((infer_body(), agree_on_infer), (predict_body(), agree_on_predict)):
        body = bytearray(seed)
        for _ in range(data.draw(st.integers(1, 4))):
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        agree(bytes(body))
        agree(bytes(body[: data.draw(st.integers(0, len(body)))]))


@settings(max_examples=200)
@given(st.binary(max_size=60))
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\xff" * 11)
@example(b"\x0b\x0c")
@example(b"\x00\x00")
def test_any_bytes_are_read_alike_or_refused(body: bytes) -> None:
    agree_on_infer(body)
    agree_on_predict(body)


def test_a_flood_of_fields_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="fields"):
        peek(INFER, b"\x1a\x00" * (MAX_FIELDS + 1))


def test_payload_is_skipped_not_walked() -> None:
    body = oip.ModelInferRequest(model_name="m", raw_input_contents=[b"\xff" * 10_000_000]).SerializeToString()
    assert peek(INFER, body) == Target("m")


@pytest.mark.parametrize("method", ["Classify", "Regress"])
def test_reads_requests_of_examples(method: str) -> None:
    request = tfs.ClassificationRequest(model_spec=tfs.ModelSpec(name="m"), input=tfs.Input())
    path = f"/tensorflow.serving.PredictionService/{method}"
    assert names_model(path)
    assert peek(path, request.SerializeToString()) == Target("m")


def test_reads_the_first_task() -> None:
    request = tfs.MultiInferenceRequest()
    for name in ("a", "b"):
        request.tasks.add(model_spec=tfs.ModelSpec(name=name, signature_name="s"), method_name="x" * 200)
    path = "/tensorflow.serving.PredictionService/MultiInference"
    assert names_model(path)
    assert peek(path, request.SerializeToString()) == Target("a", signature="s")
    assert peek(path, b"") == Target("")


PARAMETERS = [
    ("sequence_id", oip.InferParameter(int64_param=7)),
    ("sequence_id", oip.InferParameter(int64_param=-1)),
    ("sequence_id", oip.InferParameter(int64_param=0)),
    ("sequence_id", oip.InferParameter(uint64_param=2**64 - 1)),
    ("sequence_id", oip.InferParameter(string_param="camera-1")),
    ("sequence_id", oip.InferParameter(string_param="")),
    ("sequence_id", oip.InferParameter()),
    ("sequence_ids", oip.InferParameter(int64_param=8)),
    ("priority", oip.InferParameter(int64_param=1)),
]


@given(st.lists(st.sampled_from(PARAMETERS), max_size=4), st.sampled_from(["", "id-1"]))
def test_options_are_those_that_a_parser_reads(entries: list[tuple[str, oip.InferParameter]], name: str) -> None:
    body = oip.ModelInferRequest(model_name="m", id=name).SerializeToString()
    for key, value in entries:
        body += oip.ModelInferRequest(parameters={key: value}).SerializeToString()
    request = oip.ModelInferRequest.FromString(body)
    request.inputs.add(name="x", datatype="INT8", shape=[1])
    request.raw_input_contents.append(b"\0")
    seen = peek_options(body)
    assert seen.request_id == request.id
    try:
        place = openinference.decode_request(request).sequence
    except InvalidArgument:
        return  # a parameter without a value
    assert seen.sequence == (place.id if place is not None else "")
