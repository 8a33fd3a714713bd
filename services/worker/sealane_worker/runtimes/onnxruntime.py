"""ONNX models by ONNX Runtime, on the processor or on whatever device its installed build knows.

Threads never spin while they wait: an idle model costs nothing. A session may be run from many threads at once.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from sealane.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from sealane.protocols import framework_types
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
    import onnxruntime as ort

#: Execution provider -> device as manifests call it; the order in which a device's provider is looked for.
DEVICE_OF = {
    "CPUExecutionProvider": "cpu",
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "tensorrt",
    "NvTensorRTRTXExecutionProvider": "tensorrt-rtx",
    "ROCMExecutionProvider": "rocm",
    "MIGraphXExecutionProvider": "migraphx",
    "OpenVINOExecutionProvider": "openvino",
    "QNNExecutionProvider": "qnn",
    "CoreMLExecutionProvider": "coreml",
    "DmlExecutionProvider": "directml",
    "CANNExecutionProvider": "cann",
    "VitisAIExecutionProvider": "vitisai",
}
#: What a device hands on to where it has no kernel for an operator.
FALLBACKS = {"tensorrt": ("CUDAExecutionProvider",)}

ONNX_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


def devices() -> tuple[str, ...]:
    """Devices that the installed build of ONNX Runtime knows."""
    import onnxruntime as ort

    return tuple(sorted(DEVICE_OF[name] for name in ort.get_available_providers() if name in DEVICE_OF))


class OnnxRuntime:
    """Runs one session."""

    def __init__(self) -> None:
        self._session: ort.InferenceSession | None = None
        self._errors: tuple[type[Exception], ...] = ()
        self._signature = Signature((), ())
        self._halves = False

    def load(self, path: Path, options: RuntimeOptions) -> tuple[Signature, ...]:
        """Open the session; see :class:`sealane_worker.runtimes.Runtime`."""
        import onnxruntime as ort

        require_device(options.device, devices(), "ONNX Runtime")
        file = only_file(path, "an ONNX", ".onnx")
        provider = next(name for name, device in DEVICE_OF.items() if device == options.device)
        others = (*FALLBACKS.get(options.device, ()), "CPUExecutionProvider")
        errors = self._errors = _errors_of()
        try:
            session = ort.InferenceSession(
                str(file), _session_options(options), providers=list(dict.fromkeys((provider, *others)))
            )
        except errors as error:
            raise unreadable("an ONNX model", "check it with onnx.checker and push it again") from error
        # A build that knows a device, on a machine without it, would quietly run on the processor.
        found = {DEVICE_OF[name] for name in session.get_providers() if name in DEVICE_OF}
        require_device(options.device, found, "ONNX Runtime")
        session.disable_fallback()
        self._signature = Signature(_specs(session.get_inputs()), _specs(session.get_outputs()), DEFAULT_SIGNATURE)
        self._halves = any(spec.datatype == "BF16" for spec in (*self._signature.inputs, *self._signature.outputs))
        self._session = session
        return (self._signature,)

    def run(self, inputs: Mapping[str, Array], signature_name: str) -> dict[str, Array]:
        """One inference; see :class:`sealane_worker.runtimes.Runtime`."""
        if self._session is None:
            raise FailedPrecondition("the model is closed; load it again")
        feeds = {
            spec.name: _texts(spec.name, inputs[spec.name]) if spec.datatype == "BYTES" else inputs[spec.name]
            for spec in self._signature.inputs
        }
        errors = self._errors
        try:
            answers = self._run_halves(feeds) if self._halves else self._session.run(None, feeds)
        except errors as error:
            raise _refused(error) from error
        return {
            spec.name: _bytes(answer) if spec.datatype == "BYTES" else cast(Array, answer)
            for spec, answer in zip(self._signature.outputs, answers, strict=True)
        }

    def close(self) -> None:
        """Let go of the model."""
        self._session = None

    def _run_halves(self, feeds: Mapping[str, Array]) -> list[Array]:
        """A run with bfloat16 tensors, which only ONNX Runtime's own values carry."""
        import onnxruntime as ort

        values = {}
        for name, array in feeds.items():
            if array.dtype == NUMPY_OF["BF16"]:
                raw = np.ascontiguousarray(array).view(np.uint16)
                values[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, ONNX_BFLOAT16)
            else:
                values[name] = ort.OrtValue.ortvalue_from_numpy(array)
        assert self._session is not None
        answers = self._session.run_with_ort_values(None, values)
        return [_of_value(spec, answer) for spec, answer in zip(self._signature.outputs, answers, strict=True)]


RUNTIME = RuntimeInfo(
    name="onnxruntime",
    formats=("ONNX",),
    package="onnxruntime",
    distributions=("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
    install="sealane[onnx]",
    create=OnnxRuntime,
    devices=devices,
)


def _session_options(options: RuntimeOptions) -> ort.SessionOptions:
    import onnxruntime as ort

    made = ort.SessionOptions()
    made.intra_op_num_threads = options.threads
    made.inter_op_num_threads = 1
    made.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    made.log_severity_level = 3  # errors only
    made.add_session_config_entry("session.intra_op.allow_spinning", "0")
    made.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return made


def _errors_of() -> tuple[type[Exception], ...]:
    """Everything ONNX Runtime raises; its errors have no common class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = [item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception)]
    return (*found, RuntimeError, ValueError)


def _specs(nodes: list[ort.NodeArg]) -> tuple[TensorSpec, ...]:
    specs = []
    for node in nodes:
        datatype = framework_types.ONNX_RUNTIME.get(node.type)
        if datatype is None:
            raise unserved(
                node.name, f"is {node.type}, which no protocol carries", "export plain tensors (no ZipMap, no sequence)"
            )
        # A free dimension is a name or nothing.
        shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
        specs.append(TensorSpec(node.name, datatype, shape))
    return tuple(specs)


def _texts(name: str, array: Array) -> Array:
    """BYTES as ONNX Runtime takes them: str; it would send the repr of bytes."""
    texts = np.empty(array.shape, np.object_)
    try:
        for place, element in np.ndenumerate(array):
            texts[place] = element.decode() if isinstance(element, bytes) else str(element)
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"input {name!r} holds bytes that are no UTF-8, ONNX strings are text; encode them first",
            field=f"inputs.{name}",
        ) from error
    return texts


def _bytes(array: Array) -> Array:
    found = np.empty(np.shape(array), np.object_)
    for place, element in np.ndenumerate(np.asarray(array, np.object_)):
        found[place] = str(element).encode()
    return found


def _of_value(spec: TensorSpec, value: ort.OrtValue) -> Array:
    if spec.datatype != "BF16":
        return cast(Array, value.numpy())
    shape = tuple(value.shape())
    raw = ctypes.string_at(value.data_ptr(), 2 * math.prod(shape)) if math.prod(shape) else b""
    return np.frombuffer(bytearray(raw), NUMPY_OF["BF16"]).reshape(shape)


def _refused(error: Exception) -> InvalidArgument | ResourceExhausted:
    first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    if "allocate" in first.lower() or "out of memory" in first.lower():
        return ResourceExhausted("the device has no memory left for these inputs; send fewer rows a call")
    return InvalidArgument(
        f"the model refuses these inputs: {first}; check shapes against its metadata",
        reason="MODEL_REFUSED_INPUTS",
        field="inputs",
    )
