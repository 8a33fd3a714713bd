"""A model on disk: which format it has, which files belong to it, what it takes and gives."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sealane.client import model_companions, model_imports, model_signatures, onnx_file, torch_export_file
from sealane.client.model_companions import Companions
from sealane.client.model_imports import Scratch
from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.protocols import remote_model, savedmodel
from sealane.protocols.call import DEFAULT_SIGNATURE
from sealane.registry.v1 import variant_service_pb2 as pb
from sealane.tensors import Signature, TensorSpec
from sealane.type.v1 import tensor_pb2

_SAVED_MODEL = savedmodel.FILE_NAME
_KNOWN = (
    f"a folder with {_SAVED_MODEL} or {remote_model.FILE_NAME}, or a .tflite, .onnx, .pt2, .pt, .keras, OpenVINO .xml, "
    "MXNet -symbol.json or Caffe .prototxt file"
)


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on disk.

    Args:
        format: file format.
        precision: arithmetic.
        variant: id that its variant gets unless another one is asked for.
        files: path inside the variant -> file on disk.
        signatures: what it takes and gives.
        scratch: folder of files that were made for the push; it goes with this object.
    """

    format: pb.Format.ValueType
    precision: pb.Precision.ValueType
    variant: str
    files: Mapping[str, Path]
    signatures: tuple[Signature, ...]
    scratch: Scratch | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """A model before its companions are looked at.

    Attributes:
        format: file format.
        variant: default id.
        main: the file or folder that it is.
        files: path inside the variant -> file.
        read: reads the signatures of `main`.
        scratch: as in :class:`LocalModel`.
    """

    format: pb.Format.ValueType
    variant: str
    main: Path
    files: dict[str, Path]
    read: Callable[[Path], tuple[Signature, ...]]
    scratch: Scratch | None = None


def inspect(path: Path, *, variant: str = "", signatures: Sequence[Signature] = ()) -> LocalModel:
    """Find out what lies at `path`. Models of MXNet and Caffe are turned into ONNX here.

    What lies beside the model and is named for it travels along: the serving manifest ``sealane.json``, recorded
    requests ``warmup.binpb``, the folder ``package/``.

    Args:
        path: a file of a known format, or a folder that holds one model.
        variant: id of the variant; default: by the format, with ``-int8`` or ``-float16`` where the file's name ends
            so. An id that ends in ``int8`` is int8, in ``float16`` or ``fp16`` float16, any other float32.
        signatures: what callers send and get; where this is empty, what ``signatures.json`` beside the model says,
            and without that file what the model says. Needed, either way, where the format does not tell
            (TorchScript, ``remote.json``) or the manifest has steps before or after the model.

    Raises:
        InvalidArgument: no model, or files beside it that are not what their names say.
        FailedPrecondition: the signatures cannot be read here; the message says what to install or to give.
        Unimplemented: turning the model into ONNX needs an extra that is not installed.
    """
    main, companions = _look(path)
    given = tuple(signatures) or companions.signatures()
    found = _find(main, lambda: () if companions.has_steps else given)
    # With steps, what lies beside an archive of TorchScript is its own signature and not that of its callers.
    own = companions.has_steps and found.format == pb.FORMAT_TORCH_SCRIPT
    told = tuple(signatures) if own else given
    if not told and companions.has_steps:
        raise _hidden_by_steps(path)
    told = told or found.read(found.main)
    found = _with_signatures_file(found, companions, tuple(signatures))
    return _local(found, path, companions, told, variant)


def collect(path: Path) -> LocalModel:
    """As :func:`inspect`, for whoever loads the model and hears from it what it takes: `signatures` are left empty.

    Raises:
        InvalidArgument: no model, or files beside it that are not what their names say.
        Unimplemented: turning the model into ONNX needs an extra that is not installed.
    """
    main, companions = _look(path)
    # Only where it has to be known: whoever checks may be about to write that file anew.
    found = _find(main, lambda: () if companions.has_steps else companions.signatures())
    return _local(found, path, companions, ())


def _look(path: Path) -> tuple[Path, Companions]:
    """The model at `path` and what lies beside it."""
    main = _model_in(path) if path.is_dir() else path
    return main, model_companions.read(main if main.is_dir() else main.parent)


def _local(
    found: _Found, path: Path, companions: Companions, signatures: tuple[Signature, ...], variant: str = ""
) -> LocalModel:
    name = variant or _default_variant(found, path)
    files = {**found.files, **companions.files}
    return LocalModel(found.format, _precision(name), name, files, signatures, found.scratch)


def _hidden_by_steps(path: Path) -> FailedPrecondition:
    return FailedPrecondition(
        f"{model_companions.MANIFEST_FILE} has steps, so callers send and get something else than the model; "
        f"`sealane models check {shlex.quote(str(path))} --output json` prints what: write that to a file and pass "
        "signatures with it (--signatures FILE on the command line)",
        reason="SIGNATURES_NEEDED",
        field="signatures",
    )


def _model_in(folder: Path) -> Path:
    """The one model of a folder: the folder itself, or a file of it."""
    if (folder / _SAVED_MODEL).is_file():
        return folder
    if (folder / remote_model.FILE_NAME).is_file():
        return folder / remote_model.FILE_NAME
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    models = [file for file in files if file.suffix in _BY_SUFFIX or file.name.endswith(model_imports.SYMBOL_END)]
    # A model of two files counts once.
    models = [file for file in models if file.suffix not in (".params", ".caffemodel")]
    if len(models) != 1:
        what = f"{len(models)} models" if models else "no model"
        raise InvalidArgument(f"{folder} holds {what}; give {_KNOWN}", field="path")
    return models[0]


