"""MXNet's two files: ``*-symbol.json`` (the graph) and ``*-0000.params`` (the weights).

The layout of ``.params`` is that of MXNet 1.x (``src/ndarray/ndarray.cc``), little endian. Both files are hostile
input: a count or a size is checked against the bytes that are there before anything is made of it.
"""

from __future__ import annotations

import ast
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sealane.errors import InvalidArgument
from sealane.tensors import Array

LIST_MAGIC = 0x112
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DTYPES: dict[int, np.dtype[np.generic]] = {
    0: np.dtype("<f4"),
    1: np.dtype("<f8"),
    2: np.dtype("<f2"),
    3: np.dtype("u1"),
    4: np.dtype("<i4"),
    5: np.dtype("i1"),
    6: np.dtype("<i8"),
}
MAX_ARRAYS = 100_000
MAX_RANK = 32
MAX_NAME_BYTES = 4096
MAX_SYMBOL_BYTES = 64 * 1024 * 1024
MAX_ATTRIBUTE = 4096


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the graph.

    Attributes:
        op: operator; ``null`` for an input or a weight.
        name: name of the node.
        attributes: by name, as texts.
        inputs: node and output that each input is.
    """

    op: str
    name: str
    attributes: Mapping[str, str]
    inputs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Symbol:
    """The graph; every node stands behind those that it reads."""

    nodes: tuple[Node, ...]
    heads: tuple[tuple[int, int], ...]


class _Reader:
    """Reads forward through bytes, never beyond them."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, size: int) -> memoryview:
        if size < 0 or size > len(self._data) - self._at:
            raise _damaged("it ends in the middle of an array")
        self._at += size
        return self._data[self._at - size : self._at]

    def numbers(self, form: str) -> tuple[int, ...]:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def number(self, form: str) -> int:
        return self.numbers(form)[0]


