"""The HTTP form of the Open Inference Protocol says the same as its messages."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import InvalidArgument, SealaneError
from sealane.protocols import generate_json, openinference, openinference_json
from sealane.protocols.call import InferenceAnswer, InferenceCall, Target
from sealane.protocols.openinference_json import Wanted
from sealane.protocols.openinference_raw import encode_raw_request
from sealane.protocols.openinference_tensors import encode_raw
from sealane.tensors import NUMPY_OF, Array, Signature, TensorSpec

TARGET = Target("m", "3")
PLAIN = [name for name in NUMPY_OF if name not in ("FP16", "BF16", "BYTES")]


def sample(datatype: str) -> Array:
    if datatype == "BYTES":
        array = np.empty(4, dtype=np.object_)
        array[:] = [b"", "ä".encode(), b"abc", b"x" * 300]
        return array.reshape(2, 2)
    dtype = NUMPY_OF[datatype]
    if datatype == "BF16":
        return np.arange(4, dtype=np.uint16).view(dtype).reshape(2, 2)
    if datatype == "BOOL":
        return np.array([[True, False], [False, True]])
    low, high = (-5.5, 1e4) if dtype.kind == "f" else (np.iinfo(dtype.name).min, np.iinfo(dtype.name).max)
    return np.array([[low, high], [0, 1]], dtype=dtype)


def json_list(array: Array) -> object:
    if array.dtype == np.object_:
        return [[item.decode() for item in row] for row in array]
    return array.tolist()


def read(message: bytes) -> InferenceCall:
    return openinference.decode_request(oip.ModelInferRequest.FromString(message))


def encode(document: object, tail: bytes = b"") -> tuple[bytes, Wanted]:
    head = json.dumps(document).encode()
    return openinference_json.encode_request(TARGET, head + tail, len(head))


def tensor(datatype: str, shape: list[int], **more: object) -> dict[str, object]:
    return {"name": "x", "datatype": datatype, "shape": shape, **more}


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("datatype", [*PLAIN, "BYTES"])
def test_every_datatype_in_json(datatype: str, flat: bool) -> None:
    array = sample(datatype)
    data = json_list(array.reshape(1, 4))[0] if flat else json_list(array)  # type: ignore[index]
    message, _ = encode({"inputs": [tensor(datatype, [2, 2], data=data)]})
    np.testing.assert_array_equal(read(message).inputs["x"], array)


@pytest.mark.parametrize("datatype", NUMPY_OF)
def test_every_datatype_in_binary_both_ways(datatype: str) -> None:
    array = sample(datatype)
    raw = encode_raw(array)
    inputs = [tensor(datatype, [2, 2], parameters={"binary_data_size": len(raw)})]
    message, wanted = encode({"inputs": inputs, "parameters": {"binary_data_output": True}}, raw)
    call = read(message)
    assert encode_raw(call.inputs["x"]) == raw
    answer = openinference.encode_response(InferenceAnswer(call, "3", "", {"y": array})).SerializeToString()
    told = openinference_json.decode_response(answer, wanted)
    assert told.binary == (raw,)
    (output,) = json.loads(told.document)["outputs"]
    assert output == {
        "name": "y",
        "datatype": datatype,
        "shape": [2, 2],
        "parameters": {"binary_data_size": len(raw)},
    }


@pytest.mark.parametrize("datatype", [*PLAIN, "BYTES"])
def test_every_datatype_out_in_json(datatype: str) -> None:
    array = sample(datatype)
    call = InferenceCall(TARGET, {}, request_id="7")
    answer = openinference.encode_response(InferenceAnswer(call, "3", "", {"y": array})).SerializeToString()
    told = json.loads(openinference_json.decode_response(answer, Wanted()).document)
    assert (told["id"], told["model_name"], told["model_version"]) == ("7", "m", "3")
    assert np.array(told["outputs"][0]["data"]).tolist() == np.array(json_list(array)).ravel().tolist()


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_travel_in_binary_alone(datatype: str) -> None:
    with pytest.raises(InvalidArgument, match=f"sending {datatype} data via JSON is not supported"):
        encode({"inputs": [tensor(datatype, [1], data=[1.0])]})
    call = InferenceCall(TARGET, {})
    answer = openinference.encode_response(InferenceAnswer(call, "3", "", {"y": sample(datatype)}))
    with pytest.raises(InvalidArgument, match="Please use the binary data format for output"):
        openinference_json.decode_response(answer.SerializeToString(), Wanted())


def test_bytes_that_are_no_text_are_base64_and_say_so() -> None:
    array = np.array([b"\xff\xfe"], dtype=np.object_)
    call = InferenceCall(TARGET, {})
    answer = openinference.encode_response(InferenceAnswer(call, "3", "", {"y": array})).SerializeToString()
    (output,) = json.loads(openinference_json.decode_response(answer, Wanted()).document)["outputs"]
    assert output["data"] == ["//4="]
    assert output["parameters"] == {"content_type": "base64"}
    message, _ = encode({"inputs": [{**output, "name": "x"}]})
    assert read(message).inputs["x"].tolist() == [b"\xff\xfe"]


def test_each_output_says_how_it_travels() -> None:
    outputs = [
        {"name": "a", "parameters": {"binary_data": False}},
        {"name": "b", "parameters": {"classification": 3}},
        {"name": "c", "parameters": {"classification": 0}},
    ]
    document = {"parameters": {"binary_data_output": True, "priority": 2, "custom": 1.5}, "outputs": outputs, "id": "q"}
    message, wanted = encode({**document, "inputs": [tensor("INT8", [1], data=[1])]})
    call = read(message)
    assert (call.outputs, call.classify, call.priority, call.request_id) == (("a", "b", "c"), {"b": 3}, 2, "q")
    assert [wanted.is_binary(name) for name in ("a", "b", "c")] == [False, True, True]


@pytest.mark.parametrize(
    ("document", "tail"),
    [
        ({}, b""),
        ({"inputs": 1}, b""),
        ({"inputs": [1]}, b""),
        ({"inputs": [{}]}, b""),
        ({"inputs": [tensor("FP32", [1])]}, b""),
        ({"inputs": [tensor("FP32", [2], data=[1])]}, b""),
        ({"inputs": [tensor("FP32", [1], data=[1, 2])]}, b""),
        ({"inputs": [tensor("FP32", [1], data=[[1], [2, 3]])]}, b""),
        ({"inputs": [tensor("FP32", [-1], data=[1])]}, b""),
        ({"inputs": [tensor("FP32", [1.0], data=[1])]}, b""),
        ({"inputs": [tensor("FP32", [True], data=[1])]}, b""),
        ({"inputs": [tensor("FP32", [2**62, 2**62], data=[1])]}, b""),
        ({"inputs": [tensor("FP32", [2**70], data=[1])]}, b""),
        ({"inputs": [tensor("FP32", [1] * 40, data=[1])]}, b""),
        ({"inputs": [tensor("FP99", [1], data=[1])]}, b""),
        ({"inputs": [tensor("INT8", [1], data=[128])]}, b""),
        ({"inputs": [tensor("BYTES", [1], data=[1])]}, b""),
        ({"inputs": [tensor("BYTES", [1], data=["!"], parameters={"content_type": "base64"})]}, b""),
        ({"inputs": [tensor("FP32", [1], parameters={"binary_data_size": 4})]}, b"abc"),
        ({"inputs": [tensor("FP32", [1], parameters={"binary_data_size": 4})]}, b"abcde"),
        ({"inputs": [tensor("FP32", [1], parameters={"binary_data_size": -1})]}, b""),
        ({"inputs": [tensor("FP32", [1], parameters={"binary_data_size": 10**30})]}, b""),
        ({"inputs": [tensor("FP32", [1], parameters={"binary_data_size": True})]}, b""),
        ({"inputs": [], "parameters": {"a": None}}, b""),
        ({"inputs": [], "parameters": {"a": 2**65}}, b""),
        ({"inputs": [], "parameters": {"binary_data_output": 1}}, b""),
        ({"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]}, b""),
        ({"inputs": [], "id": 5}, b""),
        ({"inputs": [tensor("FP32", [1], data=[1])] * 300}, b""),
    ],
)
def test_what_can_never_work_is_refused(document: object, tail: bytes) -> None:
    with pytest.raises(InvalidArgument):
        encode(document, tail)


def test_shared_memory_is_left_to_the_refusal_of_the_worker() -> None:
    message, _ = encode({"inputs": [tensor("FP32", [1], parameters={"shared_memory_region": "r"})]})
    with pytest.raises(InvalidArgument, match="shared memory"):
        read(message)


@pytest.mark.parametrize("value", ["-1", "9", "1.0", "x", "", "٣"])
def test_a_header_length_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(InvalidArgument, match="Unable to parse inference-header-content-length"):
        openinference_json.header_length(value, 8)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "name": JSON | st.just("x"),
        "datatype": JSON | st.sampled_from([*NUMPY_OF]),
        "shape": JSON | st.lists(st.integers(-2, 4), max_size=3),
        "data": JSON,
        "parameters": JSON | st.dictionaries(st.sampled_from(["binary_data_size", "classification", "a"]), JSON),
    },
)


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {"inputs": JSON | st.lists(FIELDS, max_size=3)},
        optional={"outputs": st.lists(FIELDS, max_size=2), "parameters": JSON, "id": JSON},
    ),
    st.binary(max_size=8),
)
def test_nothing_that_is_sent_is_a_bug_of_ours(document: object, tail: bytes) -> None:
    try:
        message, _ = encode(document, tail)
        read(message)
    except SealaneError as error:
        assert error.kind == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("datatype", "spec", "body", "shape"),
    [
        ("FP32", (-1, 4), b"\0" * 32, (2, 4)),
        ("FP32", (-1, -1), b"\0" * 32, (1, 8)),
        ("FP32", (2, 2), b"\0" * 16, (2, 2)),
        ("BYTES", (-1,), b"picture", (1,)),
        ("BYTES", (-1, 1), b"", (1, 1)),
    ],
)
def test_a_body_that_is_one_tensor(datatype: str, spec: tuple[int, ...], body: bytes, shape: tuple[int, ...]) -> None:
    found = read(encode_raw_request(TARGET, body, Signature((TensorSpec("x", datatype, spec),), ()))).inputs["x"]
    assert found.shape == shape
    assert (found.ravel()[0] if datatype == "BYTES" else found.tobytes()) == body


@pytest.mark.parametrize(
    ("specs", "body"),
    [
        ([("FP32", (-1, 4))], b"\0" * 30),
        ([("FP32", (2, 2))], b"\0" * 12),
        ([("FP32", (3, -1, -1))], b"\0" * 12),
        ([("FP32", (-1, 0))], b"\0" * 4),
        ([("BYTES", (2,))], b"a"),
        ([("FP32", (1,)), ("FP32", (1,))], b"\0" * 4),
        ([], b"a"),
    ],
)
def test_a_body_that_does_not_tell_its_shape(specs: list[tuple[str, tuple[int, ...]]], body: bytes) -> None:
    inputs = tuple(TensorSpec(f"x{index}", *spec) for index, spec in enumerate(specs))
    with pytest.raises(InvalidArgument, match="Unable to perform raw binary inference"):
        encode_raw_request(TARGET, body, Signature(inputs, ()))


GENERATE = Signature((TensorSpec("text_input", "BYTES", (-1, 1)), TensorSpec("n", "INT32", (-1, -1))), ())


def test_generate_maps_inputs_by_name_and_the_rest_to_parameters() -> None:
    body = {"text_input": "hi", "n": [1, 2, 3], "id": "7", "parameters": {"priority": 1, "temperature": 0.5}}
    message = generate_json.encode_generate(TARGET, json.dumps(body).encode(), GENERATE)
    call = read(message)
    assert call.inputs["text_input"].tolist() == [[b"hi"]]
    assert call.inputs["n"].tolist() == [[1, 2, 3]]
    assert (call.request_id, call.priority) == ("7", 1)
    assert oip.ModelInferRequest.FromString(message).parameters["temperature"].double_param == 0.5


def test_generated_values_of_one_element_stand_alone() -> None:
    outputs = {"text": np.array([b"hi"], dtype=np.object_), "n": np.array([[1, 2]], dtype=np.int32)}
    answer = openinference.encode_response(InferenceAnswer(InferenceCall(TARGET, {}), "3", "", outputs))
    told = json.loads(generate_json.decode_generated(answer.SerializeToString()))
    assert told == {"model_name": "m", "model_version": "3", "text": "hi", "n": [1, 2]}


@pytest.mark.parametrize("body", [{"text_input": 5}, {"n": [1.5]}, {"a": {"b": 1}}, {"parameters": 1}, {"n": [[1]]}])
def test_what_generate_cannot_map_is_refused_or_says_so(body: object) -> None:
    try:
        call = read(generate_json.encode_generate(TARGET, json.dumps(body).encode(), GENERATE))
    except InvalidArgument:
        return
    assert body == {"n": [[1]]}
    assert call.inputs["n"].tolist() == [[1]]
