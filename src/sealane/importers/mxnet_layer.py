"""One layer of an MXNet model on its way to ONNX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sealane.errors import InvalidArgument
from sealane.importers.mxnet_files import Attributes
from sealane.importers.onnx_graph import OnnxGraph, uncovered
from sealane.tensors import Array


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer to be written.

    Attributes:
        graph: where to.
        name: its name.
        op: its operator.
        attributes: its attributes.
        inputs: names of the tensors that it reads.
    """

    graph: OnnxGraph
    name: str
    op: str
    attributes: Attributes
    inputs: list[str]

    @property
    def x(self) -> str:
        """The first input."""
        return self.inputs[0]

    def weights(self, place: int) -> Array:
        """An input that has to be a weight."""
        found = self.graph.value_of(self.inputs[place])
        if found is None:
            raise InvalidArgument(
                f"the .params file holds no {self.inputs[place]!r} for layer {self.name!r}; "
                "give the files of one model",
                reason="MODEL_UNREADABLE",
            )
        return found

    def refuse(self, why: str) -> InvalidArgument:
        """The error for a form of the operator that is not covered."""
        return uncovered(self.op, self.name, why)


#: Writes a layer and gives the names of its outputs.
Operator = Callable[[Layer], str | list[str]]
