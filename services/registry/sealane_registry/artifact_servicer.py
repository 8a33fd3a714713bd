"""ArtifactService: uploads and downloads. Disk work runs in threads, records on the database thread."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

from sealane.clock import Clock
from sealane.errors import InvalidArgument, NotFound
from sealane.names import parse
from sealane.records.transactions import Transactions, actor
from sealane.registry.v1 import artifact_service_pb2 as pb
from sealane.rpc.call import Call
from sealane_registry.blobs import CHUNK_BYTES, BlobFolder, check_digest
from sealane_registry.store import Store, UploadRow

_UPLOAD, _ARTIFACT = "projects/*/uploads/*", "projects/*/artifacts/*"
MAX_ARTIFACT_BYTES = 64 << 30
_STALL_SECONDS = 30.0


class ArtifactServicer:
    """ArtifactService."""

    def __init__(self, records: Transactions[Store], blobs: BlobFolder, clock: Clock) -> None:
        self._records = records
        self._blobs = blobs
        self._clock = clock
        self._locks: dict[str, asyncio.Lock] = {}

    async def StartUpload(self, request: pb.StartUploadRequest, call: Call) -> pb.Upload:
        (project,) = parse(request.parent, "projects/*", "parent")
        check_digest(request.sha256)
        if not 0 <= request.size_bytes <= MAX_ARTIFACT_BYTES:
            raise InvalidArgument(f"size_bytes must be 0 to {MAX_ARTIFACT_BYTES}", field="size_bytes")

        def start(store: Store) -> UploadRow | None:
            if store.artifact_size(project, request.sha256) is not None:
                return None
            row = store.upload_of(project, request.sha256, request.size_bytes)
            if row is None:
                row = UploadRow(project, secrets.token_hex(16), request.sha256, request.size_bytes)
                store.add_upload(row)
            return row

        row = await self._records.write(start)
        if row is None and await asyncio.to_thread(self._blobs.has, request.sha256):
            return pb.Upload(offset=request.size_bytes, complete=True)
        if row is None:  # the record is there, the file was lost: take it again
            row = UploadRow(project, secrets.token_hex(16), request.sha256, request.size_bytes)
            again = row
            await self._records.write(lambda store: store.add_upload(again))
        offset = await asyncio.to_thread(self._blobs.open_upload, row.upload)
        return pb.Upload(name=f"projects/{project}/uploads/{row.upload}", offset=offset)

    async def UploadChunks(self, requests: AsyncIterator[pb.UploadChunksRequest], call: Call) -> pb.Upload:
        row: UploadRow | None = None
        offset = 0
        async for request in requests:
            if row is None:
                row = await self._find(request.name, call)
                offset = await asyncio.to_thread(self._blobs.open_upload, row.upload)
            if len(request.data) > CHUNK_BYTES:
                raise InvalidArgument(f"a chunk has at most {CHUNK_BYTES} bytes", field="data")
            async with self._lock(row.upload), asyncio.timeout(_STALL_SECONDS):
                offset = await asyncio.to_thread(self._blobs.append, row.upload, request.offset, request.data, row.size)
        if row is None:
            raise InvalidArgument("the stream held no chunk; the first message names the upload", field="name")
        return pb.Upload(name=f"projects/{row.project}/uploads/{row.upload}", offset=offset)

    async def FinishUpload(self, request: pb.FinishUploadRequest, call: Call) -> pb.Artifact:
        row = await self._find(request.name, call)
        async with self._lock(row.upload):
            await asyncio.to_thread(self._blobs.publish, row.upload, row.sha256, row.size)
        who, now = actor(call, row.project), self._clock.now()
        name = f"projects/{row.project}/artifacts/{row.sha256}"

        def finish(store: Store) -> None:
            store.add_artifact(row.project, row.sha256, row.size, now)
            store.record(who, "FinishUpload", name, now, size=str(row.size))

        await self._records.write(finish)
        self._locks.pop(row.upload, None)
        return pb.Artifact(name=name, sha256=row.sha256, size_bytes=row.size)

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, call: Call
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        project, sha256 = parse(request.name, _ARTIFACT)
        check_digest(sha256, "name")
        size = await self._records.read(lambda store: store.artifact_size(project, sha256))
        if size is None:
            raise NotFound(f"artifact {sha256} does not exist; upload it first")
        if not 0 <= request.offset <= size or request.length < 0:
            raise InvalidArgument(f"the range must lie inside the artifact's {size} bytes", field="offset")
        chunks = self._blobs.read(sha256, request.offset, request.length)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield pb.DownloadArtifactResponse(offset=chunk[0], data=chunk[1])

    async def _find(self, name: str, call: Call) -> UploadRow:
        project, upload = parse(name, _UPLOAD)
        mine = call.caller.project in ("", project)  # a node acts for the project of its task
        row = await self._records.read(lambda store: store.upload(project, upload)) if mine else None
        if row is None:
            raise NotFound(f"{name} does not exist; start the upload again")
        return row

    def _lock(self, upload: str) -> asyncio.Lock:
        return self._locks.setdefault(upload, asyncio.Lock())
