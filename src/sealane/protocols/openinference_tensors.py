"""Tensors of the Open Inference Protocol <-> numpy arrays.

Requests and responses carry tensors alike: a name, datatype and shape, with the elements either in
typed `contents` or in the message's list of raw contents. Outgoing tensors are always raw: the
common clients read nothing else, and it is the only form without a loop over the elements.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import InvalidArgument
from sealane.protocols.elements import (
    Budget,
    byte_elements,
    check_count,
    from_content,
    from_elements,
    from_values,
    to_content,
)
from sealane.tensors import Array, datatype_of

_CONTENTS_OF = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class WireTensor(Protocol):
    """What an input and an output tensor have in common."""

    @property
    def name(self) -> str:
        """Tensor name."""

    @property
    def datatype(self) -> str:
        """Datatype name."""

    @property
    def shape(self) -> Sequence[int]:
        """Size of each dimension."""

    @property
    def contents(self) -> oip.InferTensorContents:
        """Typed elements."""

    @property
    def parameters(self) -> Mapping[str, oip.InferParameter]:
        """Parameters of the tensor."""


def decode_tensors(tensors: Sequence[WireTensor], raw: Sequence[bytes], model: str, path: str) -> dict[str, Array]:
    """Arrays by name; `path` is the field that holds `tensors`, for error messages.

    Raises:
        InvalidArgument: anything that cannot be a tensor, with the texts that clients know.
    """
    check_count(len(tensors), path)
    if raw and len(raw) != len(tensors):
        raise InvalidArgument(
            f"{len(raw)} raw contents for {len(tensors)} tensors of model '{model}'; send one for each, in order",
            reason="RAW_CONTENTS_COUNT",
            field=f"raw_{path.removesuffix('s')}_contents",
        )
    budget = Budget()
    arrays: dict[str, Array] = {}
    for index, tensor in enumerate(tensors):
        where = f"{path}[{index}]"
        if not tensor.name or tensor.name in arrays:
            raise InvalidArgument(
                f"tensor name {tensor.name!r} is empty or given twice for model '{model}'; name each tensor once",
                reason="TENSOR_NAME",
                field=f"{where}.name",
            )
        _refuse_shared_memory(tensor, where)
        if raw:
            if _filled(tensor.contents):
                raise InvalidArgument(
                    f"contents field must not be specified when using raw_input_contents for '{tensor.name}' "
                    f"for model '{model}'",
                    reason="RAW_AND_TYPED",
                    field=f"{where}.contents",
                )
            arrays[tensor.name] = _from_raw(tensor, raw[index], budget, where)
        else:
            arrays[tensor.name] = _from_typed(tensor, budget, model, where)
    return arrays


def encode_raw(array: Array) -> bytes:
    """The raw form of an array."""
    if datatype_of(array) != "BYTES":
        return to_content(array)
    return b"".join(struct.pack("<I", len(element)) + element for element in byte_elements(array))


def _filled(contents: oip.InferTensorContents) -> list[str]:
    """Names of the typed fields that hold elements."""
    return [descriptor.name for descriptor, _ in contents.ListFields()]


def _refuse_shared_memory(tensor: WireTensor, where: str) -> None:
    """Memory that a client names is never opened (SECURITY T13)."""
    if any(name.startswith("shared_memory_") for name in tensor.parameters):
        raise InvalidArgument(
            f"tensor '{tensor.name}' asks for shared memory, which this server does not open; send its elements",
            reason="SHARED_MEMORY_OFF",
            field=f"{where}.parameters",
        )


def _from_raw(tensor: WireTensor, content: bytes, budget: Budget, where: str) -> Array:
    shape = tuple(tensor.shape)
    count = budget.admit(tensor.datatype, shape, where)
    if tensor.datatype != "BYTES":
        return from_content(tensor.datatype, shape, content, where)
    if 4 * count > len(content):
        raise InvalidArgument(
            f"tensor '{tensor.name}' holds {len(content)} bytes, {count} BYTES elements take at least {4 * count}; "
            "put a 4-byte length before each element",
            reason="TENSOR_SIZE_MISMATCH",
            field=where,
        )
    return from_elements(list(_split(content, where)), shape, where)


def _split(content: bytes, where: str) -> Iterable[bytes]:
    """The elements of raw BYTES: each a 4-byte little-endian length and that many bytes."""
    position = 0
    while position < len(content):
        start = position + 4
        size = int.from_bytes(content[position:start], "little")
        if start + size > len(content):
            raise InvalidArgument(
                "a BYTES element ends behind the content; put its own 4-byte little-endian length before each element",
                reason="TENSOR_SIZE_MISMATCH",
                field=where,
            )
        yield content[start : start + size]
        position = start + size


def _from_typed(tensor: WireTensor, budget: Budget, model: str, where: str) -> Array:
    shape = tuple(tensor.shape)
    count = budget.admit(tensor.datatype, shape, where)
    filled = _filled(tensor.contents)
    if not filled:
        raise InvalidArgument(
            f"unable to find data for input tensor '{tensor.name}' for model '{model}' in request.",
            reason="NO_DATA",
            field=f"{where}.contents",
        )
    wanted = _CONTENTS_OF.get(tensor.datatype)
    if wanted is None or filled != [wanted]:
        raise InvalidArgument(
            f"tensor '{tensor.name}' of {tensor.datatype} holds {', '.join(filled)}; "
            f"send {wanted or 'raw contents, it has no typed form'}",
            reason="WRONG_CONTENTS",
            field=f"{where}.contents",
        )
    values = getattr(tensor.contents, wanted)
    if len(values) != count:
        raise InvalidArgument(
            f"tensor '{tensor.name}' holds {len(values)} values, shape {list(shape)} takes {count}; make them agree",
            reason="TENSOR_SIZE_MISMATCH",
            field=f"{where}.contents",
        )
    if tensor.datatype == "BYTES":
        return from_elements(list(values), shape, where)
    return from_values(tensor.datatype, shape, values, where)
