"""Artifacts from and to the registry's mesh port, by digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from sealane.errors import FailedPrecondition
from sealane.registry.v1 import artifact_service_pb2 as pb
from sealane.registry.v1.artifact_service_pb2_grpc import ArtifactServiceStub
from sealane.security.work_grants import METADATA
from sealane_worker.cache import Blob, Fetch

CHUNK_BYTES = 1 << 20
UPLOAD_SECONDS = 600.0
DOWNLOAD_SECONDS = 600.0

#: Makes a channel to the registry's mesh port, with the certificate of this moment.
Dial = Callable[[], grpc.Channel]


class Artifacts:
    """The registry's files of any project that this node was given work for."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial

    def fetcher(self, project: str, grant: str) -> Fetch:
        """What the cache calls to get a blob of `project`, with the scheduler's grant for it."""

        def fetch(blob: Blob) -> Iterator[bytes]:
            request = pb.DownloadArtifactRequest(name=f"projects/{project}/artifacts/{blob.digest}")
            expected = 0
            with self._dial() as channel:
                for part in ArtifactServiceStub(channel).DownloadArtifact(
                    request, timeout=DOWNLOAD_SECONDS, metadata=_shown(grant)
                ):
                    if part.offset != expected:
                        raise FailedPrecondition("the registry sent an artifact with a gap; fetch it again")
                    expected += len(part.data)
                    yield part.data

        return fetch

    def upload(self, project: str, path: Path, grant: str) -> Blob:
        """Store a file in the registry, with the scheduler's grant; one that is there already is not sent again."""
        blob = blob_of(path)
        parent = f"projects/{project}"
        with self._dial() as channel:
            stub = ArtifactServiceStub(channel)
            started = stub.StartUpload(
                pb.StartUploadRequest(parent=parent, sha256=blob.digest, size_bytes=path.stat().st_size),
                metadata=_shown(grant),
            )
            if not started.complete:
                stub.UploadChunks(_chunks(started, path), timeout=UPLOAD_SECONDS, metadata=_shown(grant))
                stub.FinishUpload(pb.FinishUploadRequest(name=started.name), metadata=_shown(grant))
        return blob


def blob_of(path: Path) -> Blob:
    """Digest and size of a file."""
    with path.open("rb") as file:
        return Blob(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def _shown(grant: str) -> tuple[tuple[str, str], ...]:
    return ((METADATA, grant),) if grant else ()


def _chunks(upload: pb.Upload, path: Path) -> Iterator[pb.UploadChunksRequest]:
    offset = upload.offset
    with path.open("rb") as file:
        file.seek(offset)
        while data := file.read(CHUNK_BYTES):
            yield pb.UploadChunksRequest(name=upload.name, offset=offset, data=data)
            offset += len(data)