def read_params(data: bytes) -> dict[str, Array]:
    """Arrays by name, without their ``arg:`` and ``aux:``.

    Raises:
        InvalidArgument: not such a file, cut, or with sparse arrays.
    """
    reader = _Reader(data)
    if len(data) < 24 or reader.number("Q") != LIST_MAGIC:
        raise _damaged("it does not begin as one")
    reader.number("Q")
    count = reader.number("Q")
    # The least array takes 8 bytes: a count beyond that is a lie.
    if count > min(MAX_ARRAYS, len(data) // 8):
        raise _damaged("it tells of more arrays than fit in it")
    arrays = [_array(reader) for _ in range(count)]
    if reader.number("Q") != count:
        raise _damaged("it has not a name for every array")
    names = []
    for _ in range(count):
        size = reader.number("Q")
        if size > MAX_NAME_BYTES:
            raise _damaged("a name in it is too long")
        names.append(_text(reader.take(size)).removeprefix("arg:").removeprefix("aux:"))
    return {name: array for name, array in zip(names, arrays, strict=True) if array is not None}


def _array(reader: _Reader) -> Array | None:
    magic = reader.number("I")
    if magic in (V2, V3):
        if reader.number("i") not in (0, -1):
            raise InvalidArgument(
                "the .params file holds a sparse array; save the model with dense weights", reason="MODEL_UNREADABLE"
            )
        rank = reader.number("i") if magic == V3 else reader.number("I")
        empty = rank < 0 if magic == V3 else rank == 0
    else:
        # Before version 1 the rank stands where the magic number is now, and sizes have 32 bits.
        rank = reader.number("I") if magic == V1 else magic
        empty = rank == 0
    if empty:
        return None
    if rank > MAX_RANK:
        raise _damaged("an array in it has too many dimensions")
    shape = reader.numbers(f"{rank}{'q' if magic in (V1, V2, V3) else 'I'}")
    if any(size < 0 for size in shape):
        raise _damaged("an array in it has a negative size")
    reader.numbers("ii")  # the device it was on
    dtype = DTYPES.get(reader.number("i"))
    if dtype is None:
        raise _damaged("an array in it is of an unknown type")
    # Python's own product: a shape that overflows 64 bits is only too large.
    content = reader.take(math.prod(shape) * dtype.itemsize)
    array: Array = np.frombuffer(content, dtype)
    return array.reshape(shape)


def read_symbol(file: Path) -> Symbol:
    """The graph of a ``*-symbol.json``.

    Raises:
        InvalidArgument: not such a file.
    """
    if file.stat().st_size > MAX_SYMBOL_BYTES:
        raise _no_symbol("it is too large")
    try:
        told = json.loads(file.read_bytes())
        nodes = tuple(_node(entry, place) for place, entry in enumerate(told["nodes"]))
        heads = tuple((int(head[0]), int(head[1])) for head in told["heads"])
        if not heads or any(not 0 <= head[0] < len(nodes) or head[1] < 0 for head in heads):
            raise ValueError("an output that is no node")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise _no_symbol("it is not the JSON of a graph") from error
    return Symbol(nodes, heads)


def _node(entry: Mapping[str, object], place: int) -> Node:
    # Three names in three generations of the format.
    told = entry.get("attrs") or entry.get("attr") or entry.get("param") or {}
    inputs = entry.get("inputs", [])
    if not isinstance(told, dict) or not isinstance(inputs, list):
        raise TypeError
    read = tuple((int(item[0]), int(item[1]) if len(item) > 1 else 0) for item in inputs)
    if any(not 0 <= source < place or output < 0 for source, output in read):
        raise ValueError("a node that reads a later one")
    return Node(str(entry["op"]), str(entry["name"]), {str(key): str(value) for key, value in told.items()}, read)


@dataclass(frozen=True, slots=True)
class Attributes:
    """Attributes of a node, read from their texts."""

    node: Node

    def text(self, name: str, default: str) -> str:
        """A word."""
        return self.node.attributes.get(name, default)

    def number(self, name: str, default: float) -> float:
        """A number."""
        return float(self._value(name, default, (int, float)))

    def integer(self, name: str, default: int) -> int:
        """A whole number."""
        return int(self._value(name, default, (int,)))

    def flag(self, name: str, default: bool) -> bool:
        """A truth value."""
        told = self.node.attributes.get(name)
        return default if told is None else told.lower() in ("true", "1")

    def integers(self, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """A list of whole numbers; a single one stands for a list of it."""
        found = self.maybe_integers(name)
        if found is None:
            return default
        if None in found:
            raise self._bad(name)
        return tuple(item for item in found if item is not None) or default

    def maybe_integers(self, name: str) -> tuple[int | None, ...] | None:
        """A list of whole numbers with gaps; None where it is not said."""
        told = self._literal(name)
        if told is None:
            return None
        listed = told if isinstance(told, tuple | list) else (told,)
        if not all(item is None or type(item) is int for item in listed):
            raise self._bad(name)
        return tuple(listed)

    def _value(self, name: str, default: float, kinds: tuple[type, ...]) -> float:
        told = self._literal(name)
        if told is None:
            return default
        if not isinstance(told, kinds) or not isinstance(told, int | float):
            raise self._bad(name)
        return told

    def _literal(self, name: str) -> object:
        told = self.node.attributes.get(name)
        if told is None or told == "None":
            return None
        try:
            if len(told) > MAX_ATTRIBUTE:
                raise ValueError("too long")
            # Numbers and lists of them only: nothing is evaluated.
            return ast.literal_eval(told)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise self._bad(name) from error

    def _bad(self, name: str) -> InvalidArgument:
        return InvalidArgument(
            f"attribute {name!r} of layer {self.node.name!r} ({self.node.op}) is not what MXNet writes; "
            "export the model again",
            reason="MODEL_UNREADABLE",
        )


def _text(data: memoryview) -> str:
    try:
        return bytes(data).decode()
    except UnicodeDecodeError as error:
        raise _damaged("a name in it is no text") from error


def _damaged(why: str) -> InvalidArgument:
    return InvalidArgument(
        f"the .params file cannot be read: {why}; save the model again with export", reason="MODEL_UNREADABLE"
    )


def _no_symbol(why: str) -> InvalidArgument:
    return InvalidArgument(
        f"the -symbol.json file cannot be read: {why}; save the model again with export", reason="MODEL_UNREADABLE"
    )
