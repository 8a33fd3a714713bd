"""The HTTP form of TensorFlow Serving says the same as its messages."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import InvalidArgument, SealaneError
from sealane.protocols import tfserving, tfserving_json
from sealane.protocols.call import InferenceCall, ModelDescription, Target
from sealane.tensors import NUMPY_OF, Array, Signature, TensorSpec

TARGET = Target("m", "3")


def model(*specs: tuple[str, str]) -> ModelDescription:
    inputs = tuple(TensorSpec(name, datatype, (-1,)) for name, datatype in specs)
    return ModelDescription("m", ("3",), "", (Signature(inputs, ()), Signature(inputs, (), "other")))


def encode(body: object, of: ModelDescription) -> tuple[InferenceCall, bool]:
    found = tfserving_json.encode_predict(TARGET, json.dumps(body).encode(), of)
    return tfserving.decode_request(tfs.PredictRequest.FromString(found.message)), found.rows


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BOOL", [True, False]),
        *((name, [0, 100]) for name in NUMPY_OF if "INT" in name),
        *((name, [0.5, -2.0]) for name in ("FP16", "FP32", "FP64")),
        ("BYTES", ["a", "ä"]),
    ],
)
def test_every_datatype_in_rows_and_columns(datatype: str, values: list[object]) -> None:
    expected = [value.encode() if isinstance(value, str) else value for value in values]
    for body, rows in (({"instances": values}, True), ({"inputs": values}, False), ({"inputs": {"x": values}}, False)):
        call, found = encode(body, model(("x", datatype)))
        assert call.inputs["x"].tolist() == expected
        assert call.inputs["x"].dtype == NUMPY_OF[datatype]
        assert found is rows
    assert call.target == Target("m", "3")


def test_rows_of_several_inputs() -> None:
    rows = [{"a": [1, 2], "b": {"b64": "/w=="}}, {"a": [3, 4], "b": "t"}]
    call, _ = encode({"signature_name": "other", "instances": rows}, model(("a", "INT32"), ("b", "BYTES")))
    assert call.inputs["a"].tolist() == [[1, 2], [3, 4]]
    assert call.inputs["b"].tolist() == [b"\xff", b"t"]
    assert call.target.signature == "other"


def test_scalars_and_base64_without_a_name() -> None:
    assert encode({"inputs": 5}, model(("x", "INT64")))[0].inputs["x"].shape == ()
    call, _ = encode({"instances": [{"b64": "YQ=="}, {"b64": "Yg=="}]}, model(("x", "BYTES")))
    assert call.inputs["x"].tolist() == [b"a", b"b"]
    assert encode({"inputs": {"b64": "YQ=="}}, model(("x", "BYTES")))[0].inputs["x"].item() == b"a"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"inputs": [1], "instances": [1]}, "expecting only one of"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"instances": 5}, "to be an list/array"),
        ({"instances": [1], "signature_name": "nix"}, 'Serving signature name: "nix" not found in signature def'),
        ({"instances": [1], "signature_name": 7}, "must be a string value"),
        ({"instances": [1, 2]}, "expecting list of objects"),
        ({"inputs": [1, 2]}, "expecting an object"),
        ({"instances": [{"a": 1, "b": 1}, 2]}, "at item 1"),
        ({"instances": [{"a": 1}]}, "keys must be equal to: a,b"),
        ({"inputs": {"a": [1]}}, "Missing named input: b"),
        ({"inputs": {"a": [[1], [2, 3]], "b": [1]}}, "ragged"),
        ({"inputs": {"a": [1.5], "b": [1]}}, "not of expected type INT32"),
        ({"inputs": {"a": [2**40], "b": [1]}}, "outside INT32"),
        ({"inputs": {"a": [1], "b": [2**24 + 1]}}, "without loss of precision"),
        ({"inputs": {"a": [1], "b": [1e300]}}, "outside FP32"),
        ({"inputs": {"a": ["1"], "b": [1]}}, "not of expected type"),
    ],
)
def test_refusals_say_what_tensorflow_serving_says(body: object, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        encode(body, model(("a", "INT32"), ("b", "FP32")))


def array(*values: object, dtype: object = np.float32) -> Array:
    return np.array(values, dtype=dtype)  # type: ignore[call-overload,no-any-return]


def test_one_output_stands_without_its_name() -> None:
    outputs = {"y": array([0.1, 2.0], [3.0, 1e-7])}
    assert json.loads(tfserving_json.decode_predict(outputs, rows=True)) == {"predictions": [[0.1, 2.0], [3.0, 1e-7]]}
    assert json.loads(tfserving_json.decode_predict(outputs, rows=False)) == {"outputs": [[0.1, 2.0], [3.0, 1e-7]]}


def test_several_outputs_are_objects() -> None:
    outputs = {
        "a": array(1, 2, dtype=np.int64),
        "b_bytes": array(b"x", b"y", dtype=object),
        "c": array(b"t", b"u", dtype=object),
    }
    rows = json.loads(tfserving_json.decode_predict(outputs, rows=True))["predictions"]
    assert rows == [{"a": 1, "b_bytes": {"b64": "eA=="}, "c": "t"}, {"a": 2, "b_bytes": {"b64": "eQ=="}, "c": "u"}]
    columns = json.loads(tfserving_json.decode_predict(outputs, rows=False))["outputs"]
    assert columns == {"a": [1, 2], "b_bytes": [{"b64": "eA=="}, {"b64": "eQ=="}], "c": ["t", "u"]}


def test_bytes_that_are_no_text_are_base64_under_any_name() -> None:
    outputs = {"y": array(b"\xff", dtype=object)}
    assert json.loads(tfserving_json.decode_predict(outputs, rows=True)) == {"predictions": [{"b64": "/w=="}]}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_and_infinity_go_out_as_they_come_in(dtype: object) -> None:
    body = tfserving_json.decode_predict({"y": array(math.nan, math.inf, -math.inf, dtype=dtype)}, rows=True)
    assert body == b'{"predictions":[NaN,Infinity,-Infinity]}'


def test_rows_need_outputs_that_have_rows() -> None:
    for outputs in ({"y": np.float32(1)}, {"a": array(1, 2), "b": array(1)}):
        arrays = {name: np.asarray(value) for name, value in outputs.items()}
        with pytest.raises(InvalidArgument, match="Tensor name"):
            tfserving_json.decode_predict(arrays, rows=True)


def test_examples_with_context() -> None:
    body = {
        "signature_name": "s",
        "context": {"c": ["x"]},
        "examples": [{"i": [1, True], "f": 0.5, "b": {"b64": "/w=="}, "e": []}],
    }
    message = tfserving_json.encode_examples(
        tfs.ClassificationRequest(), Target("m", label="l"), json.dumps(body).encode()
    )
    request = tfs.ClassificationRequest.FromString(message)
    assert (request.model_spec.name, request.model_spec.version_label) == ("m", "l")
    assert request.model_spec.signature_name == "s"
    shared = request.input.example_list_with_context
    assert shared.context.features.feature["c"].bytes_list.value == [b"x"]
    features = shared.examples[0].features.feature
    assert features["i"].int64_list.value == [1, 1]
    assert features["f"].float_list.value == [0.5]
    assert features["b"].bytes_list.value == [b"\xff"]
    assert features["e"].WhichOneof("kind") is None


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"examples": []},
        {"examples": 5},
        {"examples": [5]},
        {"examples": [{"a": [1, 2.5]}]},
        {"examples": [{"a": [1, "b"]}]},
        {"examples": [{"a": [[1]]}]},
        {"examples": [{"a": None}]},
        {"examples": [{"a": 2**63}]},
        {"examples": [{"a": 1e300}]},
        {"examples": [{}], "context": 5},
    ],
)
def test_what_is_no_example_is_refused(body: object) -> None:
    with pytest.raises(InvalidArgument):
        tfserving_json.encode_examples(tfs.RegressionRequest(), TARGET, json.dumps(body).encode())


def test_results_of_classify_and_regress() -> None:
    classified = tfs.ClassificationResponse()
    row = classified.result.classifications.add()
    row.classes.add(label="cat", score=0.1)
    assert json.loads(tfserving_json.decode_classes(classified.SerializeToString())) == {"results": [[["cat", 0.1]]]}
    regressed = tfs.RegressionResponse()
    regressed.result.regressions.add(value=0.2)
    assert json.loads(tfserving_json.decode_values(regressed.SerializeToString())) == {"results": [0.2]}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "b64"]), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["inputs", "instances", "signature_name", "examples", "context"]), JSON),
    st.sampled_from([name for name in NUMPY_OF if name != "BF16"]),
)
def test_nothing_that_is_sent_is_a_bug_of_ours(body: object, datatype: str) -> None:
    for of in (model(("a", datatype)), model(("a", datatype), ("b", "BYTES"))):
        try:
            encode(body, of)
        except SealaneError as error:
            assert error.kind == "INVALID_ARGUMENT"
    try:
        tfserving_json.encode_examples(tfs.ClassificationRequest(), TARGET, json.dumps(body).encode())
    except SealaneError as error:
        assert error.kind == "INVALID_ARGUMENT"
