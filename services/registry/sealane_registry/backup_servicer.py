"""BackupService: everything that the registry keeps, as of one moment."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO

import sqlalchemy as sa

from sealane.clock import Clock
from sealane.errors import NotFound
from sealane.records.database import Database
from sealane.records.transactions import Transactions
from sealane.registry.v1 import backup_service_pb2 as pb
from sealane.rpc.call import Call
from sealane.rpc.times import time_of
from sealane_registry import export
from sealane_registry.blobs import Blobs, check_digest
from sealane_registry.store import Store

#: So long after the last artifact was fetched nothing is collected.
HOLD_SECONDS = 600.0
_PIECE = 1 << 20


class BackupServicer:
    """BackupService.

    Args:
        database: with the records; the export runs on its thread, between two groups of changes.
        records: who has which artifact.
        blobs: the artifacts.
        clock: tells the time of the export.
        folder: where an export lies while it is sent.
        schema_revision: revision that this registry's tables have.
    """

    def __init__(
        self,
        database: Database,
        records: Transactions[Store],
        blobs: Blobs,
        clock: Clock,
        *,
        folder: Path,
        schema_revision: str,
    ) -> None:
        self._database, self._records, self._blobs, self._clock = database, records, blobs, clock
        self._folder = folder
        self._schema_revision = schema_revision
        self._held_until = 0.0

    @property
    def holding(self) -> bool:
        """Whether a backup may still fetch artifacts: then none is collected."""
        return time.monotonic() < self._held_until

    async def ExportRecords(
        self, request: pb.ExportRecordsRequest, call: Call
    ) -> AsyncIterator[pb.ExportRecordsResponse]:
        self._hold()
        with tempfile.TemporaryFile(dir=self._folder) as file:
            counts, digest = await asyncio.wrap_future(self._database.read(_writer(file)))
            header = pb.ExportHeader(schema_revision=self._schema_revision, export_time=time_of(self._clock.now()))
            yield pb.ExportRecordsResponse(header=header)
            file.seek(0)
            while data := await asyncio.to_thread(file.read, _PIECE):
                self._hold()
                yield pb.ExportRecordsResponse(lines=data)
            yield pb.ExportRecordsResponse(trailer=pb.ExportTrailer(rows=counts, sha256=digest))

    async def ExportArtifact(
        self, request: pb.ExportArtifactRequest, call: Call
    ) -> AsyncIterator[pb.ExportArtifactResponse]:
        sha256 = check_digest(request.sha256)
        self._hold()
        if not await self._records.read(lambda store: store.has_content(sha256)):
            raise NotFound(f"artifact {sha256} does not exist; take the records anew")
        pieces = self._blobs.read(sha256, request.offset, 0)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            self._hold()
            yield pb.ExportArtifactResponse(offset=piece[0], data=piece[1])

    def _hold(self) -> None:
        self._held_until = time.monotonic() + HOLD_SECONDS


def _writer(file: IO[bytes]) -> Callable[[sa.Connection], tuple[dict[str, int], bytes]]:
    return lambda connection: export.write(connection, file)
