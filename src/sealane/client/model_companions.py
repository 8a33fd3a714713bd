"""Files that lie beside a model and travel with it: serving manifest, recorded requests, a Python package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from sealane.client.model_signatures import SIGNATURES_FILE, read_signatures_file
from sealane.errors import InvalidArgument
from sealane.protocols.call import DEFAULT_SIGNATURE
from sealane.protocols.openinference_tensors import encode_raw
from sealane.tensors import Array, Signature, datatype_of
from sealane.type.v1 import manifest_pb2

MANIFEST_FILE = "sealane.json"
WARM_UP_FILE = "warmup.binpb"
PACKAGE_FOLDER = "package"
MAX_MANIFEST_BYTES = 1024 * 1024
MAX_WARM_UP_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Companions:
    """What lies beside a model.

    Attributes:
        files: path inside the variant -> file.
        has_steps: whether the manifest puts steps before or after the model.
    """

    files: dict[str, Path] = field(default_factory=dict)
    has_steps: bool = False

    def signatures(self) -> tuple[Signature, ...]:
        """What the file of signatures says; empty where there is none.

        Raises:
            InvalidArgument: the file holds none.
        """
        file = self.files.get(SIGNATURES_FILE)
        return read_signatures_file(file) if file else ()


def read(folder: Path) -> Companions:
    """The companions in `folder`, checked.

    Raises:
        InvalidArgument: a file that is not what its name says; the message names the field.
    """
    files = {name: folder / name for name in (WARM_UP_FILE, SIGNATURES_FILE) if (folder / name).is_file()}
    if WARM_UP_FILE in files:
        _check_warm_up(files[WARM_UP_FILE])
    package = folder / PACKAGE_FOLDER
    if package.is_dir():
        files |= {file.relative_to(folder).as_posix(): file for file in sorted(package.rglob("*")) if _travels(file)}
    manifest = folder / MANIFEST_FILE
    if not manifest.is_file():
        return Companions(files)
    told = _parse_manifest(manifest)
    files[MANIFEST_FILE] = manifest
    files |= dict(_named_files(told, folder))
    return Companions(files, bool(told.before or told.after))


def manifest_of(files: Mapping[str, Path]) -> manifest_pb2.Manifest:
    """The serving manifest among a model's files; an empty one where there is none."""
    file = files.get(MANIFEST_FILE)
    return _parse_manifest(file) if file is not None else manifest_pb2.Manifest()


def manifest_file(manifest: manifest_pb2.Manifest) -> bytes:
    """The content of ``sealane.json``."""
    return json_format.MessageToJson(manifest, preserving_proto_field_name=True).encode()


def warm_up(examples: Sequence[Mapping[str, Array]], signatures: Sequence[Signature]) -> bytes:
    """Recorded requests as the file ``warmup.binpb``; arrays by input name, checked against the default signature.

    Raises:
        InvalidArgument: a request that the model does not take.
    """
    known = {signature.name: signature for signature in signatures}
    signature = known.get(DEFAULT_SIGNATURE) or next(iter(known.values()), None)
    message = manifest_pb2.WarmUp()
    for example in examples:
        if signature is not None:
            signature.check_inputs(example)
        request = message.requests.add(signature=signature.name if signature else "")
        for name, array in example.items():
            request.inputs.add(name=name, datatype=datatype_of(array), shape=array.shape, data=encode_raw(array))
    return message.SerializeToString()


def _travels(file: Path) -> bool:
    return file.is_file() and "__pycache__" not in file.parts


def _parse_manifest(file: Path) -> manifest_pb2.Manifest:
    try:
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise json_format.ParseError(f"longer than {MAX_MANIFEST_BYTES} bytes")
        text = file.read_text()
        if not text.lstrip().startswith("{"):  # an empty list parses as an empty message
            raise json_format.ParseError("no JSON object")
        return json_format.Parse(text, manifest_pb2.Manifest())
    except (json_format.ParseError, UnicodeDecodeError) as error:
        # protobuf names the field and where it stands.
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise InvalidArgument(
            f"{MANIFEST_FILE} is not a serving manifest: {reason}; correct that field",
            reason="MANIFEST_INVALID",
            field=MANIFEST_FILE,
        ) from error


def _check_warm_up(file: Path) -> None:
    try:
        if file.stat().st_size > MAX_WARM_UP_BYTES:
            raise DecodeError("too long")
        manifest_pb2.WarmUp.FromString(file.read_bytes())
    except DecodeError as error:
        raise InvalidArgument(
            f"{WARM_UP_FILE} holds no recorded requests (a WarmUp message); write it again or take it away",
            reason="WARM_UP_INVALID",
            field=WARM_UP_FILE,
        ) from error


def _named_files(manifest: manifest_pb2.Manifest, folder: Path) -> Iterator[tuple[str, Path]]:
    """Files that steps of the manifest read."""
    for side in ("before", "after"):
        for place, step in enumerate(getattr(manifest, side)):
            name = step.labels.file
            if not name:
                continue
            where = f"{side}[{place}].labels.file"
            if Path(name).is_absolute() or ".." in Path(name).parts or not (folder / name).is_file():
                raise InvalidArgument(
                    f"{where} of {MANIFEST_FILE} names {name!r}, which is no file beside the model; put it there",
                    reason="MANIFEST_INVALID",
                    field=where,
                )
            yield Path(name).as_posix(), folder / name