def _find(path: Path, known: Callable[[], tuple[Signature, ...]]) -> _Found:
    if path.is_dir():
        files = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
        return _Found(pb.FORMAT_SAVED_MODEL, "savedmodel", path, files, savedmodel.read_signatures)
    if not path.is_file():
        raise InvalidArgument(f"{path} is not there; give {_KNOWN}", field="path")
    if path.name == remote_model.FILE_NAME:
        remote_model.read(path)
        return _Found(pb.FORMAT_REMOTE, "remote", path, {path.name: path}, model_signatures.of_remote)
    if path.name.endswith(model_imports.SYMBOL_END) or path.suffix == ".params":
        return _imported(model_imports.from_mxnet(path, known()))
    if path.suffix in (".prototxt", ".caffemodel"):
        return _imported(model_imports.from_caffe(path))
    finder = _BY_SUFFIX.get(path.suffix)
    if finder is None:
        raise InvalidArgument(f"{path} is no model; give {_KNOWN}", field="path")
    return finder(path)


def _imported(scratch: Scratch) -> _Found:
    return replace(_onnx(scratch.file), scratch=scratch)


def _onnx(path: Path) -> _Found:
    files = {path.name: path, **onnx_file.external_data(path)}
    return _Found(pb.FORMAT_ONNX, "onnx", path, files, lambda file: (onnx_file.read_signature(file),))


def _litert(path: Path) -> _Found:
    return _Found(pb.FORMAT_LITERT, "litert-float", path, {path.name: path}, model_signatures.of_litert)


def _torch_export(path: Path) -> _Found:
    def read(file: Path) -> tuple[Signature, ...]:
        return (torch_export_file.read_signature(file),)

    return _Found(pb.FORMAT_TORCH_EXPORT, "torch-export", path, {path.name: path}, read)


def _torch_script(path: Path) -> _Found:
    model_signatures.check_torch_script(path)
    return _Found(pb.FORMAT_TORCH_SCRIPT, "torchscript", path, {path.name: path}, model_signatures.of_torch_script)


def _keras(path: Path) -> _Found:
    return _Found(pb.FORMAT_KERAS, "keras", path, {path.name: path}, model_signatures.of_keras)


def _openvino(path: Path) -> _Found:
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise InvalidArgument(
            f"{weights.name} is not beside {path.name}; an OpenVINO model is both files", field="path"
        )
    files = {path.name: path, weights.name: weights}
    return _Found(pb.FORMAT_OPENVINO, "openvino", path, files, model_signatures.of_openvino)


def _hdf5(path: Path) -> _Found:
    raise InvalidArgument(
        f"{path.name} is a Keras HDF5 file, which is not served; load it with its own class and load_weights, then "
        "write it with model.export (SavedModel) or model.save('x.keras')",
        reason="FORMAT_NOT_SERVED",
        field="path",
    )


_BY_SUFFIX: dict[str, Callable[[Path], _Found]] = {
    ".tflite": _litert,
    ".onnx": _onnx,
    ".pt2": _torch_export,
    ".pt": _torch_script,
    ".pth": _torch_script,
    ".keras": _keras,
    ".xml": _openvino,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".prototxt": lambda path: _imported(model_imports.from_caffe(path)),
}


def _with_signatures_file(found: _Found, companions: Companions, signatures: tuple[Signature, ...]) -> _Found:
    """TorchScript does not tell what it takes: its variant holds a file that does."""
    if found.format != pb.FORMAT_TORCH_SCRIPT or model_signatures.SIGNATURES_FILE in companions.files:
        return found
    # An archive has one; a version may have more, of which that is the default one.
    one = tuple(item for item in signatures if item.name == DEFAULT_SIGNATURE) or signatures
    if companions.has_steps or len(one) != 1:
        raise FailedPrecondition(
            f"TorchScript does not tell what it takes; put {model_signatures.SIGNATURES_FILE} beside {found.main.name} "
            "or pass one signature for a model without steps",
            reason="SIGNATURES_NEEDED",
            field="signatures",
        )
    scratch = Scratch(model_signatures.SIGNATURES_FILE)
    model_signatures.write_signatures_file(scratch.file, to_proto(one))
    return replace(found, files={**found.files, scratch.file.name: scratch.file}, scratch=scratch)


def _default_variant(found: _Found, path: Path) -> str:
    stem = (path if found.scratch else found.main).stem
    kind = re.search(r"(?:^|[-_.])(int8|float16|fp16)$", stem)
    if kind is None:
        return found.variant
    word = "int8" if kind[1] == "int8" else "float16"
    return f"{found.variant.removesuffix('-float')}-{word}"


def _precision(variant: str) -> pb.Precision.ValueType:
    if variant.endswith("int8"):
        return pb.PRECISION_INT8
    return pb.PRECISION_FLOAT16 if variant.endswith(("float16", "fp16")) else pb.PRECISION_FLOAT32


def to_proto(signatures: Sequence[Signature]) -> list[tensor_pb2.Signature]:
    """Signatures as the contracts carry them."""
    return [
        tensor_pb2.Signature(name=item.name, inputs=_specs_to(item.inputs), outputs=_specs_to(item.outputs))
        for item in signatures
    ]


def from_proto(signatures: Sequence[tensor_pb2.Signature]) -> tuple[Signature, ...]:
    """Signatures out of the contracts."""
    return tuple(Signature(_specs_of(item.inputs), _specs_of(item.outputs), item.name) for item in signatures)


def _specs_to(specs: Sequence[TensorSpec]) -> list[tensor_pb2.TensorSpec]:
    return [tensor_pb2.TensorSpec(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in specs]


def _specs_of(specs: Sequence[tensor_pb2.TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec.name, spec.datatype, tuple(spec.shape)) for spec in specs)
