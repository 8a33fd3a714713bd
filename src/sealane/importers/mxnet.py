"""MXNet models (``*-symbol.json`` and ``*-0000.params``) to ONNX, without MXNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sealane.errors import InvalidArgument
from sealane.importers.mxnet_files import Attributes, Node, Symbol, read_params, read_symbol
from sealane.importers.mxnet_layer import Layer
from sealane.importers.mxnet_ops import OPERATORS
from sealane.importers.onnx_graph import OnnxGraph, require_onnx, uncovered
from sealane.tensors import Array

#: Operators whose second input is a label: what they compute without it is their output.
LABELLED = {"SoftmaxOutput", "Softmax", "LinearRegressionOutput", "LogisticRegressionOutput", "MAERegressionOutput"}
_NO_SHAPES: Mapping[str, Sequence[int]] = {}


def to_onnx(symbol: Path, params: Path, shapes: Mapping[str, Sequence[int]] = _NO_SHAPES) -> bytes:
    """The same model as an ONNX file.

    Args:
        symbol: ``*-symbol.json``.
        params: ``*-0000.params``.
        shapes: shape by input, -1 for any size; needed where the first layer does not tell.

    Raises:
        InvalidArgument: files that are no model, an operator that is not covered, or a shape that is needed.
        Unimplemented: onnx is not installed.
    """
    require_onnx()
    graph = read_symbol(symbol)
    weights = read_params(params.read_bytes())
    return _Import(graph, weights, shapes).to_bytes()


class _Import:
    """One model on its way."""

    def __init__(self, symbol: Symbol, weights: Mapping[str, Array], shapes: Mapping[str, Sequence[int]]) -> None:
        self._symbol, self._weights, self._shapes = symbol, weights, shapes
        self._graph = OnnxGraph()
        self._tensors: dict[tuple[int, int], str] = {}

    def to_bytes(self) -> bytes:
        needed = self._needed()
        for place, node in enumerate(self._symbol.nodes):
            if place in needed:
                self._add(place, node)
        for place, output in self._symbol.heads:
            tensor = self._tensors.get((place, output))
            if tensor is None:
                raise InvalidArgument("the graph gives an output that no layer has; export the model again")
            node = self._symbol.nodes[place]
            self._graph.give(f"{node.name}_output{output or ''}", tensor)
        return self._graph.to_bytes()

    def _needed(self) -> set[int]:
        """Nodes that an output depends on; labels are none of them."""
        needed: set[int] = set()
        pending = [place for place, _ in self._symbol.heads]
        while pending:
            place = pending.pop()
            if place not in needed:
                needed.add(place)
                pending += [source for source, _ in _read(self._symbol.nodes[place])]
        return needed

    def _add(self, place: int, node: Node) -> None:
        if node.op == "null":
            self._tensors[place, 0] = self._variable(node)
            return
        operator = OPERATORS.get(node.op)
        if operator is None:
            raise uncovered(node.op, node.name)
        try:
            inputs = [self._tensors[source] for source in _read(node)]
            made = operator(Layer(self._graph, node.name, node.op, Attributes(node), inputs))
        except (KeyError, IndexError) as error:
            raise InvalidArgument(
                f"layer {node.name!r} ({node.op}) lacks an input; export the model again", reason="MODEL_UNREADABLE"
            ) from error
        for output, tensor in enumerate([made] if isinstance(made, str) else made):
            self._tensors[place, output] = tensor

    def _variable(self, node: Node) -> str:
        weights = self._weights.get(node.name)
        if weights is not None:
            return self._graph.constant(weights, node.name)
        shape = self._shapes.get(node.name) or self._told_shape(node) or self._guessed_shape(node)
        return self._graph.take(node.name, (-1, *shape[1:]))

    def _told_shape(self, node: Node) -> tuple[int, ...]:
        shape = Attributes(node).integers("__shape__")
        return () if 0 in shape[1:] else shape

    def _guessed_shape(self, node: Node) -> tuple[int, ...]:
        """What the first layer that reads an input tells of it by its weights."""
        nodes = self._symbol.nodes
        for reader in nodes:
            sources = [nodes[source].name for source, _ in reader.inputs]
            if len(sources) < 2 or sources[0] != node.name:
                continue
            weights = self._weights.get(sources[1])
            if weights is None:
                continue
            if reader.op == "FullyConnected" and weights.ndim == 2:
                return (-1, weights.shape[1])
            if reader.op == "Convolution" and weights.ndim > 2:
                groups = Attributes(reader).integer("num_group", 1)
                return (-1, weights.shape[1] * groups, *(-1,) * (weights.ndim - 2))
        raise InvalidArgument(
            f"the files do not tell the shape of input {node.name!r}; give it, such as "
            f"shapes={{{node.name!r}: (-1, 3, 224, 224)}}, or push with signatures",
            reason="INPUT_SHAPE_UNKNOWN",
            field="shapes",
        )


def _read(node: Node) -> tuple[tuple[int, int], ...]:
    return node.inputs[:1] if node.op in LABELLED else node.inputs
