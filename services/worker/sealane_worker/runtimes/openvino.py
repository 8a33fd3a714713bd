"""OpenVINO: its own representation, and ONNX, LiteRT and SavedModel files without their frameworks.

Arithmetic is pinned to 32-bit floating point where the model has floats: on processors with bfloat16 units OpenVINO
would otherwise round, and answers would differ from those of the model's own framework. Every thread has an infer
request of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from sealane.errors import FailedPrecondition, InvalidArgument, SealaneError
from sealane.protocols import framework_types, litert_file
from sealane.protocols.openvino_module import import_openvino
from sealane.tensors import NUMPY_OF, Array, Signature, TensorSpec
from sealane_worker.runtimes import RuntimeInfo, RuntimeOptions
from sealane_worker.runtimes.variant_files import (
    DEFAULT_SIGNATURE,
    only_file,
    require_device,
    unreadable,
    unserved,
)

if TYPE_CHECKING:
    import openvino as ov

SAVED_MODEL = "saved_model.pb"


def devices() -> tuple[str, ...]:
    """Devices that OpenVINO finds, such as ``cpu`` and ``gpu``."""
    ov = import_openvino()
    return tuple(sorted(str(name).lower() for name in ov.Core().available_devices))


class OpenVinoRuntime:
    """Runs one compiled model."""

    def __init__(self) -> None:
        self._compiled: ov.CompiledModel | None = None
        self._signature = Signature((), ())
        self._mine = threading.local()

    def load(self, path: Path, options: RuntimeOptions) -> tuple[Signature, ...]:
        """Read and compile the model; see :class:`sealane_worker.runtimes.Runtime`."""
        core = import_openvino().Core()
        require_device(options.device, [str(name).lower() for name in core.available_devices], "OpenVINO")
        source = _source(path)
        try:
            model = core.read_model(str(source))
            compiled = core.compile_model(model, options.device.upper(), _properties(options))
            names = litert_file.read(source) if source.suffix == ".tflite" else None
        except (RuntimeError, SealaneError) as error:
            raise unreadable("a model", "convert it again with openvino.convert_model") from error
        self._signature = Signature(
            _specs(model.inputs, names.inputs if names else {}),
            _specs(model.outputs, names.outputs if names else {}),
            (names.name if names else "") or DEFAULT_SIGNATURE,
        )
        self._compiled = compiled
        return (self._signature,)

    def run(self, inputs: Mapping[str, Array], signature_name: str) -> dict[str, Array]:
        """One inference; see :class:`sealane_worker.runtimes.Runtime`."""
        request = self._request()
        try:
            # By place, not by name: the names of a LiteRT model's signature are not those of its tensors.
            for place, spec in enumerate(self._signature.inputs):
                request.set_input_tensor(place, _tensor(spec, inputs[spec.name]))
            request.infer()
        except (RuntimeError, ValueError) as error:
            raise InvalidArgument(
                f"the model refuses these inputs: {_last_line(error)}; check shapes against its metadata",
                reason="MODEL_REFUSED_INPUTS",
                field="inputs",
            ) from error
        return {
            spec.name: _array(spec, request.get_output_tensor(place))
            for place, spec in enumerate(self._signature.outputs)
        }

    def close(self) -> None:
        """Let go of the model; other threads' requests go with their threads."""
        self._compiled = None
        self._mine = threading.local()

    def _request(self) -> ov.InferRequest:
        request = getattr(self._mine, "request", None)
        if request is None:
            if self._compiled is None:
                raise FailedPrecondition("the model is closed; load it again")
            request = self._mine.request = self._compiled.create_infer_request()
        return request


RUNTIME = RuntimeInfo(
    name="openvino",
    formats=("OPENVINO", "ONNX", "LITERT", "SAVED_MODEL"),
    package="openvino",
    distributions=("openvino",),
    install="sealane[openvino]",
    create=OpenVinoRuntime,
    devices=devices,
)


def _properties(options: RuntimeOptions) -> dict[str, object]:
    properties: dict[str, object] = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": options.instances}
    if options.device == "cpu":
        properties["INFERENCE_NUM_THREADS"] = options.threads * options.instances
        # Model processes that each pin themselves to the first cores would share those and leave the rest idle.
        properties["ENABLE_CPU_PINNING"] = False
    return properties


def _source(path: Path) -> Path:
    if path.is_file() or (path / SAVED_MODEL).is_file():
        return path
    return only_file(path, "an OpenVINO", ".xml", ".onnx", ".tflite")


def _specs(ports: Sequence[ov.Output], names: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    """Specs of inputs or outputs; `names`: public name -> tensor name, where the file has a signature."""
    public = {tensor: name for name, tensor in names.items()}
    specs = []
    for place, port in enumerate(ports):
        known = sorted(port.get_names())
        name = next((public[item] for item in known if item in public), None)
        name = name or (port.get_any_name() if known else f"output_{place}")
        shape, kind = port.get_partial_shape(), port.get_element_type().get_type_name()
        if kind not in framework_types.OPENVINO:
            raise unserved(
                name,
                f"is {kind}, which no protocol carries",
                "convert the model with another type there, or deploy it to another runtime",
            )
        if shape.rank.is_dynamic:
            raise unserved(name, "has no rank", "convert the model with a shape for it, -1 for any size")
        sizes = tuple(-1 if size.is_dynamic else int(size.get_length()) for size in shape)
        specs.append(TensorSpec(name, framework_types.OPENVINO[kind], sizes))
    return tuple(specs)


def _tensor(spec: TensorSpec, array: Array) -> ov.Tensor:
    import openvino as ov

    if spec.datatype == "BF16":
        tensor = ov.Tensor(ov.Type.bf16, ov.Shape(array.shape))
        cast(Array, tensor.data).view(np.uint16)[...] = np.ascontiguousarray(array).view(np.uint16)
        return tensor
    # Shared where it can be: the array lives as long as the run. OpenVINO shares nothing that is read-only.
    array = np.ascontiguousarray(array)
    return ov.Tensor(array, shared_memory=array.flags.writeable)


def _array(spec: TensorSpec, tensor: ov.Tensor) -> Array:
    # A copy: the request writes its next answer to the same place.
    array = np.array(tensor.data, copy=True)
    return array.view(NUMPY_OF["BF16"]) if spec.datatype == "BF16" else array


def _last_line(error: Exception) -> str:
    """What OpenVINO complains about; the lines before it are places in its own source."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
