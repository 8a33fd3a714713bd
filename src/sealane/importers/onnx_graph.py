"""An ONNX graph as an importer writes it: inputs, constants, nodes, outputs; then its bytes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from sealane.errors import InvalidArgument, Unimplemented
from sealane.tensors import Array

if TYPE_CHECKING:
    import onnx

#: Old enough for every runtime of these years, new enough for LayerNormalization.
OPSET = 17
IR_VERSION = 8
#: A protobuf message cannot be larger.
MAX_BYTES = 2**31 - 1
#: Most nodes of a model; the largest published ones have some thousands.
MAX_NODES = 100_000

Attribute = int | float | str | Sequence[int] | Sequence[float]


class OnnxGraph:
    """Collects the parts of a model.

    Attributes:
        ranks: number of dimensions of every tensor so far.
    """

    def __init__(self) -> None:
        self.ranks: dict[str, int] = {}
        self._nodes: list[tuple[str, list[str], list[str], dict[str, Attribute]]] = []
        self._constants: dict[str, Array] = {}
        self._inputs: dict[str, tuple[int, ...]] = {}
        self._outputs: dict[str, str] = {}
        self._numbers = itertools.count()

    def take(self, name: str, shape: Sequence[int]) -> str:
        """Add an input of 32-bit floats; -1 stands for any size."""
        self._inputs[name] = tuple(shape)
        self.ranks[name] = len(shape)
        return name

    def constant(self, array: Array, name: str = "") -> str:
        """Add a constant; floats become 32-bit."""
        name = name or self._fresh("constant")
        self._constants[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
        self.ranks[name] = array.ndim
        return name

    def scalar(self, value: float) -> str:
        """Add a number."""
        return self.constant(np.asarray(value, np.float32))

    def integers(self, values: Sequence[int]) -> str:
        """Add a list of integers, as shapes and axes are."""
        return self.constant(np.asarray(values, np.int64))

    def value_of(self, name: str) -> Array | None:
        """The constant of that name, if it is one."""
        return self._constants.get(name)

    def add(self, op: str, *inputs: str, rank: int | None = None, **attributes: Attribute) -> str:
        """Add a node with one output and return the name of that.

        Args:
            op: the ONNX operator.
            inputs: names of tensors; empty for one that is left out.
            rank: dimensions of the output; those of the first input unless said.
            attributes: of the operator.
        """
        return self.add_many(op, inputs, 1, rank=rank, **attributes)[0]

    def add_many(
        self, op: str, inputs: Sequence[str], count: int, *, rank: int | None = None, **attributes: Attribute
    ) -> list[str]:
        """Add a node with `count` outputs."""
        if len(self._nodes) >= MAX_NODES:
            raise InvalidArgument(f"the model has more than {MAX_NODES} operators; import a smaller one")
        outputs = [self._fresh(op.lower()) for _ in range(count)]
        self._nodes.append((op, list(inputs), outputs, attributes))
        for name in outputs:
            self.ranks[name] = self.ranks[inputs[0]] if rank is None else rank
        return outputs

    def give(self, name: str, tensor: str) -> None:
        """Make a tensor an output under a name of its own."""
        taken = name in self._inputs or name in self._constants
        self._outputs[f"{name}_output" if taken else name] = tensor

    def to_bytes(self) -> bytes:
        """The model, checked.

        Raises:
            InvalidArgument: the parts do not make a model, or one larger than 2 GiB.
            Unimplemented: onnx is not installed.
        """
        if sum(array.nbytes for array in self._constants.values()) > MAX_BYTES:
            raise InvalidArgument(
                "the weights take more than 2 GiB, which an ONNX file cannot hold; import a smaller one"
            )
        onnx = require_onnx()
        model = self._model(onnx)
        try:
            onnx.checker.check_model(model)
            # Also tells the shapes of the outputs, which callers are told.
            model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
            raise InvalidArgument(
                f"the layers do not fit together: {str(error).strip().splitlines()[0][:200]}; "
                "check that description and weights are of the same model",
                reason="MODEL_UNREADABLE",
            ) from error
        # Only what lies inside was inferred for the check.
        model.graph.ClearField("value_info")
        return cast(bytes, model.SerializeToString())

    def _model(self, onnx: OnnxModule) -> onnx.ModelProto:
        helper, kind = onnx.helper, onnx.TensorProto.FLOAT
        nodes = [
            helper.make_node(op, inputs, outputs, name=f"{op}_{place}", **attributes)
            for place, (op, inputs, outputs, attributes) in enumerate(self._nodes)
        ]
        nodes += [helper.make_node("Identity", [tensor], [name]) for name, tensor in self._outputs.items()]
        used = {name for _, inputs, _, _ in self._nodes for name in inputs} | set(self._outputs.values())
        weights = [onnx.numpy_helper.from_array(a, name) for name, a in self._constants.items() if name in used]
        takes = [
            helper.make_tensor_value_info(name, kind, [size if size >= 0 else None for size in shape])
            for name, shape in self._inputs.items()
        ]
        # Sizes are left to be inferred.
        gives = [
            helper.make_tensor_value_info(name, kind, [None] * self.ranks[tensor])
            for name, tensor in self._outputs.items()
        ]
        graph = helper.make_graph(nodes, "imported", takes, gives, weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

    def _fresh(self, hint: str) -> str:
        # A colon is in no name of MXNet's or Caffe's that reaches an input or output of ours unchanged.
        return f"{hint}:{next(self._numbers)}"


if TYPE_CHECKING:
    from types import ModuleType as OnnxModule


def require_onnx() -> OnnxModule:
    """The onnx package.

    Raises:
        Unimplemented: it is not installed; the message says how to get it.
    """
    try:
        import onnx
        import onnx.checker
        import onnx.numpy_helper
        import onnx.shape_inference
    except ImportError as error:
        raise Unimplemented(
            "turning a model into ONNX needs the onnx package; run pip install 'sealane[import]'",
            reason="ONNX_NOT_INSTALLED",
        ) from error
    return cast("OnnxModule", onnx)


def uncovered(op: str, layer: str, why: str = "") -> InvalidArgument:
    """The error for an operator, or a form of it, that an importer does not know."""
    detail = f" ({why})" if why else ""
    return InvalidArgument(
        f"layer {layer!r} is a {op}{detail}, which the importer does not cover; "
        "replace the layer, or export the model to ONNX with its own framework",
        reason="OPERATOR_NOT_COVERED",
        operator=op,
        layer=layer,
    )


def check_bias(layer: str, bias: Array, outputs: int) -> Array:
    """A bias of one number for each output, which ONNX would otherwise stretch where it can.

    Raises:
        InvalidArgument: of another size.
    """
    if bias.size != outputs:
        raise InvalidArgument(
            f"the bias of layer {layer!r} has {bias.size} elements for {outputs} outputs, so the layers do not fit "
            "together; check that description and weights are of the same model",
            reason="MODEL_UNREADABLE",
        )
    return bias.reshape(-1)


def shaped_for(graph: OnnxGraph, tensor: str, weights: Array, axis: int) -> str:
    """`weights` as a constant that broadcasts over `tensor` from `axis` on."""
    behind = graph.ranks[tensor] - axis - weights.ndim
    if behind < 0:
        raise InvalidArgument(
            f"weights of shape {list(weights.shape)} do not fit a tensor of rank {graph.ranks[tensor]} at axis {axis}; "
            "check that description and weights are of the same model",
            reason="MODEL_UNREADABLE",
        )
    return graph.constant(weights.reshape(*weights.shape, *(1,) * behind))
