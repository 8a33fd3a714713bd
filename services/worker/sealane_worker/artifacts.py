"""Artifacts from and to the registry's mesh port, by digest."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import grpc
from cryptography.exceptions import InvalidTag

from sealane.errors import Aborted, DataLoss, FailedPrecondition, Unavailable
from sealane.protocols.chunks import ChunkStub, Data, upload_request
from sealane.registry.v1 import artifact_service_pb2 as pb
from sealane.registry.v1.artifact_service_pb2_grpc import ArtifactServiceStub
from sealane.security import encrypted_blob, suites
from sealane.security.work_grants import METADATA
from sealane_worker.cache import Blob
from sealane_worker.link_meter import LinkMeter

CHUNK_BYTES = 1 << 20
UPLOAD_SECONDS = 600.0
DOWNLOAD_SECONDS = 600.0
KEY_SECONDS = 10.0
CALL_SECONDS = 60.0
UPLOAD_TRIES, UPLOAD_WAIT_SECONDS = 6, 0.05

log = logging.getLogger("sealane.worker.artifacts")

#: The channel to the registry's mesh port for the next call; it is shared and stays open.
Channel = Callable[[], grpc.Channel]


class Artifacts:
    """The registry's files of any project that this node was given work for.

    Args:
        channel: to the registry.
        who: SPIFFE id of this node, which keys are released to.
        meter: told how fast the files travel.
    """

    def __init__(self, channel: Channel, who: str = "", meter: LinkMeter | None = None) -> None:
        self._channel = channel
        self._who = who
        self._meter = meter or LinkMeter()

    @cached_property
    def _pair(self) -> suites.KeyPair:
        """What keys are sealed to; it lives as long as this process."""
        return suites.generate(suites.best_available())

    def fetcher(self, project: str, grant: str) -> Fetcher:
        """Where the cache gets the blobs of `project`, with the scheduler's grant for them."""
        return Fetcher(self._channel, project, grant, self._who, lambda: self._pair, self._meter)

    def upload(self, project: str, path: Path, grant: str) -> Blob:
        """Store a file in the registry, with the scheduler's grant; one that is there already is not sent again.

        Another node may be sending the same content: then it goes on where that one is, or finds it stored.

        Raises:
            Unavailable: the registry is out of reach, or others got in between again and again.
        """
        blob = blob_of(path)
        for attempt in range(UPLOAD_TRIES):
            try:
                self._send(f"projects/{project}", blob, path, grant)
            except Aborted as error:
                log.info("upload begins again", extra={"sha256": blob.digest, "reason": error.reason})
                time.sleep(UPLOAD_WAIT_SECONDS * 2**attempt)
            else:
                return blob
        raise Unavailable("others send the same file at the same time; try again", reason="UPLOAD_CONTENDED")

    def _send(self, parent: str, blob: Blob, path: Path, grant: str) -> None:
        stub, shown, size = ArtifactServiceStub(self._channel()), _shown(grant), path.stat().st_size
        start = pb.StartUploadRequest(parent=parent, sha256=blob.digest, size_bytes=size)
        started = stub.StartUpload(start, timeout=CALL_SECONDS, metadata=shown)
        if not started.complete:
            if started.offset < size:  # else another one has sent it all, and ended before it said so
                chunks, begun = _chunks(started, path), time.monotonic()
                ChunkStub(self._channel()).UploadChunks(chunks, timeout=UPLOAD_SECONDS, metadata=shown)
                self._meter.left(size - started.offset, time.monotonic() - begun)
            finish = pb.FinishUploadRequest(name=started.name)
            stub.FinishUpload(finish, timeout=CALL_SECONDS, metadata=shown)


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Implements :class:`sealane_worker.cache.Source`."""

    channel: Channel
    project: str
    grant: str
    who: str
    pair: Callable[[], suites.KeyPair]
    meter: LinkMeter

    def __call__(self, blob: Blob) -> Iterator[Data]:
        """See :class:`Source`."""
        return self._download(blob, encrypted=False)

    def encrypted(self, blob: Blob) -> Iterator[Data]:
        """See :class:`Source`."""
        return self._download(blob, encrypted=True)

    def key(self, blob: Blob, header: bytes) -> bytes:
        """See :class:`Source`.

        Raises:
            DataLoss: what came does not open here.
            SealaneError: the registry refuses, or is out of reach.
        """
        pair = self.pair()
        request = pb.ReleaseArtifactKeyRequest(
            name=self._name(blob), header=header, suite=pair.suite, public_key=pair.public_key
        )
        stub = ArtifactServiceStub(self.channel())
        released = stub.ReleaseArtifactKey(request, timeout=KEY_SECONDS, metadata=_shown(self.grant))
        try:
            return encrypted_blob.take(released.wrapped_key, pair, self.who, (self.project, blob.digest))
        except InvalidTag as error:
            raise DataLoss("the key that the registry released does not open here; ask again") from error

    def _name(self, blob: Blob) -> str:
        return f"projects/{self.project}/artifacts/{blob.digest}"

    def _download(self, blob: Blob, *, encrypted: bool) -> Iterator[Data]:
        request = pb.DownloadArtifactRequest(name=self._name(blob), encrypted=encrypted)
        expected = first = 0
        begun = time.monotonic()
        parts = ChunkStub(self.channel()).DownloadArtifact(
            request, timeout=DOWNLOAD_SECONDS, metadata=_shown(self.grant)
        )
        try:
            for part in parts:
                if part.offset != expected:
                    raise FailedPrecondition("the registry sent an artifact with a gap; fetch it again")
                expected += len(part.data)
                if not first:  # what was waited for until here is the registry and the way, not the link
                    first, begun = expected, time.monotonic()
                yield part.data
            self.meter.came(expected - first, time.monotonic() - begun)
        finally:
            parts.cancel()  # whoever stops reading leaves no stream behind


def blob_of(path: Path) -> Blob:
    """Digest and size of a file."""
    with path.open("rb") as file:
        return Blob(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def _shown(grant: str) -> tuple[tuple[str, str], ...]:
    return ((METADATA, grant),) if grant else ()


def _chunks(upload: pb.Upload, path: Path) -> Iterator[bytes]:
    offset = upload.offset
    with path.open("rb") as file:
        file.seek(offset)
        while data := file.read(CHUNK_BYTES):
            yield upload_request(upload.name, offset, data)
            offset += len(data)
