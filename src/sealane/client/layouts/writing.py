"""A variant that was pulled, written as another server wants it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from sealane.client import model_companions
from sealane.client.layouts import records, triton_text
from sealane.client.model_signatures import SIGNATURES_FILE
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.protocols import openinference_tensors, tfserving
from sealane.protocols.call import InferenceCall, Target
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.tensors import Array, Signature
from sealane.type.v1 import manifest_pb2

TARGETS = ("tensorflow-serving", "triton")
#: Files of a variant that are ours and say nothing to another server.
_OWN = (model_companions.WARM_UP_FILE, model_companions.MANIFEST_FILE, SIGNATURES_FILE)
#: What lies beside a model that was imported, and is no part of it.
_BESIDE = ("MLmodel", "labels/")


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A variant to be written.

    Attributes:
        name: of the model, as the other server will call it.
        number: of the version.
        format: of the variant.
        files: path inside the variant -> file on disk.
        signatures: what callers send and get.
    """

    name: str
    number: int
    format: variant_pb.Format.ValueType
    files: Mapping[str, Path]
    signatures: tuple[Signature, ...]

    def model_files(self) -> dict[str, Path]:
        """Those of the model itself."""
        return {path: file for path, file in self.files.items() if path not in _OWN and not path.startswith(_BESIDE)}


def write(model: Outgoing, folder: Path, target: str) -> tuple[Path, tuple[str, ...]]:
    """Write a variant below `folder`; returns the model's folder there, and what it does not hold.

    Args:
        model: what to write.
        folder: where; TensorFlow Serving gets ``folder/NUMBER``, Triton ``folder/NAME``.
        target: one of :data:`TARGETS`.

    Raises:
        InvalidArgument: the target is unknown.
        FailedPrecondition: it cannot hold this variant (LAYOUT_CANNOT_HOLD), or something is there already.
    """
    if target not in TARGETS:
        raise InvalidArgument(f"the layout {target!r} is unknown; say one of {', '.join(TARGETS)}", field="layout")
    manifest = model_companions.manifest_of(model.files)
    if manifest.before or manifest.after:
        raise cannot_hold(
            target, "steps before or after the model", "do them in the caller, or in a model of that server"
        )
    if any(path.startswith(f"{model_companions.PACKAGE_FOLDER}/") for path in model.files):
        raise cannot_hold(target, "Python of the variant's own", "export a variant without package/")
    if manifest.HasField("sealing"):
        raise cannot_hold(target, "that the model demands sealed calls", "pull the files where its owner allows that")
    if target == "triton":
        return _triton(model, folder, manifest)
    return _tensorflow_serving(model, folder, manifest)


def _tensorflow_serving(model: Outgoing, folder: Path, manifest: manifest_pb2.Manifest) -> tuple[Path, tuple[str, ...]]:
    if model.format != variant_pb.FORMAT_SAVED_MODEL:
        raise cannot_hold("tensorflow-serving", _format_word(model), "export a variant that is a SavedModel")
    if manifest.HasField("sequence_batching"):
        raise cannot_hold("tensorflow-serving", "sequences with state", "export it for triton")
    files = model.model_files()
    place = _empty(folder / str(model.number))
    recorded = [records.predict_log(_predict_request(model.name, *one)) for one in warm_up_of(model)]
    _copy(files, place)
    if recorded:
        file = place / records.FILE
        file.parent.mkdir(exist_ok=True)
        kept = list(records.split(file.read_bytes())) if file.is_file() else []
        file.write_bytes(records.join([*kept, *recorded]))
    notes = ("how it is batched and placed (sealane.json) is no part of this layout",)
    return folder, notes if manifest != manifest_pb2.Manifest() else ()


def _triton(model: Outgoing, folder: Path, manifest: manifest_pb2.Manifest) -> tuple[Path, tuple[str, ...]]:
    backend, file = triton_text.backend_of(model.format, list(model.model_files()))
    if not backend:
        raise cannot_hold("triton", _format_word(model), "export a variant that is ONNX, a SavedModel or OpenVINO")
    requests = [(inputs, signature) for inputs, signature in warm_up_of(model)]
    config = triton_text.config_of(model, manifest, (backend, file), requests)
    place = _empty(folder / model.name)
    inside = place / str(model.number)
    inside = inside / file if model.format == variant_pb.FORMAT_SAVED_MODEL else inside
    _copy(model.model_files(), inside)
    for name, content in config.files.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(content)
    return place, config.notes


def warm_up_of(model: Outgoing) -> list[tuple[dict[str, Array], str]]:
    """Recorded requests of the variant's own, each with its signature.

    Raises:
        FailedPrecondition: the file cannot be read.
    """
    file = model.files.get(model_companions.WARM_UP_FILE)
    if file is None:
        return []
    try:
        message = manifest_pb2.WarmUp.FromString(file.read_bytes())
        return [(_inputs(request), request.signature) for request in message.requests]
    except (DecodeError, InvalidArgument) as error:
        raise FailedPrecondition(
            f"the recorded requests of this variant cannot be read ({str(error)[:200]}); push it again with examples",
            reason="WARM_UP_INVALID",
        ) from error


def cannot_hold(target: str, what: str, remedy: str) -> FailedPrecondition:
    """The error for what a layout has no place for."""
    return FailedPrecondition(f"{target} cannot hold {what}; {remedy}", reason="LAYOUT_CANNOT_HOLD", layout=target)


def _inputs(request: manifest_pb2.WarmUpRequest) -> dict[str, Array]:
    tensors = [
        oip.ModelInferRequest.InferInputTensor(name=item.name, datatype=item.datatype, shape=item.shape)
        for item in request.inputs
    ]
    return openinference_tensors.decode_tensors(tensors, [item.data for item in request.inputs], "warm-up", "inputs")


def _predict_request(name: str, inputs: Mapping[str, Array], signature: str) -> tfs.PredictRequest:
    return tfserving.encode_request(InferenceCall(Target(name, signature=signature), inputs))


def _empty(folder: Path) -> Path:
    """A folder that is made here: what is there already is another export, or somebody's model."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise FailedPrecondition(
            f"{folder} is there already; take it away or give another directory", reason="TARGET_NOT_EMPTY"
        ) from None
    return folder


def _copy(files: Mapping[str, Path], folder: Path) -> None:
    for path, file in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / path)


def _format_word(model: Outgoing) -> str:
    return variant_pb.Format.Name(model.format).removeprefix("FORMAT_").replace("_", " ").lower()
