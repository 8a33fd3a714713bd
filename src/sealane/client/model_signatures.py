"""What a model on disk takes and gives, read without its framework where that is cheap.

SavedModel, LiteRT and ``torch.export`` files tell it themselves. ONNX needs the onnx package or ONNX Runtime, OpenVINO
and Keras files need their frameworks. TorchScript and ``remote.json`` do not tell it.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from google.protobuf import json_format

from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.protocols import framework_types, litert_file
from sealane.protocols.call import DEFAULT_SIGNATURE
from sealane.protocols.openvino_module import import_openvino
from sealane.tensors import NUMPY_OF, Signature, TensorSpec
from sealane.type.v1 import tensor_pb2

#: Beside a TorchScript archive: what it takes and gives.
SIGNATURES_FILE = "signatures.json"
MAX_SIGNATURES_BYTES = 1024 * 1024


def of_litert(path: Path) -> tuple[Signature, ...]:
    """Of a ``.tflite`` file.

    Raises:
        InvalidArgument: not a LiteRT model, or one with a tensor that cannot be served.
    """
    try:
        return litert_file.read_signatures(path)
    except InvalidArgument as error:
        raise InvalidArgument(f"{path.name}: {error.message}", reason=error.reason, field="path") from error


def of_torch_script(path: Path) -> tuple[Signature, ...]:
    """Of a TorchScript archive: by the file beside it.

    Raises:
        InvalidArgument: that file holds none.
        FailedPrecondition: there is no such file.
    """
    file = path.with_name(SIGNATURES_FILE)
    if not file.is_file():
        raise signatures_needed(f"TorchScript does not tell what it takes and there is no {SIGNATURES_FILE} beside it")
    return read_signatures_file(file)


def of_remote(path: Path) -> tuple[Signature, ...]:
    """Of a model behind another server, which this machine may not reach.

    Raises:
        FailedPrecondition: always; they have to be given.
    """
    raise signatures_needed(f"{path.name} does not tell what the model takes and gives")


def of_openvino(path: Path) -> tuple[Signature, ...]:
    """Of an OpenVINO ``.xml`` file.

    Raises:
        InvalidArgument: not an OpenVINO model, or one with a tensor that cannot be served.
        FailedPrecondition: OpenVINO is not installed.
    """
    try:
        ov = import_openvino()
    except ImportError as error:
        raise _missing("an OpenVINO model", "OpenVINO", "openvino") from error
    try:
        model = ov.Core().read_model(str(path))
    except RuntimeError as error:
        raise InvalidArgument(f"{path.name} is not an OpenVINO model; convert it again", field="path") from error
    sides = []
    for ports in (model.inputs, model.outputs):
        specs = []
        for place, port in enumerate(ports):
            name = port.get_any_name() if port.get_names() else f"output_{place}"
            datatype = framework_types.OPENVINO.get(port.get_element_type().get_type_name())
            if datatype is None or port.get_partial_shape().rank.is_dynamic:
                raise _unserved(name)
            shape = tuple(-1 if size.is_dynamic else int(size.get_length()) for size in port.get_partial_shape())
            specs.append(TensorSpec(name, datatype, shape))
        sides.append(tuple(specs))
    return (Signature(sides[0], sides[1], DEFAULT_SIGNATURE),)


def of_keras(path: Path) -> tuple[Signature, ...]:
    """Of a ``.keras`` archive, with the names that the worker gives.

    Raises:
        InvalidArgument: not a Keras archive, or one that holds code or does not say what it takes.
        FailedPrecondition: Keras is not installed.
    """
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    try:
        import keras
    except ImportError as error:
        raise _missing("a .keras file", "Keras", "tensorflow") from error
    try:
        model = keras.saving.load_model(str(path), compile=False, safe_mode=True)
    except (ValueError, TypeError, KeyError, AttributeError, OSError, zipfile.BadZipFile) as error:
        raise InvalidArgument(
            f"{path.name} is not a Keras archive of layers without code of their own; write it with model.save, or "
            "export the model with model.export",
            field="path",
        ) from error
    if not getattr(model, "inputs", None):
        raise InvalidArgument(
            f"{path.name} does not say what it takes; build the model with keras.Input, or use model.export",
            field="path",
        )
    given = model.outputs if isinstance(model, keras.Sequential) else model.output
    flat = keras.tree.flatten(given)
    outputs = given if isinstance(given, dict) else {f"output_{place}": item for place, item in enumerate(flat)}
    takes = tuple(_keras_spec(item.name, item) for item in model.inputs)
    return (Signature(takes, tuple(_keras_spec(name, item) for name, item in outputs.items()), DEFAULT_SIGNATURE),)


def _keras_spec(name: str, item: object) -> TensorSpec:
    datatype = framework_types.KERAS.get(str(getattr(item, "dtype", "")))
    if datatype is None:
        raise _unserved(name)
    shape = cast(tuple[int | None, ...], getattr(item, "shape", ()))
    return TensorSpec(name, datatype, tuple(-1 if size is None else size for size in shape))


def check_torch_script(path: Path) -> None:
    """Refuse a ``.pt`` file that holds weights without their program.

    Raises:
        InvalidArgument: not a TorchScript archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            program = any(name.partition("/")[2].startswith("code/") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        program = False
    if not program:
        raise InvalidArgument(
            f"{path.name} is no TorchScript archive but perhaps weights alone; load them into the model and write "
            "that with torch.export.save (.pt2)",
            reason="FORMAT_NOT_SERVED",
            field="path",
        )


def write_signatures_file(file: Path, signatures: Sequence[tensor_pb2.Signature]) -> None:
    """Write what a TorchScript archive takes and gives."""
    listed = [json_format.MessageToDict(item) for item in signatures]
    file.write_text(json.dumps({"signatures": listed}, indent=2) + "\n")


def read_signatures_file(file: Path) -> tuple[Signature, ...]:
    """What :func:`write_signatures_file` or ``sealane models check --output json`` wrote.

    Raises:
        InvalidArgument: not such a file.
    """
    try:
        if file.stat().st_size > MAX_SIGNATURES_BYTES:
            raise ValueError("too long")
        listed = [
            json_format.ParseDict(item, tensor_pb2.Signature()) for item in json.loads(file.read_bytes())["signatures"]
        ]
        found = tuple(Signature(_specs(item.inputs), _specs(item.outputs), item.name) for item in listed)
        if not found:
            raise ValueError("no signature")
    except (json_format.ParseError, ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(
            f"{file.name} holds no signatures; write it as `sealane models check PATH --output json` prints it for a "
            "model that can be loaded",
            reason="SIGNATURES_INVALID",
            field=file.name,
        ) from error
    return found


def signatures_needed(why: str) -> FailedPrecondition:
    """The error where signatures have to be given."""
    return FailedPrecondition(
        f"{why}; pass signatures with the names, datatypes and shapes (--signatures FILE on the command line)",
        reason="SIGNATURES_NEEDED",
        field="signatures",
    )


def _specs(specs: Sequence[tensor_pb2.TensorSpec]) -> tuple[TensorSpec, ...]:
    if any(spec.datatype not in NUMPY_OF for spec in specs):
        raise ValueError("an unknown datatype")
    return tuple(TensorSpec(spec.name, spec.datatype, tuple(spec.shape)) for spec in specs)


def _missing(what: str, framework: str, extra: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"reading the signatures of {what} needs {framework}; pip install 'sealane[{extra}]' or pass signatures",
        reason="FRAMEWORK_MISSING",
        extra=extra,
    )


def _unserved(name: str) -> InvalidArgument:
    return InvalidArgument(
        f"tensor {name!r} is of a type, or of no rank, that no protocol carries; convert the model with another one",
        reason="MODEL_SIGNATURES",
        field="path",
    )
