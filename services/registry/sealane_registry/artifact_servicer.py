"""ArtifactService: uploads and downloads. Disk work runs in threads, records on the database thread."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

from sealane.clock import Clock
from sealane.errors import DeadlineExceeded, InvalidArgument, NotFound
from sealane.names import parse
from sealane.records.transactions import Transactions, actor
from sealane.registry.v1 import artifact_service_pb2 as pb
from sealane.rpc.call import Call
from sealane_registry.access import Access
from sealane_registry.blobs import CHUNK_BYTES, BlobFolder, check_digest
from sealane_registry.store import Store, UploadRow

_UPLOAD, _ARTIFACT = "projects/*/uploads/*", "projects/*/artifacts/*"
MAX_ARTIFACT_BYTES = 64 << 30
STALL_SECONDS = 30.0
UPLOAD_SECONDS = 24 * 3600.0


class ArtifactServicer:
    """ArtifactService."""

    def __init__(
        self,
        records: Transactions[Store],
        blobs: BlobFolder,
        access: Access,
        clock: Clock,
        stall: float = STALL_SECONDS,
    ) -> None:
        self._records = records
        self._blobs = blobs
        self._access = access
        self._clock = clock
        self._stall = stall
        # A lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def sweep(self) -> None:
        """Forget old uploads and files that belong to none. Only before the first call is served."""
        before = self._clock.now() - UPLOAD_SECONDS

        def forget(store: Store) -> set[str]:
            store.drop_uploads(before)
            return store.upload_ids()

        kept = await self._records.write(forget)
        await asyncio.to_thread(self._blobs.keep_uploads, kept)

    async def StartUpload(self, request: pb.StartUploadRequest, call: Call) -> pb.Upload:
        (project,) = parse(request.parent, "projects/*", "parent")
        self._access.check_upload(call, project)
        check_digest(request.sha256)
        if not 0 <= request.size_bytes <= MAX_ARTIFACT_BYTES:
            raise InvalidArgument(f"size_bytes must be 0 to {MAX_ARTIFACT_BYTES}", field="size_bytes")

        def start(store: Store) -> UploadRow:
            row = store.upload_of(project, request.sha256, request.size_bytes)
            if row is None:
                now = self._clock.now()
                row = UploadRow(project, secrets.token_hex(16), request.sha256, request.size_bytes, now)
                store.add_upload(row)
            return row

        if (size := await self._stored(project, request.sha256)) is not None:
            return pb.Upload(offset=size, complete=True)
        row = await self._records.write(start)
        async with self._lock(row.upload):
            # Asked again: it may have been finished meanwhile, and then no file may be made for it.
            if (size := await self._stored(project, request.sha256)) is not None:
                return pb.Upload(offset=size, complete=True)
            offset = await asyncio.to_thread(self._blobs.open_upload, row.upload)
        return pb.Upload(name=f"projects/{project}/uploads/{row.upload}", offset=offset)

    async def UploadChunks(self, requests: AsyncIterator[pb.UploadChunksRequest], call: Call) -> pb.Upload:
        row: UploadRow | None = None
        offset = 0
        while (request := await self._next(requests)) is not None:
            if row is None:
                row = await self._find(request.name, call)
            if len(request.data) > CHUNK_BYTES:
                raise InvalidArgument(f"a chunk has at most {CHUNK_BYTES} bytes", field="data")
            async with self._lock(row.upload), asyncio.timeout(self._stall):
                offset = await asyncio.to_thread(self._blobs.append, row.upload, request.offset, request.data, row.size)
        if row is None:
            raise InvalidArgument("the stream held no chunk; the first message names the upload", field="name")
        return pb.Upload(name=f"projects/{row.project}/uploads/{row.upload}", offset=offset)

    async def FinishUpload(self, request: pb.FinishUploadRequest, call: Call) -> pb.Artifact:
        row = await self._find(request.name, call)
        who, name = actor(call, row.project), f"projects/{row.project}/artifacts/{row.sha256}"

        def finish(store: Store) -> None:
            now = self._clock.now()
            store.add_artifact(row.project, row.sha256, row.size, now)
            store.record(who, "FinishUpload", name, now, size=str(row.size))

        async with self._lock(row.upload):
            size = await self._stored(row.project, row.sha256)
            if size is None:
                await asyncio.to_thread(self._blobs.publish, row.upload, row.sha256, row.size)
                await self._records.write(finish)
                size = row.size
            else:  # a repeat, or another upload of the same content came first
                await asyncio.to_thread(self._blobs.discard, row.upload)
        return pb.Artifact(name=name, sha256=row.sha256, size_bytes=size)

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, call: Call
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        project, sha256 = parse(request.name, _ARTIFACT)
        check_digest(sha256, "name")
        await self._records.read(lambda store: self._access.check_download(store, call, project, sha256))
        size = await self._records.read(lambda store: store.artifact_size(project, sha256))
        if size is None:
            raise NotFound(f"artifact {sha256} does not exist; upload it first")
        if not 0 <= request.offset <= size or request.length < 0:
            raise InvalidArgument(f"the range must lie inside the artifact's {size} bytes", field="offset")
        chunks = self._blobs.read(sha256, request.offset, request.length)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield pb.DownloadArtifactResponse(offset=chunk[0], data=chunk[1])

    async def _next(self, requests: AsyncIterator[pb.UploadChunksRequest]) -> pb.UploadChunksRequest | None:
        try:
            async with asyncio.timeout(self._stall):
                return await anext(requests, None)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"no chunk came for {self._stall:.0f} s; start the upload again, what arrived is kept",
                reason="UPLOAD_STALLED",
            ) from error

    async def _stored(self, project: str, sha256: str) -> int | None:
        """Size of the project's artifact; None where it has none, or its file was lost."""
        size = await self._records.read(lambda store: store.artifact_size(project, sha256))
        return size if size is not None and await asyncio.to_thread(self._blobs.has, sha256) else None

    async def _find(self, name: str, call: Call) -> UploadRow:
        project, upload = parse(name, _UPLOAD)
        mine = call.caller.project in ("", project)  # a node acts for the project of its task
        if mine:
            self._access.check_upload(call, project)
        row = await self._records.read(lambda store: store.upload(project, upload)) if mine else None
        if row is None:
            raise NotFound(f"{name} does not exist; start the upload again")
        return row

    def _lock(self, upload: str) -> asyncio.Lock:
        return self._locks.setdefault(upload, asyncio.Lock())
