"""Reads stored files for the rules that look into them, in threads, and only files that the project has."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from sealane.records.transactions import Transactions
from sealane.registry.v1 import variant_service_pb2
from sealane_registry.catalog import File, NewVariant, check_files
from sealane_registry.chunk_tags import CHUNK_BYTES
from sealane_registry.inspection import look
from sealane_registry.store import Store


class Readable(Protocol):
    """Where blobs are read."""

    def read(self, sha256: str, offset: int, length: int) -> Iterator[tuple[int, bytes]]:
        """Pieces (offset, data) of a blob, verified."""
        ...


class Inspector:
    """Looks into files before a transaction decides by what was found."""

    def __init__(self, records: Transactions[Store], blobs: Readable) -> None:
        self._records = records
        self._blobs = blobs

    async def look(self, project: str, variant: NewVariant, model_format: int) -> NewVariant:
        """The variant with what of it holds code.

        Raises:
            InvalidArgument: files that cannot be laid out.
            FailedPrecondition: a file that is not what its name or format says.
            DataLoss: a stored file that no longer matches its digest.
        """
        check_files(variant.files)
        digests = {file.sha256 for file in variant.files}
        # Of a file that the project has not, nothing may be learnt: the transaction refuses it.
        held = await self._records.read(
            lambda store: {sha256 for sha256 in digests if store.artifact_size(project, sha256) is not None}
        )
        contents = {
            file.path: _Content(self._blobs, file) for file in variant.files if file.sha256 in held and file.size
        }
        word = variant_service_pb2.Format.Name(model_format).removeprefix("FORMAT_")  # type: ignore[arg-type]  # checked
        executable = await asyncio.to_thread(look, word, contents)
        return replace(variant, executable=variant.executable or executable)

    async def verify(self, sha256: str) -> None:
        """Read a file through.

        Raises:
            DataLoss: it is missing or no longer matches its digest.
        """

        def through() -> None:
            for _ in self._blobs.read(sha256, 0, 0):
                pass

        await asyncio.to_thread(through)


@dataclass(slots=True)
class _Content:
    """One stored file. The last chunk is kept: whoever looks through a file asks for small pieces of it in turn."""

    blobs: Readable
    file: File
    _index: int = -1
    _chunk: bytes = b""

    @property
    def size(self) -> int:
        """Bytes, as declared; the transaction compares it with what is stored."""
        return self.file.size

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`; fewer at the end."""
        end, found = min(offset + length, self.size), []
        while offset < end:
            index, inside = divmod(offset, CHUNK_BYTES)
            if index != self._index:
                pieces = self.blobs.read(self.file.sha256, index * CHUNK_BYTES, CHUNK_BYTES)
                self._index, self._chunk = index, b"".join(data for _, data in pieces)
            piece = self._chunk[inside : inside + end - offset]
            if not piece:
                break
            found.append(piece)
            offset += len(piece)
        return b"".join(found)
