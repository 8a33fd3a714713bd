"""One layer of a Caffe network on its way to ONNX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sealane.compat.caffe.v1 import caffe_pb2 as pb
from sealane.errors import InvalidArgument
from sealane.importers.onnx_graph import OnnxGraph, uncovered
from sealane.tensors import Array


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer to be written.

    Attributes:
        graph: where to.
        told: what the network says of it.
        inputs: names of the tensors that it reads.
        blobs: its weights.
    """

    graph: OnnxGraph
    told: pb.LayerParameter
    inputs: list[str]
    blobs: list[Array]

    @property
    def x(self) -> str:
        """The first input."""
        return self.inputs[0]

    @property
    def rank(self) -> int:
        """Dimensions of the first input."""
        return self.graph.ranks[self.x]

    def axis(self, told: int) -> int:
        """An axis of the first input, counted from the front."""
        axis = told + self.rank if told < 0 else told
        if not 0 <= axis < self.rank:
            raise self.refuse(f"over axis {told} of {self.rank}")
        return axis

    def weights(self, place: int) -> Array:
        """One of its blobs."""
        if place >= len(self.blobs):
            raise InvalidArgument(
                f"the .caffemodel holds {len(self.blobs)} blobs for layer {self.told.name!r}, which needs more; "
                "give the files of one model",
                reason="MODEL_UNREADABLE",
            )
        return self.blobs[place]

    def refuse(self, why: str) -> InvalidArgument:
        """The error for a form of the layer that is not covered."""
        return uncovered(self.told.type, self.told.name, why)


#: Writes a layer and gives the names of its outputs.
Operator = Callable[[Layer], str | list[str]]
