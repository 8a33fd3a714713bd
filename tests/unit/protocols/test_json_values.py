"""Numbers, truth values and bytes of JSON: read as they are meant, or refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import InvalidArgument
from sealane.protocols import json_fields, json_values
from sealane.tensors import NUMPY_OF

INTEGERS = [name for name in NUMPY_OF if name.startswith(("INT", "UINT"))]


@pytest.mark.parametrize("datatype", INTEGERS)
def test_every_integer_of_a_datatype_and_none_beyond(datatype: str) -> None:
    bounds = np.iinfo(NUMPY_OF[datatype].name)
    found = json_values.numbers([[bounds.min, bounds.max]], datatype, "x")
    assert found.tolist() == [[bounds.min, bounds.max]]
    assert found.dtype == NUMPY_OF[datatype]
    for beyond in (bounds.min - 1, bounds.max + 1, 10**400):
        with pytest.raises(InvalidArgument):
            json_values.numbers([beyond], datatype, "x")
    with pytest.raises(InvalidArgument):
        json_values.numbers([1.5], datatype, "x")


def test_unsigned_numbers_on_both_sides_of_the_middle() -> None:
    values = [1, 2**63, 2**64 - 1]
    assert json_values.numbers([values], "UINT64", "x").tolist() == [values]
    assert json_values.numbers([2**63 - 1, -(2**63)], "INT64", "x").tolist() == [2**63 - 1, -(2**63)]


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_floats_with_whole_numbers_nan_and_infinity(datatype: str) -> None:
    values = json_values.parse(b'{"x": [1, 2.5, NaN, Infinity, -Infinity]}')["x"]
    found = json_values.numbers(values, datatype, "x").tolist()
    assert found[:2] == [1, 2.5]
    assert math.isnan(found[2])
    assert found[3:] == [math.inf, -math.inf]


@pytest.mark.parametrize(
    ("datatype", "value"), [("FP16", 65505.0), ("FP32", 1e39), ("FP32", -1e300), ("FP64", 10**400)]
)
def test_a_number_that_becomes_infinite_is_refused(datatype: str, value: float) -> None:
    with pytest.raises(InvalidArgument):
        json_values.numbers([value], datatype, "x")


def test_bf16_is_rounded_to_the_nearest() -> None:
    for value, bits in ((1.0, 0x3F80), (1.00390625, 0x3F80), (1.01171875, 0x3F82), (math.inf, 0x7F80), (-0.0, 0x8000)):
        found = json_values.numbers([value], "BF16", "x")
        assert found.view(np.uint16).tolist() == [bits]
    assert math.isnan(json_values.floats_of(json_values.numbers([math.nan], "BF16", "x")).tolist()[0])
    assert json_values.floats_of(json_values.numbers([1.5, -2.0], "BF16", "x")).tolist() == [1.5, -2.0]


def test_whole_numbers_that_a_float_cannot_hold_are_refused_where_that_is_asked_for() -> None:
    assert json_values.numbers([2**24], "FP32", "x", exact=True).tolist() == [2**24]
    with pytest.raises(InvalidArgument, match="without loss of precision"):
        json_values.numbers([2**24 + 1], "FP32", "x", exact=True)
    assert json_values.numbers([2**24 + 1], "FP32", "x").size == 1


@pytest.mark.parametrize(
    ("values", "datatype"),
    [
        ([[1, 2], [3]], "FP32"),
        ([1, [2]], "FP32"),
        (["1"], "FP32"),
        ([None], "FP32"),
        ([{"a": 1}], "INT8"),
        ([True], "FP32"),
        ([1], "BOOL"),
        ([[[]], [1]], "FP32"),
        ("text", "INT64"),
    ],
)
def test_what_is_no_tensor_is_refused(values: object, datatype: str) -> None:
    with pytest.raises(InvalidArgument):
        json_values.numbers(values, datatype, "x")


def test_nesting_without_end_is_refused() -> None:
    deep: object = 1
    for _ in range(200):
        deep = [deep]
    for read in (lambda: json_values.numbers(deep, "FP32", "x"), lambda: json_values.dense_shape(deep, "x")):
        with pytest.raises(InvalidArgument):
            read()
    with pytest.raises(InvalidArgument, match="deeply"):
        json_values.parse(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"1", b"{", b"\xff", b'{"a":"\\ud800"}', b'{"\\uDfff":1}', b'{"a":' + b"9" * 5000 + b"}"]
)
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgument, match="JSON Parse error"):
        json_values.parse(body)


def test_characters_beyond_the_basic_plane_are_text() -> None:
    assert json_values.parse(b'{"a":"\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_bytes_are_text_or_base64() -> None:
    assert json_values.byte_values([["a", {"b64": "/w=="}], [{"b64": "AAE"}, ""]], "x") == [b"a", b"\xff", b"\0\1", b""]
    for wrong in (1, None, {"b64": 1}, {"b64": "a", "c": 1}, {"b64": "!!"}, {"b64": "ä"}):
        with pytest.raises(InvalidArgument):
            json_values.byte_values([wrong], "x")
    assert json_values.to_base64(b"\xff") == {"b64": "/w=="}


def test_ragged_texts_are_refused() -> None:
    assert json_values.dense_shape([["a", "b"], ["c", "d"]], "x") == (2, 2)
    assert json_values.dense_shape("a", "x") == ()
    for ragged in ([["a"], "b"], [["a"], ["b", "c"]], ["a", ["b"]]):
        with pytest.raises(InvalidArgument):
            json_values.dense_shape(ragged, "x")


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400 + ".0"])
def test_a_number_that_no_double_holds_is_refused_and_an_infinity_is_not(datatype: str, number: str) -> None:
    body = f'{{"x": [[Infinity, {number}]], "y": [[Infinity, -Infinity, NaN, 1e0]]}}'.encode()
    document = json_values.parse(body)
    with pytest.raises(InvalidArgument) as caught:
        json_values.numbers(document["x"], datatype, "x")
    assert caught.value.reason == "VALUE_OUT_OF_RANGE"
    assert json_values.numbers(document["y"], datatype, "y").shape == (1, 4)


def test_a_parameter_that_no_double_holds_is_refused() -> None:
    document = json_values.parse(b'{"token": Infinity, "number": 1e999}')
    parameter = oip.InferParameter()
    json_fields.set_parameter(parameter, document["token"], "token")
    assert parameter.double_param == float("inf")
    with pytest.raises(InvalidArgument):
        json_fields.set_parameter(parameter, document["number"], "number")
