"""JSON <-> elements of tensors, for the HTTP forms of both foreign protocols.

Numbers are read by numpy in one go, whatever their nesting. JSON does not know the datatypes, so what a list holds is
looked at before it is narrowed: a fraction is no integer, a truth value no number, and what a datatype cannot hold is
refused instead of being cut. ``NaN`` and ``Infinity`` are legal tokens both ways, as both protocols have them.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sealane.errors import InvalidArgument
from sealane.protocols.elements import MAX_RANK, narrow
from sealane.tensors import NUMPY_OF, Array

Json = object

#: Half of a character beyond the basic plane, escaped: alone it is no text.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_EXACT_INTEGER = {"FP16": 1 << 11, "BF16": 1 << 8, "FP32": 1 << 24, "FP64": 1 << 53}
_LARGEST = {
    "FP16": 65504.0,
    "BF16": 3.3895313892515355e38,
    "FP32": float(np.finfo(np.float32).max),
    "FP64": math.inf,
}
_BINARY = "b64"
#: What the tokens are read as. An infinity that is neither of these objects was a number, and too large for a double.
_TOKENS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def parse(body: bytes) -> dict[str, Json]:
    """The object of a body.

    Raises:
        InvalidArgument: no JSON, no object, or text that is none.
    """
    if not body:
        raise _malformed("the document is empty")
    try:
        document = json.loads(body, parse_constant=_TOKENS.__getitem__)
        if _SURROGATE.search(body):
            json.dumps(document, ensure_ascii=False).encode()
    except RecursionError:
        raise _malformed("it is nested too deeply") from None
    except UnicodeError:
        raise _malformed("it is not UTF-8") from None
    except ValueError as error:
        place = f" at offset {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise _malformed(f"it is malformed{place}") from None
    if not isinstance(document, dict):
        raise _malformed("it is no object")
    return document


def is_too_large(value: Json) -> bool:
    """Whether this number of a parsed body became infinite because no double holds it."""
    return isinstance(value, float) and math.isinf(value) and not any(value is token for token in _TOKENS.values())


def dump(document: Json) -> bytes:
    """The body of an object."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def numbers(values: Json, datatype: str, path: str, *, exact: bool = False) -> Array:
    """The array of nested lists of numbers or truth values, in the shape that they have.

    Args:
        values: what :func:`parse` found.
        datatype: of the array; not BYTES.
        path: field that holds them, for error messages.
        exact: whether whole numbers that a floating datatype cannot hold exactly are refused.

    Raises:
        InvalidArgument: ragged lists, values of another type, or outside the range of the datatype.
    """
    wide = _wide(values, datatype, path)
    if wide.size == 0:
        return np.zeros(wide.shape, NUMPY_OF[datatype])
    kind = wide.dtype.kind
    if datatype == "BOOL" or kind == "b":
        if datatype != "BOOL" or kind != "b":
            raise _wrong(datatype, path)
        return wide
    if datatype in _LARGEST:
        return _floats(wide, values, _Into(datatype, path, exact))
    if kind not in "iu":
        raise _wrong(datatype, path)
    if wide.dtype == np.uint64 and datatype != "UINT64":
        raise _outside(datatype, path)
    if datatype == "UINT64":
        if kind == "i" and wide.min() < 0:
            raise _outside(datatype, path)
        return wide.astype(np.uint64, copy=False)
    return narrow(wide, datatype, path)


def _wide(values: Json, datatype: str, path: str) -> Array:
    try:
        wide = np.asarray(values)
    except (ValueError, OverflowError, RecursionError):
        raise _ragged(path) from None
    if wide.dtype.kind in "fO" and datatype in ("UINT64", "INT64") and wide.size:
        # numpy takes whole numbers on both sides of 2^63 for floats, and larger ones for objects.
        whole = np.asarray(list(leaves(values)), dtype=np.object_)
        if all(type(value) is int for value in whole):
            try:
                return whole.astype(np.uint64 if datatype == "UINT64" else np.int64).reshape(wide.shape)
            except OverflowError:
                raise _outside(datatype, path) from None
    if wide.dtype.kind == "O" and wide.size and all(type(value) in (int, float) for value in wide.flat):
        raise _outside(datatype, path)
    if wide.dtype.kind not in "biuf":
        raise _wrong(datatype, path)
    if wide.ndim > MAX_RANK:
        raise _ragged(path)
    return wide


@dataclass(frozen=True, slots=True)
class _Into:
    """The tensor that values are for."""

    datatype: str
    path: str
    exact: bool


