"""Fields of JSON bodies, read strictly, and the parameters of the Open Inference Protocol among them.

Texts in quotes are those of Triton.
"""

from __future__ import annotations

from collections.abc import Mapping

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import InvalidArgument
from sealane.protocols.elements import MAX_RANK, MAX_TENSORS
from sealane.protocols.json_values import Json, is_too_large
from sealane.tensors import MAX_TENSOR_BYTES


def object_of(value: Json, path: str) -> dict[str, Json]:
    """An object.

    Raises:
        InvalidArgument: something else.
    """
    if not isinstance(value, dict):
        raise InvalidArgument(f"Unable to parse '{path}': send an object", reason="MALFORMED_REQUEST", field=path)
    return value


def list_of(value: Json, path: str) -> list[Json]:
    """A list.

    Raises:
        InvalidArgument: something else.
    """
    if not isinstance(value, list):
        raise InvalidArgument(f"Unable to parse '{path}': send a list", reason="MALFORMED_REQUEST", field=path)
    return value


def text_of(value: Json, path: str) -> str:
    """Text.

    Raises:
        InvalidArgument: something else.
    """
    if not isinstance(value, str):
        raise InvalidArgument(f"Unable to parse '{path}': send text", reason="MALFORMED_REQUEST", field=path)
    return value


def flag_of(value: Json, path: str) -> bool:
    """A truth value.

    Raises:
        InvalidArgument: something else.
    """
    if not isinstance(value, bool):
        raise InvalidArgument(f"Unable to parse '{path}': send true or false", reason="PARAMETER_TYPE", field=path)
    return value


def whole_of(value: Json, path: str) -> int:
    """A whole number of at most what all tensors of a message take.

    Raises:
        InvalidArgument: something else.
    """
    if type(value) is not int or not 0 <= value <= MAX_TENSOR_BYTES * MAX_TENSORS:
        raise InvalidArgument(f"Unable to parse '{path}': send a whole number", reason="PARAMETER_TYPE", field=path)
    return value


def shape_of(value: Json, path: str) -> tuple[int, ...]:
    """A shape.

    Raises:
        InvalidArgument: something else.
    """
    sizes = list_of(value, path)
    if len(sizes) > MAX_RANK or not all(type(size) is int and 0 <= size < 1 << 63 for size in sizes):
        raise InvalidArgument(
            f"Unable to parse 'shape': {path} is at most {MAX_RANK} whole numbers from 0 on", field=path
        )
    return tuple(size for size in sizes if isinstance(size, int))


def parameters_of(parameters: Mapping[str, oip.InferParameter]) -> dict[str, Json]:
    """Parameters as JSON has them."""
    told: dict[str, Json] = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is not None:
            told[name] = getattr(parameter, kind)
    return told


def set_parameter(target: oip.InferParameter, value: Json, path: str) -> None:
    """Fill in a parameter.

    Raises:
        InvalidArgument: a value that no parameter has.
    """
    if isinstance(value, bool):
        target.bool_param = value
    elif isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        target.int64_param = value
    elif isinstance(value, int) and 0 <= value < 1 << 64:
        target.uint64_param = value
    elif isinstance(value, float) and not is_too_large(value):
        target.double_param = value
    elif isinstance(value, str):
        target.string_param = value
    else:
        raise InvalidArgument(
            f"attempt to access JSON parameter {path}, it must be a bool, a number of 64 bits or a string",
            reason="PARAMETER_TYPE",
            field=path,
        )
