"""Open Inference messages become arrays and arrays become messages; what cannot work is refused by name."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import InvalidArgument
from sealane.protocols import openinference
from sealane.protocols.call import InferenceAnswer, InferenceCall, ModelDescription, Target
from sealane.tensors import NUMPY_OF, Array, Signature, TensorSpec

FIXED = sorted(name for name in NUMPY_OF if name not in ("BYTES", "BF16"))
SIGNATURE = Signature(inputs=(TensorSpec("x", "FP32", (-1, 4)),), outputs=(TensorSpec("y", "FP32", (-1, 10)),))


def a_call(**inputs: Array) -> InferenceCall:
    return InferenceCall(Target("m"), inputs)


def over_the_wire(call: InferenceCall) -> InferenceCall:
    body = openinference.encode_request(call).SerializeToString()
    return openinference.decode_request(oip.ModelInferRequest.FromString(body))


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    dtype = NUMPY_OF[draw(st.sampled_from(FIXED))]
    return draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))


@given(st.dictionaries(st.text(min_size=1, max_size=8), arrays(), max_size=4))
def test_arrays_survive_the_wire(inputs: dict[str, Array]) -> None:
    again = over_the_wire(InferenceCall(Target("m", version="7"), inputs, ("y",), "id-1"))
    assert (again.target.model, again.target.version, again.outputs, again.request_id) == ("m", "7", ("y",), "id-1")
    assert again.inputs.keys() == inputs.keys()
    for name, array in inputs.items():
        assert again.inputs[name].dtype == array.dtype
        assert again.inputs[name].shape == array.shape
        assert again.inputs[name].tobytes() == array.tobytes()


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_bytes_survive_the_wire(elements: list[bytes]) -> None:
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    assert over_the_wire(a_call(x=array)).inputs["x"].tolist() == elements


def test_text_is_sent_as_utf8() -> None:
    assert over_the_wire(a_call(x=np.array(["héllo", "b"]))).inputs["x"].tolist() == ["héllo".encode(), b"b"]


def test_bfloat16_travels_as_its_bits() -> None:
    bits = np.array([0x3F80, 0x4000], dtype=np.uint16).view("V2")
    assert over_the_wire(a_call(x=bits)).inputs["x"].tobytes() == bits.tobytes()


def test_inputs_are_read_in_place() -> None:
    array = over_the_wire(a_call(x=np.arange(8, dtype=np.float32))).inputs["x"]
    assert not array.flags.owndata and not array.flags.writeable


def typed(datatype: str, shape: list[int], **contents: object) -> oip.ModelInferRequest:
    return oip.ModelInferRequest(
        model_name="m",
        inputs=[
            oip.ModelInferRequest.InferInputTensor(
                name="x",
                datatype=datatype,
                shape=shape,
                contents=oip.InferTensorContents(**contents),  # type: ignore[arg-type]
            )
        ],
    )


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-(2**15), 2**15 - 1]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 2**16 - 1]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, float("inf")]),
        ("FP64", "fp64_contents", [0.1, -0.0]),
        ("BYTES", "bytes_contents", [b"a", b""]),
    ],
)
def test_typed_contents(datatype: str, field: str, values: list[object]) -> None:
    array = openinference.decode_request(typed(datatype, [2, 1], **{field: values})).inputs["x"]
    assert array.dtype == NUMPY_OF[datatype]
    assert array.tolist() == [[value] for value in values]


def raw(datatype: str, shape: list[int], *contents: bytes) -> oip.ModelInferRequest:
    request = typed(datatype, shape)
    request.inputs[0].ClearField("contents")
    request.raw_input_contents.extend(contents)
    return request


def both() -> oip.ModelInferRequest:
    request = typed("FP32", [1], fp32_contents=[1])
    request.raw_input_contents.append(b"\0\0\0\0")
    return request


def twice() -> oip.ModelInferRequest:
    request = typed("FP32", [1], fp32_contents=[1])
    request.inputs.append(request.inputs[0])
    return request


def many() -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="m")
    for index in range(10_000):
        request.inputs.add(name=str(index), datatype="FP32", shape=[1])
    return request


def shared() -> oip.ModelInferRequest:
    request = raw("FP32", [1])
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    return request


@pytest.mark.parametrize(
    ("request_", "text", "field"),
    [
        (both(), "contents field must not be specified when using raw_input_contents for 'x' for model 'm'", "inputs"),
        (raw("FP32", [1]), "unable to find data for input tensor 'x' for model 'm' in request.", "inputs"),
        (raw("FP32", [1], b"", b""), "send one for each", "raw_input_contents"),
        (raw("FP32", [2], b"\0" * 7), "7 bytes of content for shape [2]", "inputs[0]"),
        (raw("FP32", [-1], b"\0" * 4), "negative", "inputs[0].shape"),
        (raw("FP32", [2**31, 2**31], b""), "the limit is", "inputs[0].shape"),
        (raw("FP32", [0, 2**62], b""), "the limit is", "inputs[0].shape"),
        (raw("FP32", [1] * 65, b"\0" * 4), "65 dimensions", "inputs[0].shape"),
        (raw("COMPLEX", [1], b"\0" * 8), "unknown", "inputs[0].datatype"),
        (raw("BYTES", [2], struct.pack("<I", 9) + b"abcdefg"), "ends behind the content", "inputs[0]"),
        (raw("BYTES", [2], struct.pack("<I", 4) + b"abcd"), "1 elements for shape [2]", "inputs[0]"),
        (raw("BYTES", [1000], b"ab"), "at least 4000", "inputs[0]"),
        (raw("BYTES", [1], struct.pack("<I", 2**20 + 1) + b"a" * (2**20 + 1)), "split it", "inputs[0]"),
        (typed("INT8", [1], int_contents=[200]), "outside INT8", "inputs[0]"),
        (typed("FP16", [1], fp32_contents=[1]), "no typed form", "inputs[0].contents"),
        (typed("FP32", [1], fp64_contents=[1]), "send fp32_contents", "inputs[0].contents"),
        (typed("FP32", [3], fp32_contents=[1]), "1 values, shape [3] takes 3", "inputs[0].contents"),
        (twice(), "given twice", "inputs[1].name"),
        (many(), "the limit is 256", "inputs"),
        (shared(), "shared memory", "inputs[0].parameters"),
        (oip.ModelInferRequest(), "names no model", "model_name"),
    ],
)
def test_refused(request_: oip.ModelInferRequest, text: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        openinference.decode_request(request_)
    assert text in caught.value.message
    assert caught.value.field.startswith(field)


def test_many_tensors_share_one_limit() -> None:
    request = oip.ModelInferRequest(model_name="m")
    for index in range(3):
        request.inputs.add(name=str(index), datatype="FP32", shape=[8 * 2**20])
        request.raw_input_contents.append(b"\0" * (32 * 2**20) if index < 2 else b"")
    with pytest.raises(InvalidArgument, match="limit"):
        openinference.decode_request(request)


def test_raw_bools_above_one_are_true() -> None:
    array = openinference.decode_request(raw("BOOL", [3], b"\x00\x01\x05")).inputs["x"]
    assert array.tolist() == [False, True, True]
    assert array.tobytes() == b"\x00\x01\x01"


@pytest.mark.parametrize(
    ("name", "parameter", "good"),
    [
        ("sequence_id", oip.InferParameter(int64_param=1), True),
        ("sequence_id", oip.InferParameter(bool_param=True), False),
        ("sequence_start", oip.InferParameter(int64_param=1), False),
        ("priority", oip.InferParameter(uint64_param=1), True),
        ("priority", oip.InferParameter(int64_param=-1), False),
        ("timeout", oip.InferParameter(string_param="1"), False),
        ("triton_enable_empty_final_response", oip.InferParameter(bool_param=True), True),
        ("triton_other", oip.InferParameter(bool_param=True), False),
        ("my_own", oip.InferParameter(double_param=1), True),
    ],
)
def test_reserved_parameters(name: str, parameter: oip.InferParameter, good: bool) -> None:
    request = raw("FP32", [1], b"\0" * 4)
    request.parameters[name].CopyFrom(parameter)
    if good:
        openinference.decode_request(request)
    else:
        with pytest.raises(InvalidArgument, match=name):
            openinference.decode_request(request)


def test_outputs_default_to_all_and_unknown_ones_are_refused() -> None:
    x = np.zeros((1, 4), dtype=np.float32)
    assert openinference.check(a_call(x=x), SIGNATURE) == ("y",)
    with pytest.raises(InvalidArgument, match="unexpected inference output 'z' for model 'm'"):
        openinference.check(InferenceCall(Target("m"), {"x": x}, ("z",)), SIGNATURE)
    with pytest.raises(InvalidArgument, match="shape"):
        openinference.check(a_call(x=np.zeros((1, 5), dtype=np.float32)), SIGNATURE)


def test_response_is_raw_and_reads_back() -> None:
    y = np.linspace(0, 1, 20, dtype=np.float32).reshape(2, 10)
    call = InferenceCall(Target("m"), {}, request_id="42")
    response = openinference.encode_response(InferenceAnswer(call, "3", "serving_default", {"y": y}))
    assert (response.model_name, response.model_version, response.id) == ("m", "3", "42")
    assert not response.outputs[0].HasField("contents")
    assert response.raw_output_contents[0] == y.tobytes()
    np.testing.assert_array_equal(openinference.decode_response(response)["y"], y)


def test_classification_gives_the_best_classes_of_each_row() -> None:
    y = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], dtype=np.float32)
    call = InferenceCall(Target("m"), {}, ("y",), classify={"y": 2})
    assert openinference.decode_request(openinference.encode_request(call)).classify == {"y": 2}
    response = openinference.encode_response(InferenceAnswer(call, "1", "serving_default", {"y": y}))
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [2, 2])
    assert openinference.decode_response(response)["y"].tolist() == [
        [b"0.700000:1", b"0.200000:2"],
        [b"0.500000:0", b"0.250000:1"],
    ]


def test_metadata_both_ways() -> None:
    model = ModelDescription("m", ("1", "3"), "litert", (SIGNATURE,))
    assert openinference.decode_metadata(openinference.encode_metadata(model)) == model


def test_version_is_a_number_or_a_label() -> None:
    numbered = oip.ModelReadyRequest(name="m", version="03")
    assert openinference.target(numbered) == Target("m", version="3")
    assert openinference.target(oip.ModelReadyRequest(name="m", version="live")) == Target("m", label="live")
    assert "Request for unknown model: 'm' version 3" in openinference.unknown_model(Target("m", "3")).message


SEED = openinference.encode_request(
    InferenceCall(
        Target("model", "1"), {"x": np.zeros((2, 2), np.float32), "s": np.array([b"ab", b"c"], np.object_)}, ("y",)
    )
).SerializeToString()


@settings(max_examples=200)
@given(st.data())
def test_mutated_requests_never_break_the_decoder(data: st.DataObject) -> None:
    body = bytearray(SEED)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    for candidate in (bytes(body), bytes(body[:cut])):
        try:
            request = oip.ModelInferRequest.FromString(candidate)
        except DecodeError:
            continue
        try:
            openinference.decode_request(request)
        except InvalidArgument as error:
            assert error.message
