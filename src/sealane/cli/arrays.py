"""Arrays between the command line and files: what ``sealane predict`` sends, and what it shows and keeps."""

from __future__ import annotations

import base64
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sealane.errors import InvalidArgument

if TYPE_CHECKING:
    from sealane.client.prediction import Inputs
    from sealane.tensors import Array

Names = Callable[[], list[str]]
"""Asks what the inputs of the model are called."""


def read(text: str, files: Sequence[str], names: Names) -> Inputs:
    """What to send: arrays from `text` (--inputs) and elements from `files` (--file).

    Raises:
        InvalidArgument: neither, both for one input, or something that cannot be read.
    """
    elements = _elements(files)
    if not text:
        if not elements:
            raise InvalidArgument("nothing to send; give --inputs or --file NAME=PATH", field="inputs")
        return elements
    if not elements:
        return _arrays(text, names)
    arrays = _arrays(text, lambda: _left(names, elements))
    if not isinstance(arrays, Mapping):
        left = _left(names, elements)
        if len(left) != 1:
            raise InvalidArgument(
                f"--inputs is one array, and --file leaves the inputs {left}; give arrays by input name", field="inputs"
            )
        arrays = {left[0]: arrays}
    if both := sorted(elements.keys() & arrays.keys()):
        raise InvalidArgument(f"--inputs and --file both give {both}; give each input once", field="inputs")
    return {**arrays, **elements}


def as_json(array: Array) -> object:
    """An array as lists; bytes as text, or as ``{"b64": ...}`` where they are none."""
    return _plain(array.tolist())


def save(path: Path, outputs: Mapping[str, Array]) -> None:
    """Write arrays to a ``.npz`` file that loads without pickle: bytes get a fixed length.

    Raises:
        InvalidArgument: bytes that end in zero, which such an array would lose.
    """
    flat = {name: _fixed(name, array) if array.dtype.kind == "O" else array for name, array in outputs.items()}
    np.savez(path, allow_pickle=False, **flat)


def _left(names: Names, elements: Mapping[str, Array]) -> list[str]:
    return [name for name in names() if name not in elements]


def _elements(files: Sequence[str]) -> dict[str, Array]:
    """One array of BYTES for each name, with a file's content in each element, in the order given."""
    found: dict[str, list[bytes]] = {}
    for given in files:
        name, _, path = given.partition("=")
        if not name or not path:
            raise InvalidArgument(
                f"--file {given!r} is not NAME=PATH; name the input, as in --file photo=cat.jpg", field="file"
            )
        if not Path(path).is_file():
            raise InvalidArgument(f"--file: {path!r} is no file; correct the path", field="file")
        found.setdefault(name, []).append(Path(path).read_bytes())
    return {name: np.array(contents, np.object_) for name, contents in found.items()}


def _arrays(text: str, names: Names) -> Inputs:
    if text.endswith(".npz"):
        return _archive(text, names)
    try:
        parsed: Inputs = json.loads(Path(text).read_text() if text.endswith(".json") else text)
    except ValueError as error:
        if not text.lstrip().startswith(("{", "[")) and not Path(text).exists():
            raise InvalidArgument(
                f"--inputs: file {text!r} does not exist; name a .npz or .json file, or give JSON", field="inputs"
            ) from error
        raise InvalidArgument(
            f"--inputs is neither a .npz file nor JSON ({error}); give arrays by input name", field="inputs"
        ) from error
    return parsed


def _archive(path: str, names: Names) -> Inputs:
    """Of a ``.npz`` file only the arrays that the model takes are read."""
    with Path(path).open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise _no_archive(path) from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise _no_archive(path)
        if len(archive.files) == 1:
            return _member(archive, archive.files[0])
        taken = names()
        found = {name: _member(archive, name) for name in taken if name in archive.files}
        # A test set calls its rows `x`, whatever the model's one input is called.
        return _member(archive, "x") if not found and len(taken) == 1 and "x" in archive.files else found


def _member(archive: np.lib.npyio.NpzFile, name: str) -> Array:
    try:
        array: Array = archive[name]
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidArgument(
            f"--inputs: array {name!r} cannot be read without running code from the file (it holds Python objects) or "
            "is damaged; save numbers, or text and bytes with array.astype('S'), or send files with --file NAME=PATH",
            reason="ARRAY_UNREADABLE",
            field=f"inputs.{name}",
        ) from error
    return array


def _no_archive(path: str) -> InvalidArgument:
    return InvalidArgument(f"--inputs: {path!r} is no .npz file; write it with numpy.savez", field="inputs")


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def _fixed(name: str, array: Array) -> Array:
    if any(element.endswith(b"\0") for element in array.ravel().tolist()):
        raise InvalidArgument(
            f"output {name!r} has elements that end in a zero byte, which a .npz file would lose; use --output json",
            field="save",
        )
    return array.astype(np.bytes_)
