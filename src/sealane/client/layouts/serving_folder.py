"""TensorFlow Serving's ``base_path``: a folder with a numbered folder for each version."""

from __future__ import annotations

from pathlib import Path

from sealane.client import model_files
from sealane.client.layouts import folders, records
from sealane.client.layouts.incoming import Incoming
from sealane.client.model_files import LocalModel
from sealane.errors import InvalidArgument
from sealane.protocols import savedmodel
from sealane.protocols.call import DEFAULT_SIGNATURE

LITERT_FILE = "model.tflite"


def is_one(folder: Path) -> bool:
    """Whether a folder looks like it."""
    return any(map(_holds_model, folders.versions(folder).values()))


def read(folder: Path, wanted: str) -> tuple[Incoming, ...]:
    """The wanted versions (``latest``, ``all`` or a number), oldest first.

    Recorded requests stay where TensorFlow Serving has them, which is where workers look for them too.

    Raises:
        InvalidArgument: no such version, or files that are not what their names say.
    """
    folders.check(folder)
    there = {number: path for number, path in folders.versions(folder).items() if _holds_model(path)}
    return tuple(
        _version(f"{folder.name}/{number}", path)
        for number, path in folders.chosen(there, wanted or "latest", folder).items()
    )


def _version(source: str, path: Path) -> Incoming:
    model = model_files.inspect(path)
    return Incoming(source, model, notes=_check_recorded(model))


def _check_recorded(model: LocalModel) -> tuple[str, ...]:
    """Recorded requests that the model refuses would fail its load: better here than there."""
    file = model.files.get(records.FILE)
    if file is None:
        return ()
    if file.stat().st_size > records.MAX_BYTES:
        raise folders.invalid(f"{file} has more than {records.MAX_BYTES} bytes; record fewer requests")
    calls, others = records.read(file.read_bytes())
    signatures = {signature.name: signature for signature in model.signatures}
    for place, call in enumerate(calls, 1):
        signature = signatures.get(call.target.signature or DEFAULT_SIGNATURE)
        try:
            if signature is None:
                raise InvalidArgument(f"the model has no signature {call.target.signature!r}")
            signature.check_inputs(call.inputs)
        except InvalidArgument as error:
            raise InvalidArgument(
                f"recorded request {place} in {records.FILE} is none that the model takes ({error.message}); record "
                "it again",
                reason="WARM_UP_INVALID",
                field=records.FILE,
            ) from error
    return (f"recorded requests that are no Predict ({', '.join(others)}) are not run",) if others else ()


def _holds_model(folder: Path) -> bool:
    return (folder / savedmodel.FILE_NAME).is_file() or (folder / LITERT_FILE).is_file()
