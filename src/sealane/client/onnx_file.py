"""An ONNX file on disk: what it takes and gives, and which files hold its large weights.

Read with the onnx package where it is installed, else with ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from google.protobuf.message import DecodeError

from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.protocols import framework_types
from sealane.protocols.call import DEFAULT_SIGNATURE
from sealane.tensors import Signature, TensorSpec

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort

#: Names under which exporters keep large weights, for where the file itself cannot be asked.
_DATA_NAMES = ("{name}.data", "{name}_data", "{stem}.data", "{stem}_data")
#: onnx infers shapes in a copy of the model, and protobuf stops at 2 GiB.
MAX_INFERRED_BYTES = 1 << 30


def read_signature(path: Path) -> Signature:
    """What the model takes and gives.

    Raises:
        InvalidArgument: not an ONNX model, or one with an input or output that cannot be served.
        FailedPrecondition: neither onnx nor ONNX Runtime is installed.
    """
    try:
        import onnx
        import onnx.shape_inference
    except ImportError:
        return _by_runtime(path)
    model = _load(path)
    try:
        # Outputs of many exporters have no shape of their own.
        if path.stat().st_size < MAX_INFERRED_BYTES:
            model = onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, ValueError):
        pass  # the shapes stay unknown; whether the model runs is the worker's to find out
    weights = {item.name for item in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in weights]
    return Signature(tuple(map(_spec, inputs)), tuple(map(_spec, model.graph.output)), DEFAULT_SIGNATURE)


def external_data(path: Path) -> dict[str, Path]:
    """Files beside the model that hold its large weights, by their path as the model names them.

    Raises:
        InvalidArgument: not an ONNX model, or such a file is missing or lies outside the model's folder.
    """
    try:
        import onnx  # noqa: F401
    except ImportError:
        names = [pattern.format(name=path.name, stem=path.stem) for pattern in _DATA_NAMES]
        return {name: path.with_name(name) for name in names if path.with_name(name).is_file()}
    found = {}
    for name in _external_names(_load(path).graph):
        if Path(name).is_absolute() or ".." in Path(name).parts or not (path.parent / name).is_file():
            raise InvalidArgument(
                f"{path.name} keeps weights in {name!r}, which is no file beside it; save it with its data there",
                reason="EXTERNAL_DATA_MISSING",
                field="path",
            )
        found[Path(name).as_posix()] = path.parent / name
    return found


def _load(path: Path) -> onnx.ModelProto:
    import onnx

    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise _no_model(path) from error
    # An empty file parses too.
    if not model.graph.output:
        raise _no_model(path)
    return model


def _external_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Files named by the tensors of a graph and of the graphs inside it."""
    import onnx

    tensors = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _external_names(inner)
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _spec(item: onnx.ValueInfoProto) -> TensorSpec:
    told = item.type.tensor_type
    datatype = framework_types.ONNX.get(told.elem_type)
    if datatype is None:
        raise _unserved(item.name)
    # An output of unknown rank is told as one free dimension: it informs, nothing is checked by it.
    sizes = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in told.shape.dim)
    return TensorSpec(item.name, datatype, sizes if told.HasField("shape") else (-1,))


def _by_runtime(path: Path) -> Signature:
    try:
        import onnxruntime as ort
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ImportError as error:
        raise FailedPrecondition(
            "reading the signatures of an .onnx file needs onnx or ONNX Runtime; pip install 'sealane[import]' or "
            "pass signatures",
            reason="ONNX_MISSING",
        ) from error
    refusals = tuple(item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception))
    try:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except refusals as error:
        raise _no_model(path) from error
    sides = [tuple(map(_runtime_spec, side)) for side in (session.get_inputs(), session.get_outputs())]
    return Signature(sides[0], sides[1], DEFAULT_SIGNATURE)


def _runtime_spec(node: ort.NodeArg) -> TensorSpec:
    datatype = framework_types.ONNX_RUNTIME.get(cast(str, node.type))
    if datatype is None:
        raise _unserved(node.name)
    return TensorSpec(node.name, datatype, tuple(size if isinstance(size, int) else -1 for size in node.shape))


def _no_model(path: Path) -> InvalidArgument:
    return InvalidArgument(
        f"{path.name} is not an ONNX model; export it again", reason="MODEL_UNREADABLE", field="path"
    )


def _unserved(name: str) -> InvalidArgument:
    return InvalidArgument(
        f"{name!r} is no plain tensor of a type that protocols carry; export the model without sequences, maps "
        "(ZipMap) and unusual types",
        reason="MODEL_SIGNATURES",
        field="path",
    )
