"""Walks through an ONNX file by its wire format: which operator domains it has and where it keeps weights.

Field numbers are those of onnx.proto3 (https://github.com/onnx/onnx). Weights are passed over, not read; the file is
hostile input, so depth and the number of fields are bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

MAX_FIELDS = 4_000_000
MAX_DEPTH = 32
MAX_TEXT = 4096
_BLOCK = 1 << 16

_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_FUNCTION_NODE = 7
_NODE_OP, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_TENSOR_EXTERNAL = 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_PYTHON = frozenset({"PyOp", "PythonOp", "PyCustomOp"})


class Malformed(Exception):
    """Not what it should be; the text says why."""


class Content(Protocol):
    """One file, readable in pieces."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`; fewer at the end."""
        ...


@dataclass(slots=True)
class OnnxFacts:
    """What was found."""

    domains: set[str] = field(default_factory=set)
    external: set[str] = field(default_factory=set)
    python: bool = False
    graphs: int = 0


def walk(content: Content) -> OnnxFacts:
    """What the model has.

    Raises:
        Malformed: it is no ONNX model.
    """
    walker = _Walker(content)
    for number, begin, end in walker.fields(0, content.size):
        if number == _MODEL_GRAPH:
            walker.graph(begin, end, 0)
        elif number == _MODEL_FUNCTIONS:
            for inner, start, stop in walker.fields(begin, end):
                if inner == _FUNCTION_NODE:
                    walker.node(start, stop, 1)
    if walker.facts.graphs == 0:
        raise Malformed("it has no graph")
    return walker.facts


class _Walker:
    def __init__(self, content: Content) -> None:
        self.facts = OnnxFacts()
        self._content = content
        self._block, self._start = b"", 0
        self._left = MAX_FIELDS

    def graph(self, begin: int, end: int, depth: int) -> None:
        """A graph, with those inside of it."""
        if depth > MAX_DEPTH:
            raise Malformed("its graphs are too deep")
        self.facts.graphs += 1
        for number, start, stop in self.fields(begin, end):
            if number == _GRAPH_NODE:
                self.node(start, stop, depth)
            elif number == _GRAPH_INITIALIZER:
                self._tensor(start, stop)
            elif number == _GRAPH_SPARSE:
                for _, inner, last in self.fields(start, stop):
                    self._tensor(inner, last)

    def node(self, begin: int, end: int, depth: int) -> None:
        """An operator with its attributes."""
        domain = ""
        for number, start, stop in self.fields(begin, end):
            if number == _NODE_DOMAIN:
                domain = self._text(start, stop)
            elif number == _NODE_OP and self._text(start, stop) in _PYTHON:
                self.facts.python = True
            elif number == _NODE_ATTRIBUTE:
                self._attribute(start, stop, depth)
        self.facts.domains.add(domain)

    def fields(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Number, begin and end of each field with a length; the others are passed over."""
        place = begin
        while place < end:
            self._left -= 1
            if self._left < 0:
                raise Malformed("it has too many fields")
            tag, place = self._varint(place, end)
            kind = tag & 7
            if kind == 0:
                _, place = self._varint(place, end)
            elif kind in (1, 5):
                place += 8 if kind == 1 else 4
            elif kind == 2:
                length, place = self._varint(place, end)
                if length > end - place:
                    raise Malformed("a field is longer than what holds it")
                yield tag >> 3, place, place + length
                place += length
            else:
                raise Malformed("a field has an unknown wire type")
        if place != end:
            raise Malformed("a field ends behind what holds it")

    def _attribute(self, begin: int, end: int, depth: int) -> None:
        for number, start, stop in self.fields(begin, end):
            if number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                self.graph(start, stop, depth + 1)
            elif number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                self._tensor(start, stop)

    def _tensor(self, begin: int, end: int) -> None:
        for number, start, stop in self.fields(begin, end):
            if number == _TENSOR_EXTERNAL:
                entry = {
                    inner: self._text(first, last)
                    for inner, first, last in self.fields(start, stop)
                    if inner in (_ENTRY_KEY, _ENTRY_VALUE)
                }
                if entry.get(_ENTRY_KEY) == "location":
                    self.facts.external.add(entry.get(_ENTRY_VALUE, ""))

    def _text(self, begin: int, end: int) -> str:
        if end - begin > MAX_TEXT:
            raise Malformed("a name is too long")
        return self._bytes(begin, end - begin).decode(errors="replace")

    def _varint(self, place: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if place >= end:
                break
            byte = self._bytes(place, 1)[0]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, place
        raise Malformed("a number does not end")

    def _bytes(self, place: int, length: int) -> bytes:
        inside = place - self._start
        if not 0 <= inside <= len(self._block) - length:
            self._block, self._start = self._content.read(place, max(_BLOCK, length)), place
            inside = 0
        found = self._block[inside : inside + length]
        if len(found) != length:
            raise Malformed("it ends early")
        return found
