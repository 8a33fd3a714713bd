"""Caffe models (``.prototxt`` and ``.caffemodel``) to ONNX, without Caffe."""

from __future__ import annotations

from pathlib import Path

from sealane.errors import InvalidArgument
from sealane.importers.caffe_files import Network, read_network
from sealane.importers.caffe_layer import Layer
from sealane.importers.caffe_ops import OPERATORS
from sealane.importers.onnx_graph import OnnxGraph, require_onnx, uncovered

#: Layers that only learning needs.
_SKIPPED = {"Accuracy", "Silence"}


def to_onnx(prototxt: Path, caffemodel: Path) -> bytes:
    """The same model as an ONNX file; the first dimension of its inputs becomes free.

    Args:
        prototxt: the deploy network: one with inputs and without losses.
        caffemodel: its weights.

    Raises:
        InvalidArgument: files that are no model, or an operator that is not covered.
        Unimplemented: onnx is not installed.
    """
    require_onnx()
    return _write(read_network(prototxt, caffemodel)).to_bytes()


def _write(network: Network) -> OnnxGraph:
    graph = OnnxGraph()
    if not network.inputs:
        raise InvalidArgument("the .prototxt has no input; give the deploy network", reason="MODEL_UNREADABLE")
    # Blob -> tensor that holds it now: a layer may change a blob in place.
    tensors: dict[str, str] = {}
    for name, shape in network.inputs.items():
        if not shape or any(size < 1 for size in shape[1:]):
            raise InvalidArgument(
                f"input {name!r} has the shape {list(shape)}; write every size into the .prototxt",
                reason="MODEL_UNREADABLE",
            )
        tensors[name] = graph.take(name, (-1, *shape[1:]))
    unread: dict[str, None] = {}
    for layer in network.layers:
        if layer.type in _SKIPPED:
            continue
        operator = OPERATORS.get(layer.type)
        if operator is None:
            raise uncovered(layer.type, layer.name)
        missing = [blob for blob in layer.bottom if blob not in tensors]
        if missing or not layer.bottom:
            raise InvalidArgument(
                f"layer {layer.name!r} reads {missing or 'nothing'}, which no layer before it gives; "
                "correct the .prototxt",
                reason="MODEL_UNREADABLE",
            )
        item = Layer(graph, layer, [tensors[blob] for blob in layer.bottom], network.weights.get(layer.name, []))
        made = operator(item)
        for blob in layer.bottom:
            unread.pop(blob, None)
        for blob, tensor in zip(layer.top, [made] if isinstance(made, str) else made, strict=False):
            tensors[blob] = tensor
            unread[blob] = None
    for blob in unread:
        graph.give(blob, tensors[blob])
    return graph
