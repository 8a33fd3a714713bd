"""Signatures of a LiteRT (``.tflite``) file, read from its FlatBuffer without LiteRT.

Field numbers are those of TensorFlow Lite's ``schema.fbs``. The file is hostile input: every offset is checked, and
what does not fit is an error, never an endless walk.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from sealane.errors import InvalidArgument
from sealane.protocols.call import DEFAULT_SIGNATURE
from sealane.tensors import Signature, TensorSpec

IDENTIFIER = b"TFL3"
#: Most tensors of a graph, and most graphs, signatures, and inputs or outputs of one: lists of a file may overlap, so
#: that reading them all in turn could take for ever.
MAX_TENSORS = 100_000
MAX_ENTRIES = 256

_SUBGRAPHS, _SIGNATURES = 2, 7
_GRAPH_TENSORS, _GRAPH_INPUTS, _GRAPH_OUTPUTS = 0, 1, 2
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_SHAPE_SIGNATURE = 0, 1, 3, 7
_SIGNATURE_INPUTS, _SIGNATURE_OUTPUTS, _SIGNATURE_KEY, _SIGNATURE_GRAPH = 0, 1, 2, 4

#: TensorType -> Open Inference datatype; what is not here is not served.
_DATATYPE_OF = {
    0: "FP32",
    1: "FP16",
    2: "INT32",
    3: "UINT8",
    4: "INT64",
    5: "BYTES",
    6: "BOOL",
    7: "INT16",
    9: "INT8",
    10: "FP64",
    12: "UINT64",
    15: "UINT32",
    16: "UINT16",
    18: "BF16",
}


@dataclass(frozen=True, slots=True)
class SignatureNames:
    """A signature: public name -> name of the tensor in the file."""

    name: str
    inputs: dict[str, str]
    outputs: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of a FlatBuffer."""

    data: bytes
    at: int

    def _field(self, number: int) -> int:
        """Where a field lies; 0 where it is left out."""
        (distance,) = struct.unpack_from("<i", self.data, self.at)
        vtable = self.at - distance
        if vtable < 0:
            raise ValueError("vtable outside the file")
        (size,) = struct.unpack_from("<H", self.data, vtable)
        entry = 4 + 2 * number
        if entry + 2 > size:
            return 0
        (offset,) = struct.unpack_from("<H", self.data, vtable + entry)
        return self.at + int(offset) if offset else 0

    def number(self, number: int, form: str = "<I") -> int:
        """A scalar; 0 where it is left out."""
        at = self._field(number)
        return int(struct.unpack_from(form, self.data, at)[0]) if at else 0

    def _list(self, number: int, limit: int = MAX_ENTRIES) -> tuple[int, int]:
        at = self._field(number)
        if not at:
            return 0, 0
        at += struct.unpack_from("<I", self.data, at)[0]
        (count,) = struct.unpack_from("<I", self.data, at)
        if count > limit or at + 4 + count > len(self.data):
            raise ValueError("list longer than the file")
        return at + 4, int(count)

    def text(self, number: int) -> str:
        """A string; empty where it is left out."""
        at, count = self._list(number, len(self.data))
        return self.data[at : at + count].decode()

    def numbers(self, number: int) -> tuple[int, ...]:
        """A list of 32-bit integers."""
        at, count = self._list(number)
        return struct.unpack_from(f"<{count}i", self.data, at)

    def tables(self, number: int, limit: int = MAX_ENTRIES) -> list[_Table]:
        """A list of tables."""
        at, count = self._list(number, limit)
        offsets = struct.unpack_from(f"<{count}I", self.data, at)
        return [_Table(self.data, at + 4 * index + offset) for index, offset in enumerate(offsets)]


def read(file: Path) -> SignatureNames | None:
    """Names of the first signature; none where the model was made without one.

    Raises:
        InvalidArgument: not a LiteRT file.
    """
    found = _parse(file.read_bytes())
    return found[0][1] if found and found[0][1].name else None


def read_signatures(file: Path) -> tuple[Signature, ...]:
    """What the model takes and gives; one without signatures is called by its tensors' names.

    Raises:
        InvalidArgument: not a LiteRT file, or a tensor in it that cannot be served.
    """
    return tuple(signature for signature, _ in _parse(file.read_bytes()))


def _parse(data: bytes) -> list[tuple[Signature, SignatureNames]]:
    if data[4:8] != IDENTIFIER:
        raise InvalidArgument("the file is not a LiteRT model; convert it again", reason="MODEL_UNREADABLE")
    try:
        model = _Table(data, struct.unpack_from("<I", data, 0)[0])
        graphs, signatures = model.tables(_SUBGRAPHS), model.tables(_SIGNATURES)
        used = {item.number(_SIGNATURE_GRAPH) for item in signatures} or {0}
        tensors = {place: graphs[place].tables(_GRAPH_TENSORS, MAX_TENSORS) for place in used}
        if signatures:
            return [_of_signature(item, tensors[item.number(_SIGNATURE_GRAPH)]) for item in signatures]
        return [_of_graph(graphs[0], tensors[0])]
    except (struct.error, ValueError, IndexError) as error:
        raise InvalidArgument(
            "the LiteRT file is cut or damaged; convert it again", reason="MODEL_UNREADABLE"
        ) from error


def _of_signature(item: _Table, tensors: list[_Table]) -> tuple[Signature, SignatureNames]:
    inputs = {entry.text(0): tensors[entry.number(1)] for entry in item.tables(_SIGNATURE_INPUTS)}
    outputs = {entry.text(0): tensors[entry.number(1)] for entry in item.tables(_SIGNATURE_OUTPUTS)}
    return _both(item.text(_SIGNATURE_KEY), inputs, outputs)


def _of_graph(graph: _Table, tensors: list[_Table]) -> tuple[Signature, SignatureNames]:
    inputs = {tensors[index].text(_TENSOR_NAME): tensors[index] for index in graph.numbers(_GRAPH_INPUTS)}
    outputs = {tensors[index].text(_TENSOR_NAME): tensors[index] for index in graph.numbers(_GRAPH_OUTPUTS)}
    return _both("", inputs, outputs)


def _both(name: str, inputs: dict[str, _Table], outputs: dict[str, _Table]) -> tuple[Signature, SignatureNames]:
    signature = Signature(
        tuple(_spec(key, tensor) for key, tensor in inputs.items()),
        tuple(_spec(key, tensor) for key, tensor in outputs.items()),
        name or DEFAULT_SIGNATURE,
    )
    return signature, SignatureNames(
        name,
        {key: tensor.text(_TENSOR_NAME) for key, tensor in inputs.items()},
        {key: tensor.text(_TENSOR_NAME) for key, tensor in outputs.items()},
    )


def _spec(name: str, tensor: _Table) -> TensorSpec:
    kind = tensor.number(_TENSOR_TYPE, "<b")
    if kind not in _DATATYPE_OF:
        raise InvalidArgument(
            f"tensor {name!r} is of a type that no protocol carries; convert the model with float inputs and outputs",
            reason="MODEL_SIGNATURES",
        )
    # A file written before dynamic shapes has no shape signature; its shape is then the truth.
    shape = tensor.numbers(_TENSOR_SHAPE_SIGNATURE) or tensor.numbers(_TENSOR_SHAPE)
    return TensorSpec(name, _DATATYPE_OF[kind], tuple(max(-1, size) for size in shape))
