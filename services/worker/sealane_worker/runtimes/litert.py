"""LiteRT (``.tflite``) models, float or int8 with float inputs and outputs.

An interpreter is not safe to share and changing its batch size costs more than running a small model, so every thread
keeps one per set of input shapes, at most :data:`KEPT_INTERPRETERS`, the least recently used going first. A model with
a free first dimension is run in sizes of :data:`BUCKETS`, padded with zeros, so that few are needed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np

from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.tensors import Array, Signature, TensorSpec, datatype_of
from sealane_worker.runtimes import RuntimeInfo, RuntimeOptions
from sealane_worker.runtimes.variant_files import DEFAULT_SIGNATURE, only_file, require_device, unreadable, unserved

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter

KEPT_INTERPRETERS = 4
BUCKETS = (1, 2, 4, 8, 16, 32)

Shapes = tuple[tuple[int, ...], ...]


class _Details(TypedDict):
    """What LiteRT tells about a tensor (the part used here)."""

    name: str
    index: int
    shape: Array
    shape_signature: Array
    dtype: type[np.generic]


@dataclass(frozen=True, slots=True)
class _Names:
    """Names of inputs and outputs -> tensor index of the primary subgraph."""

    inputs: dict[str, int]
    outputs: dict[str, int]


class _Interpreters(threading.local):
    """Those of one thread, by input shapes."""

    def __init__(self) -> None:
        self.kept: OrderedDict[Shapes, Interpreter] = OrderedDict()


class LiteRtRuntime:
    """Runs the one signature of a LiteRT model by tensor index, which is the fastest way through the API."""

    def __init__(self) -> None:
        self._file = Path()
        self._threads = 1
        self._names = _Names({}, {})
        self._padded = False
        self._mine = _Interpreters()

    def load(self, path: Path, options: RuntimeOptions) -> tuple[Signature, ...]:
        """Read the model; see :class:`sealane_worker.runtimes.Runtime`."""
        require_device(options.device, ("cpu",), "LiteRT")
        self._file, self._threads = only_file(path, "a LiteRT", ".tflite"), options.threads
        try:
            interpreter = self._open()
            # One whose free dimensions stand at a size that does not fit is shaped before its first run.
            name, inputs, outputs = _signature(interpreter)
        except (ValueError, RuntimeError) as error:
            raise unreadable("a LiteRT model", "convert it again") from error
        self._names = _Names(
            {key: details["index"] for key, details in inputs.items()},
            {key: details["index"] for key, details in outputs.items()},
        )
        signature = Signature(_specs(inputs), _specs(outputs), name)
        free = [spec.shape[:1] == (-1,) for spec in (*signature.inputs, *signature.outputs)]
        self._padded = all(free) and bool(signature.inputs)
        return (signature,)

    def run(self, inputs: Mapping[str, Array], signature_name: str) -> dict[str, Array]:
        """One inference; see :class:`sealane_worker.runtimes.Runtime`."""
        arrays = [inputs[name] for name in self._names.inputs]
        rows = arrays[0].shape[0] if self._padded else 0
        size = next((bucket for bucket in BUCKETS if bucket >= rows), rows)
        if self._padded and size != rows:
            arrays = [_pad(array, size) for array in arrays]
        interpreter = self._interpreter(tuple(array.shape for array in arrays))
        for index, array in zip(self._names.inputs.values(), arrays, strict=True):
            interpreter.set_tensor(index, array)
        try:
            interpreter.invoke()
        except RuntimeError as error:
            raise InvalidArgument(
                f"the model cannot run these inputs: {error}; check shapes against its metadata", field="inputs"
            ) from error
        outputs = {name: interpreter.get_tensor(index) for name, index in self._names.outputs.items()}
        return outputs if size == rows or not self._padded else {name: array[:rows] for name, array in outputs.items()}

    def close(self) -> None:
        """Drop this thread's interpreters; the others go with their threads."""
        self._mine.kept.clear()

    def _open(self) -> Interpreter:
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter(model_path=str(self._file), num_threads=self._threads)

    def _interpreter(self, shapes: Shapes) -> Interpreter:
        kept = self._mine.kept
        interpreter = kept.get(shapes)
        if interpreter is not None:
            kept.move_to_end(shapes)
            return interpreter
        interpreter = self._open()
        try:
            # Before allocate_tensors: a model whose shapes are all free cannot be allocated as it is.
            for index, shape in zip(self._names.inputs.values(), shapes, strict=True):
                interpreter.resize_tensor_input(index, list(shape), strict=True)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise InvalidArgument(
                f"the model cannot be shaped for {[list(shape) for shape in shapes]}; check its metadata",
                reason="INPUT_SHAPE_MISMATCH",
                field="inputs",
            ) from error
        kept[shapes] = interpreter
        if len(kept) > KEPT_INTERPRETERS:
            kept.popitem(last=False)
        return interpreter


RUNTIME = RuntimeInfo(
    name="litert",
    formats=("LITERT",),
    package="ai_edge_litert",
    distributions=("ai-edge-litert",),
    install="sealane[litert]",
    create=LiteRtRuntime,
)


def _pad(array: Array, rows: int) -> Array:
    padded = np.zeros((rows, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded


def _signature(interpreter: Interpreter) -> tuple[str, dict[str, _Details], dict[str, _Details]]:
    """Signature name and details by public name; a model made without signatures gets its tensors' names."""
    listed = interpreter.get_signature_list()
    if len(listed) > 1:
        raise FailedPrecondition(
            f"the LiteRT file has {len(listed)} signatures, one is served; convert it with the one you want",
            reason="MODEL_SIGNATURES",
        )
    if listed:
        name = next(iter(listed))
        runner = interpreter.get_signature_runner(name)
        return (
            str(name),
            cast(dict[str, _Details], runner.get_input_details()),
            cast(dict[str, _Details], runner.get_output_details()),
        )
    inputs = cast(list[_Details], interpreter.get_input_details())
    outputs = cast(list[_Details], interpreter.get_output_details())
    return (
        DEFAULT_SIGNATURE,
        {details["name"]: details for details in inputs},
        {details["name"]: details for details in outputs},
    )


def _specs(tensors: Mapping[str, _Details]) -> tuple[TensorSpec, ...]:
    specs = []
    for name, details in tensors.items():
        # A file written before dynamic shapes has an empty shape_signature; its shape is then the truth.
        shape = details["shape_signature"] if len(details["shape_signature"]) else details["shape"]
        try:
            datatype = datatype_of(np.empty(0, details["dtype"]))
        except InvalidArgument as error:
            raise unserved(name, "is of a type no protocol carries", "convert with float inputs and outputs") from error
        specs.append(TensorSpec(name, datatype, tuple(int(size) for size in shape)))
    return tuple(specs)
