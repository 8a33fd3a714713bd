"""ArtifactService: uploads and downloads. Disk work runs in threads, records on the database thread."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakValueDictionary

from sealane.clock import Clock
from sealane.errors import DataLoss, DeadlineExceeded, InvalidArgument, NotFound
from sealane.names import parse
from sealane.protocols.chunks import Chunk, download_response, read_request
from sealane.records.transactions import Transactions, actor
from sealane.registry.v1 import artifact_service_pb2 as pb
from sealane.rpc.call import Call
from sealane.security import encrypted_blob
from sealane.security.encrypted_blob import copy_size
from sealane_registry.access import Access
from sealane_registry.blobs import CORRUPT, Blobs, check_digest
from sealane_registry.chunk_tags import CHUNK_BYTES
from sealane_registry.chunk_writer import ChunkWriter, Piece
from sealane_registry.limits import Defaults, check_bytes
from sealane_registry.spool import Spool
from sealane_registry.store import Store, UploadRow

T = TypeVar("T")

_UPLOAD, _ARTIFACT = "projects/*/uploads/*", "projects/*/artifacts/*"
MAX_ARTIFACT_BYTES = 64 << 30
STALL_SECONDS = 30.0
UPLOAD_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Files:
    """Where files are.

    Args:
        spool: uploads under way.
        blobs: what was published.
    """

    spool: Spool
    blobs: Blobs


class ArtifactServicer:
    """ArtifactService."""

    def __init__(
        self,
        records: Transactions[Store],
        files: Files,
        access: Access,
        clock: Clock,
        stall: float = STALL_SECONDS,
        *,
        defaults: Defaults | None = None,
    ) -> None:
        self._records = records
        self._spool = files.spool
        self._blobs = files.blobs
        self._access = access
        self._clock = clock
        self._stall = stall
        self._defaults = defaults or Defaults()
        # A lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def sweep(self) -> None:
        """Forget old uploads and files that belong to none. Only before the first call is served."""
        before = self._clock.now() - UPLOAD_SECONDS

        def forget(store: Store) -> set[str]:
            store.drop_uploads(before)
            return store.upload_ids()

        kept = await self._records.write(forget)
        await asyncio.to_thread(self._spool.keep_only, kept)

    async def StartUpload(self, request: pb.StartUploadRequest, call: Call) -> pb.Upload:
        (project,) = parse(request.parent, "projects/*", "parent")
        self._access.check_upload(call, project)
        check_digest(request.sha256)
        if not 0 <= request.size_bytes <= MAX_ARTIFACT_BYTES:
            raise InvalidArgument(f"size_bytes must be 0 to {MAX_ARTIFACT_BYTES}", field="size_bytes")

        def start(store: Store) -> UploadRow:
            row = store.upload_of(project, request.sha256, request.size_bytes)
            if row is None:
                check_bytes(store, project, request.size_bytes, self._defaults)
                now = self._clock.now()
                row = UploadRow(project, secrets.token_hex(16), request.sha256, request.size_bytes, now)
                store.add_upload(row)
            return row

        if (size := await self._stored(project, request.sha256)) is not None:
            # Whoever asks is about to refer to it: it is not to be collected before that.
            held, now = size, self._clock.now()
            await self._records.write(lambda store: store.add_artifact(project, request.sha256, held, now))
            return pb.Upload(offset=size, complete=True)
        row = await self._records.write(start)
        async with self._lock(row.upload):
            # Asked again: it may have been finished meanwhile, and then no file may be made for it.
            if (size := await self._stored(project, request.sha256)) is not None:
                return pb.Upload(offset=size, complete=True)
            offset = await asyncio.to_thread(self._spool.open, row)
        return pb.Upload(name=f"projects/{project}/uploads/{row.upload}", offset=offset)

    async def UploadChunks(self, requests: AsyncIterator[bytes], call: Call) -> pb.Upload:
        if (first := await self._next(requests)) is None:
            raise InvalidArgument("the stream held no chunk; the first message names the upload", field="name")
        chunk: Chunk | None = first
        row = await self._find(first.name, call)
        writer = ChunkWriter(lambda pieces: self._append(row, pieces))
        try:
            while chunk is not None:
                if len(chunk.data) > CHUNK_BYTES:
                    raise InvalidArgument(f"a chunk has at most {CHUNK_BYTES} bytes", field="data")
                await writer.add((chunk.offset, chunk.data))
                chunk = await self._next(requests)
            offset = await writer.flush()
        finally:
            await writer.settle()
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
                done = await asyncio.to_thread(self._spool.finish, row)
                await asyncio.to_thread(self._blobs.publish, done)
                await self._records.write(finish)
                if not await asyncio.to_thread(self._blobs.has, row.sha256):  # see Blobs.remove
                    await asyncio.to_thread(self._blobs.publish, done)
                size = row.size
            # Else it is a repeat, or another upload of the same content came first.
            await asyncio.to_thread(self._spool.discard, row.upload)
        return pb.Artifact(name=name, sha256=row.sha256, size_bytes=size)

    async def DownloadArtifact(self, request: pb.DownloadArtifactRequest, call: Call) -> AsyncIterator[bytes]:
        project, sha256 = parse(request.name, _ARTIFACT)
        check_digest(sha256, "name")
        size = await self._readable(project, sha256, call)
        if request.encrypted:
            size = copy_size(size)
        if not 0 <= request.offset <= size or request.length < 0:
            raise InvalidArgument(f"the range must lie inside the artifact's {size} bytes", field="offset")
        read = self._blobs.read_encrypted if request.encrypted else self._blobs.read
        chunks = read(sha256, request.offset, request.length)
        reading = _ahead(chunks)  # one is read while another goes out; more of them leave the processor's cache
        try:
            while (message := await reading) is not None:
                reading = _ahead(chunks)
                yield message
        except DataLoss as error:
            if error.reason == CORRUPT:
                await self._record_loss(call, project, sha256)
            raise
        finally:
            await _settled(reading)
            await asyncio.to_thread(chunks.close)

    async def ReleaseArtifactKey(self, request: pb.ReleaseArtifactKeyRequest, call: Call) -> pb.ReleasedArtifactKey:
        project, sha256 = parse(request.name, _ARTIFACT)
        check_digest(sha256, "name")
        size = await self._readable(project, sha256, call)
        key = self._blobs.key_of(sha256, size, request.header)
        recipient = (request.suite, request.public_key)
        wrapped = encrypted_blob.release(key, recipient, call.caller.subject, (project, sha256))
        who, now = actor(call, project), self._clock.now()
        await self._records.write(lambda store: store.record(who, "ReleaseArtifactKey", request.name, now))
        return pb.ReleasedArtifactKey(wrapped_key=wrapped)

    async def _readable(self, project: str, sha256: str, call: Call) -> int:
        """Size of an artifact that the caller may read; raises NotFound for every other."""
        await self._records.read(lambda store: self._access.check_download(store, call, project, sha256))
        size = await self._records.read(lambda store: store.artifact_size(project, sha256))
        if size is None:
            raise NotFound(f"artifact {sha256} does not exist; upload it first")
        return size

    async def _append(self, row: UploadRow, pieces: list[Piece]) -> int:
        def append() -> int:
            offset = 0
            for start, data in pieces:
                offset = self._spool.append(row, start, data)
            return offset

        async with self._lock(row.upload), asyncio.timeout(self._stall):
            return await asyncio.to_thread(append)

    async def _record_loss(self, call: Call, project: str, sha256: str) -> None:
        name, now = f"projects/{project}/artifacts/{sha256}", self._clock.now()
        await self._records.write(lambda store: store.record(actor(call, project), "SetArtifactAside", name, now))

    async def _next(self, requests: AsyncIterator[bytes]) -> Chunk | None:
        try:
            async with asyncio.timeout(self._stall):
                body = await anext(requests, None)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"no chunk came for {self._stall:.0f} s; start the upload again, what arrived is kept",
                reason="UPLOAD_STALLED",
            ) from error
        return None if body is None else read_request(body)

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


def _ahead(chunks: Iterator[Piece]) -> asyncio.Task[bytes | None]:
    return asyncio.create_task(asyncio.to_thread(_next_response, chunks))


def _next_response(chunks: Iterator[Piece]) -> bytes | None:
    piece = next(chunks, None)
    return None if piece is None else download_response(*piece)


async def _settled(task: asyncio.Task[T] | None) -> None:
    """Wait for what runs on a thread and cannot be stopped; its failure is told elsewhere, or nobody waits for it."""
    if task is not None:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
