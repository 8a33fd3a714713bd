"""Looks into a variant's files for code and for what would leave its folder, without unpacking or loading anything.

This is no scanner that promises to find every trick: formats that are programs are refused by their name (present.py),
models are loaded in a sandbox all the same. What is looked for here is what hides in formats that look like data:
pickles, Keras archives with functions of their own, ONNX operators that need a library, weights outside of the folder.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping

from sealane.errors import FailedPrecondition
from sealane_registry.onnx_walk import Content, Malformed, OnnxFacts, walk

MAX_CONFIG_BYTES = 16 << 20
MAX_HEADER_BYTES = 100 << 20
_PICKLE = tuple(bytes((0x80, version)) for version in range(2, 6))
#: Operators that every runtime of ONNX has, or the common ones bring along.
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training", "ai.onnx.training", "com.microsoft"})
#: What in a Keras configuration is code.
_KERAS_CODE = ('"Lambda"', '"__lambda__"', "enable_unsafe_deserialization")


def look(model_format: str, files: Mapping[str, Content]) -> str:
    """What of a variant holds code, in words; empty where nothing does.

    Args:
        model_format: such as ``ONNX``.
        files: by path.

    Raises:
        FailedPrecondition: a file that is not what its name or format says (UNSAFE_FORMAT).
    """
    found: list[str] = []
    for path, content in files.items():
        start = content.read(0, 8)
        if start.startswith(_PICKLE):
            found.append(f"{path} is a pickle, which")
        if path.endswith(".safetensors"):
            _check_safetensors(path, content)
        if model_format == "ONNX" and path.endswith(".onnx"):
            found.extend(_onnx(path, content, files))
        if model_format == "KERAS" and path.endswith(".keras"):
            found.extend(_keras(path, content))
    return found[0] if found else ""


def _onnx(path: str, content: Content, files: Mapping[str, Content]) -> Iterator[str]:
    try:
        facts: OnnxFacts = walk(content)
    except Malformed as error:
        raise _unsafe(f"{path} is no ONNX model ({error})", "export it again") from error
    folder = path.rpartition("/")[0]
    for location in sorted(facts.external):
        inside = f"{folder}/{location}" if folder else location
        if inside not in files:
            raise _unsafe(
                f"{path} keeps weights in {location[:80]!r}, which is no file of the variant", "push it with its data"
            )
    own = sorted(facts.domains - _DOMAINS)
    if own:
        yield f"{path} has operators of {own[0][:80]!r}, whose library"
    if facts.python:
        yield f"{path} has Python operators, which"


def _keras(path: str, content: Content) -> Iterator[str]:
    try:
        with zipfile.ZipFile(_Seekable(content)) as archive, archive.open("config.json") as member:
            config = member.read(MAX_CONFIG_BYTES + 1)
        if len(config) > MAX_CONFIG_BYTES:
            raise ValueError("its configuration is too long")
        json.loads(config)
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, NotImplementedError, RuntimeError, EOFError) as error:
        raise _unsafe(f"{path} is no Keras archive", "write it with model.save('model.keras')") from error
    text = config.decode(errors="replace")
    if any(word in text for word in _KERAS_CODE):
        yield f"{path} has a Lambda layer or functions of its own, which"


def _check_safetensors(path: str, content: Content) -> None:
    """The header's length, and that tensors lie side by side (https://github.com/huggingface/safetensors, format)."""
    length = int.from_bytes(content.read(0, 8), "little")
    room = content.size - 8 - length
    if content.size < 8 or length > MAX_HEADER_BYTES or room < 0:
        raise _unsafe(f"{path} has no safetensors header", "write it again")
    try:
        header = json.loads(content.read(8, length))
        spans = sorted(tuple(item["data_offsets"]) for name, item in header.items() if name != "__metadata__")
        place = 0
        for begin, end in spans:
            if begin != place or end < begin:
                raise ValueError("tensors overlap or leave gaps")
            place = end
        if place != room:
            raise ValueError("tensors end elsewhere than the file")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unsafe(f"{path} is no safetensors file", "write it again") from error


class _Seekable(io.RawIOBase):
    """A content as zipfile wants it."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._place = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._content.size}[whence]
        if base + offset < 0:
            raise OSError("before the beginning")
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        """Where it is."""
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        """Bytes from here."""
        length = self._content.size - self._place if size is None or size < 0 else size
        data = self._content.read(self._place, max(length, 0))
        self._place += len(data)
        return data


def _unsafe(what: str, remedy: str) -> FailedPrecondition:
    return FailedPrecondition(f"{what}; {remedy}", reason="UNSAFE_FORMAT")