def _floats(wide: Array, values: Json, into: _Into) -> Array:
    datatype, path = into.datatype, into.path
    numbers_ = wide.astype(np.float64)
    if wide.dtype.kind in "iu" and into.exact and np.abs(numbers_).max() > _EXACT_INTEGER[datatype]:
        raise InvalidArgument(
            f"a whole number in {path} cannot be converted to {datatype} without loss of precision; "
            "send it with a fraction or as another datatype",
            reason="VALUE_OUT_OF_RANGE",
            field=path,
        )
    finite = numbers_[np.isfinite(numbers_)]
    if finite.size < numbers_.size and any(is_too_large(value) for value in leaves(values)):
        raise _outside(datatype, path)
    if finite.size and np.abs(finite).max() > _LARGEST[datatype]:
        raise _outside(datatype, path)
    if datatype != "BF16":
        return numbers_.astype(NUMPY_OF[datatype], copy=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # above the largest FP32: rounded to infinity as it should
        bits = numbers_.astype(np.float32).view(np.uint32)
    # Round to the nearest, ties to even; a NaN stays one.
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(numbers_), 0x7FC0, rounded).astype(np.uint16).view(NUMPY_OF["BF16"])


def leaves(values: Json) -> Iterator[Json]:
    """What stands in nested lists, in order."""
    if not isinstance(values, list):
        yield values
        return
    pending = [iter(values)]
    while pending:
        for value in pending[-1]:
            if isinstance(value, list):
                pending.append(iter(value))
                break
            yield value
        else:
            pending.pop()


def dense_shape(values: Json, path: str) -> tuple[int, ...]:
    """The shape of nested lists, which is that of their first elements.

    Raises:
        InvalidArgument: they are ragged.
    """
    shape: list[int] = []
    level = values
    while isinstance(level, list):
        shape.append(len(level))
        level = level[0] if level else None
    if len(shape) > MAX_RANK:
        raise _ragged(path)
    _check_level(values, tuple(shape), path)
    return tuple(shape)


def _check_level(values: Json, shape: tuple[int, ...], path: str) -> None:
    if isinstance(values, list) != bool(shape):
        raise _ragged(path)
    if not isinstance(values, list):
        return
    if len(values) != shape[0]:
        raise _ragged(path)
    for value in values:
        _check_level(value, shape[1:], path)


def byte_values(values: Json, path: str) -> list[bytes]:
    """The elements of a BYTES tensor: text, or ``{"b64": ...}``.

    Raises:
        InvalidArgument: something else, or no base64.
    """
    return [_byte_value(value, path) for value in leaves(values)]


def _byte_value(value: Json, path: str) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict) and value.keys() == {_BINARY} and isinstance(value[_BINARY], str):
        return from_base64(value[_BINARY], path)
    raise _wrong("BYTES", path)


def is_base64(value: Json) -> bool:
    """Whether this is ``{"b64": ...}``: a value and no object of named ones."""
    return isinstance(value, dict) and value.keys() == {_BINARY} and isinstance(value[_BINARY], str)


def from_base64(text: str, path: str) -> bytes:
    """The bytes of base64, padded or not.

    Raises:
        InvalidArgument: it is none.
    """
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument(
            f"{path} is not formatted correctly for base64 data; encode the bytes by RFC 4648 section 4",
            reason="MALFORMED_REQUEST",
            field=path,
        ) from None


def to_base64(element: bytes) -> dict[str, str]:
    """``{"b64": ...}`` of bytes."""
    return {_BINARY: base64.b64encode(element).decode()}


def floats_of(array: Array) -> Array:
    """An array whose elements JSON can write: BF16 widened to FP32, the others as they are."""
    if array.dtype != NUMPY_OF["BF16"]:
        return array
    return (np.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def texts_of(elements: Sequence[bytes]) -> list[str] | None:
    """The elements as text; None where one is not UTF-8."""
    try:
        return [element.decode() for element in elements]
    except UnicodeDecodeError:
        return None


def _malformed(why: str) -> InvalidArgument:
    return InvalidArgument(f"JSON Parse error: {why}; send a JSON object", reason="MALFORMED_REQUEST")


def _ragged(path: str) -> InvalidArgument:
    return InvalidArgument(
        f"the lists of {path} are ragged or nested too deeply; send lists of equal length at every level",
        reason="TENSOR_SIZE_MISMATCH",
        field=path,
    )


def _wrong(datatype: str, path: str) -> InvalidArgument:
    wanted = {"BOOL": "true or false", "BYTES": "text or base64"}.get(
        datatype, "numbers" if datatype in _LARGEST else "whole numbers"
    )
    return InvalidArgument(
        f"a value in {path} is not of expected type {datatype}; send {wanted}", reason="VALUE_TYPE", field=path
    )


def _outside(datatype: str, path: str) -> InvalidArgument:
    return InvalidArgument(
        f"a value in {path} lies outside {datatype}; send a wider datatype", reason="VALUE_OUT_OF_RANGE", field=path
    )
