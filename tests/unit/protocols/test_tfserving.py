"""TensorFlow Serving messages become arrays and arrays become messages; refusals carry the known texts."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sealane.compat.tfserving.v1 import tensorflow_pb2 as tf
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import FailedPrecondition, InvalidArgument, NotFound
from sealane.protocols import tfserving
from sealane.protocols.call import InferenceAnswer, InferenceCall, ModelDescription, Target
from sealane.protocols.tfserving import VersionStatus
from sealane.tensors import NUMPY_OF, Array, Signature, TensorSpec

FIXED = sorted(name for name in NUMPY_OF if name not in ("BYTES", "BF16"))
SIGNATURE = Signature(
    inputs=(TensorSpec("a", "FP32", (-1, 4)), TensorSpec("b", "BYTES", ())),
    outputs=(TensorSpec("y", "FP32", (-1, 10)),),
)
MODEL = ModelDescription("m", ("2",), "", (SIGNATURE,))


def over_the_wire(call: InferenceCall) -> InferenceCall:
    body = tfserving.encode_request(call).SerializeToString()
    return tfserving.decode_request(tfs.PredictRequest.FromString(body))


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    dtype = NUMPY_OF[draw(st.sampled_from(FIXED))]
    return draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))


@given(st.dictionaries(st.text(min_size=1, max_size=8), arrays(), max_size=4))
def test_arrays_survive_the_wire(inputs: dict[str, Array]) -> None:
    target = Target("m", label="live", signature="s")
    again = over_the_wire(InferenceCall(target, inputs, ("y",)))
    assert (again.target, again.outputs) == (target, ("y",))
    assert again.inputs.keys() == inputs.keys()
    for name, array in inputs.items():
        assert again.inputs[name].dtype == array.dtype
        assert again.inputs[name].shape == array.shape
        assert again.inputs[name].tobytes() == array.tobytes()


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_strings_survive_the_wire(elements: list[bytes]) -> None:
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    assert over_the_wire(InferenceCall(Target("m"), {"x": array})).inputs["x"].tolist() == elements


def decode(dtype: tf.DataType.ValueType, shape: list[int], **content: object) -> Array:
    proto = tf.TensorProto(
        dtype=dtype,
        tensor_shape=tf.TensorShapeProto(dim=[tf.TensorShapeProto.Dim(size=size) for size in shape]),
        **content,  # type: ignore[arg-type]
    )
    request = tfs.PredictRequest(model_spec=tfs.ModelSpec(name="m"), inputs={"x": proto})
    return tfserving.decode_request(request).inputs["x"]


@pytest.mark.parametrize(
    ("dtype", "field", "values"),
    [
        (tf.DT_FLOAT, "float_val", [0.5, 2.0]),
        (tf.DT_DOUBLE, "double_val", [0.1, 2.0]),
        (tf.DT_INT32, "int_val", [-(2**31), 2**31 - 1]),
        (tf.DT_INT16, "int_val", [-(2**15), 2**15 - 1]),
        (tf.DT_INT8, "int_val", [-128, 127]),
        (tf.DT_UINT8, "int_val", [0, 255]),
        (tf.DT_UINT16, "int_val", [0, 65535]),
        (tf.DT_INT64, "int64_val", [-(2**63), 2**63 - 1]),
        (tf.DT_UINT32, "uint32_val", [0, 2**32 - 1]),
        (tf.DT_UINT64, "uint64_val", [0, 2**64 - 1]),
        (tf.DT_BOOL, "bool_val", [True, False]),
        (tf.DT_STRING, "string_val", [b"a", b"bc"]),
    ],
)
def test_value_lists(dtype: tf.DataType.ValueType, field: str, values: list[object]) -> None:
    assert decode(dtype, [2], **{field: values}).tolist() == values
    # Shorter than the shape: the last value repeats.
    assert decode(dtype, [2, 2], **{field: values}).tolist() == [values, [values[1], values[1]]]


def test_half_lists_hold_16_bits() -> None:
    assert decode(tf.DT_HALF, [2], half_val=[0x3C00, 0x4000]).tolist() == [1.0, 2.0]
    assert decode(tf.DT_BFLOAT16, [1], half_val=[0x3F80]).tobytes() == b"\x80\x3f"


def test_a_single_value_fills_the_shape_and_no_value_means_zeros() -> None:
    assert decode(tf.DT_FLOAT, [2, 3], float_val=[7]).tolist() == [[7, 7, 7], [7, 7, 7]]
    assert decode(tf.DT_INT64, [2]).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("dtype", "shape", "content", "text"),
    [
        (tf.DT_FLOAT, [100_000, 100_000], {"float_val": [1]}, "the limit is"),
        (tf.DT_FLOAT, [2**31, 2**31], {"float_val": [1]}, "the limit is"),
        (tf.DT_STRING, [4_000_000], {"string_val": [b"x" * 100]}, "more than the limit"),
        (tf.DT_FLOAT, [-1], {"float_val": [1]}, "negative"),
        (tf.DT_FLOAT, [1], {"float_val": [1, 2]}, "2 values for shape [1]"),
        (tf.DT_FLOAT, [2], {"tensor_content": b"\0" * 7}, "7 bytes of content"),
        (tf.DT_FLOAT, [1], {"tensor_content": b"\0" * 4, "float_val": [1]}, "either tensor_content or float_val"),
        (tf.DT_STRING, [1], {"tensor_content": b"abcd"}, "string_val"),
        (tf.DT_FLOAT, [1], {"double_val": [1]}, "send float_val"),
        (tf.DT_INT8, [1], {"int_val": [300]}, "outside INT8"),
        (tf.DT_HALF, [1], {"half_val": [-1]}, "outside UINT16"),
        (tf.DT_QINT8, [1], {"int_val": [1]}, "DT_QINT8 is not served"),
        (tf.DT_INVALID, [1], {}, "DT_INVALID is not served"),
        (1000, [1], {}, "1000 is not served"),
        (tf.DT_STRING, [1], {"string_val": [b"x" * (2**20 + 1)]}, "split it"),
    ],
)
def test_refused(dtype: tf.DataType.ValueType, shape: list[int], content: dict[str, object], text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode(dtype, shape, **content)
    assert text in caught.value.message
    assert caught.value.field.startswith("inputs[x]")


def test_many_single_values_share_one_limit() -> None:
    request = tfs.PredictRequest(model_spec=tfs.ModelSpec(name="m"))
    for index in range(200):
        proto = request.inputs[str(index)]
        proto.dtype = tf.DT_FLOAT
        proto.tensor_shape.dim.add(size=2**20)
        proto.float_val.append(1)
    with pytest.raises(InvalidArgument, match="limit"):
        tfserving.decode_request(request)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (tfs.PredictRequest(), "Missing ModelSpec"),
        (tfs.PredictRequest(model_spec=tfs.ModelSpec(signature_name="s")), "ModelSpec has no name specified."),
        (
            tfs.PredictRequest(model_spec=tfs.ModelSpec(name="m"), output_filter=["y", "y"]),
            "duplicate output tensor alias: y",
        ),
    ],
)
def test_refused_requests(request_: tfs.PredictRequest, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        tfserving.decode_request(request_)
    assert text in caught.value.message


def test_wrong_inputs_are_named() -> None:
    call = InferenceCall(Target("m"), {"a": np.zeros((1, 4), np.float32), "c": np.zeros(1)})
    with pytest.raises(InvalidArgument) as caught:
        tfserving.check(call, SIGNATURE)
    assert caught.value.message == (
        "input size does not match signature: 2!=2 len({a,c}) != len({a,b}). Sent extra: {c}. "
        "Missing but required: {b}."
    )


def test_signatures_by_name() -> None:
    assert tfserving.find_signature(MODEL, "") is SIGNATURE
    with pytest.raises(FailedPrecondition, match=r'Serving signature key "s" not found.'):
        tfserving.find_signature(MODEL, "s")


def test_output_filter() -> None:
    inputs: dict[str, Array] = {"a": np.zeros((1, 4), np.float32), "b": np.array(b"x", np.object_)}
    assert tfserving.check(InferenceCall(Target("m"), inputs), SIGNATURE) == ("y",)
    with pytest.raises(InvalidArgument, match="output tensor alias not found in signature: z"):
        tfserving.check(InferenceCall(Target("m"), inputs, ("z",)), SIGNATURE)


def test_response_echoes_what_ran() -> None:
    y = np.arange(3, dtype=np.float32)
    answer = InferenceAnswer(InferenceCall(Target("m", label="live"), {}), "12", "serving_default", {"y": y})
    response = tfserving.encode_response(answer)
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("m", 12, "serving_default")
    np.testing.assert_array_equal(tfserving.decode_response(response)["y"], y)


def test_metadata_both_ways() -> None:
    request = tfs.GetModelMetadataRequest(model_spec=tfs.ModelSpec(name="m"), metadata_field=["signature_def"])
    assert tfserving.check_metadata_request(request) == Target("m")
    response = tfserving.encode_metadata(MODEL, "2")
    content = response.metadata["signature_def"]
    assert content.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    assert tfserving.decode_metadata(response) == MODEL


@pytest.mark.parametrize("fields", [[], ["graph"]])
def test_metadata_field_is_required_and_known(fields: list[str]) -> None:
    request = tfs.GetModelMetadataRequest(model_spec=tfs.ModelSpec(name="m"), metadata_field=fields)
    with pytest.raises(InvalidArgument, match=r"metadata_field|graph is not supported"):
        tfserving.check_metadata_request(request)


def test_status_lists_all_versions_or_the_one_asked_for() -> None:
    versions = (VersionStatus(1, "END", "INTERNAL", "broken"), VersionStatus(2, "AVAILABLE"))
    everything = tfserving.encode_status(Target("m"), versions)
    assert tfserving.decode_status(everything) == (versions[1], versions[0])
    assert tfserving.decode_status(tfserving.encode_status(Target("m", "1"), versions)) == (versions[0],)
    with pytest.raises(NotFound, match="Could not find version 9 of model m"):
        tfserving.encode_status(Target("m", "9"), versions)


def test_unknown_models_have_the_known_texts() -> None:
    assert tfserving.unknown_model(Target("x")).message == "Servable not found for request: Latest(x)"
    assert tfserving.unknown_model(Target("x", "3")).message == "Servable not found for request: Specific(x, 3)"
    assert isinstance(tfserving.unknown_model(Target("x", label="live")), InvalidArgument)


SEED = tfserving.encode_request(
    InferenceCall(
        Target("model", "1"),
        {"x": np.zeros((2, 2), np.float32), "s": np.array([b"ab", b"c"], np.object_)},
        ("y",),
    )
)
SEED.inputs["v"].CopyFrom(
    tf.TensorProto(
        dtype=tf.DT_HALF, half_val=[1], tensor_shape=tf.TensorShapeProto(dim=[tf.TensorShapeProto.Dim(size=3)])
    )
)
SEED_BODY = SEED.SerializeToString(deterministic=True)


@settings(max_examples=200)
@given(st.data())
def test_mutated_requests_never_break_the_decoder(data: st.DataObject) -> None:
    body = bytearray(SEED_BODY)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    for candidate in (bytes(body), bytes(body[:cut])):
        try:
            request = tfs.PredictRequest.FromString(candidate)
        except DecodeError:
            continue
        try:
            tfserving.decode_request(request)
        except InvalidArgument as error:
            assert error.message
