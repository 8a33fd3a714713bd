"""LiteRT (``.tflite``) models, float or int8 with float inputs and outputs.

Changing an interpreter's batch size costs more than running a small model, so one interpreter is kept per
set of input shapes, at most :data:`KEPT_INTERPRETERS`, the least recently used going first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.tensors import Array, Signature, TensorSpec, datatype_of
from sealane_worker.runtimes import RuntimeOptions

KEPT_INTERPRETERS = 4
DEFAULT_SIGNATURE = "serving_default"


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


class LiteRtRuntime:
    """Runs the one signature of a LiteRT model by tensor index, which is the fastest way through the API."""

    def __init__(self) -> None:
        self._file = Path()
        self._options = RuntimeOptions()
        self._names = _Names({}, {})
        self._kept: OrderedDict[tuple[tuple[int, ...], ...], Interpreter] = OrderedDict()

    def load(self, path: Path, options: RuntimeOptions) -> tuple[Signature, ...]:
        """Read the model; see :class:`sealane_worker.runtimes.Runtime`."""
        self._file, self._options = _model_file(path), options
        try:
            interpreter = self._open()
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise FailedPrecondition(
                f"{self._file.name} is not a LiteRT model that this runtime can load; convert it again",
                reason="MODEL_UNREADABLE",
            ) from error
        name, inputs, outputs = _signature(interpreter)
        self._names = _Names(
            {key: details["index"] for key, details in inputs.items()},
            {key: details["index"] for key, details in outputs.items()},
        )
        return (Signature(_specs(inputs), _specs(outputs), name),)

    def run(self, inputs: Mapping[str, Array], signature_name: str) -> dict[str, Array]:
        """One inference; see :class:`sealane_worker.runtimes.Runtime`."""
        interpreter = self._interpreter(tuple(inputs[name].shape for name in self._names.inputs))
        for name, index in self._names.inputs.items():
            interpreter.set_tensor(index, inputs[name])
        try:
            interpreter.invoke()
        except RuntimeError as error:
            raise InvalidArgument(
                f"the model cannot run these inputs: {error}; check shapes against its metadata", field="inputs"
            ) from error
        return {name: interpreter.get_tensor(index) for name, index in self._names.outputs.items()}

    def close(self) -> None:
        """Drop the interpreters."""
        self._kept.clear()

    def _open(self) -> Interpreter:
        return Interpreter(model_path=str(self._file), num_threads=self._options.threads)

    def _interpreter(self, shapes: tuple[tuple[int, ...], ...]) -> Interpreter:
        interpreter = self._kept.get(shapes)
        if interpreter is not None:
            self._kept.move_to_end(shapes)
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
        self._kept[shapes] = interpreter
        if len(self._kept) > KEPT_INTERPRETERS:
            self._kept.popitem(last=False)
        return interpreter


def _model_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.tflite"))
    if len(found) != 1:
        raise FailedPrecondition(
            f"a LiteRT variant holds exactly one .tflite file, this one has {len(found)}; push it again",
            reason="MODEL_UNREADABLE",
        )
    return found[0]


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
        datatype = datatype_of(np.empty(0, details["dtype"]))
        specs.append(TensorSpec(name, datatype, tuple(int(size) for size in shape)))
    return tuple(specs)
