"""Artifacts from and to the registry's mesh port, by digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import grpc
from cryptography.exceptions import InvalidTag

from sealane.errors import DataLoss, FailedPrecondition
from sealane.registry.v1 import artifact_service_pb2 as pb
from sealane.registry.v1.artifact_service_pb2_grpc import ArtifactServiceStub
from sealane.security import encrypted_blob, suites
from sealane.security.work_grants import METADATA
from sealane_worker.cache import Blob

CHUNK_BYTES = 1 << 20
UPLOAD_SECONDS = 600.0
DOWNLOAD_SECONDS = 600.0
KEY_SECONDS = 10.0

#: Makes a channel to the registry's mesh port, with the certificate of this moment.
Dial = Callable[[], grpc.Channel]


class Artifacts:
    """The registry's files of any project that this node was given work for.

    Args:
        dial: makes a channel.
        who: SPIFFE id of this node, which keys are released to.
    """

    def __init__(self, dial: Dial, who: str = "") -> None:
        self._dial = dial
        self._who = who

    @cached_property
    def _pair(self) -> suites.KeyPair:
        """What keys are sealed to; it lives as long as this process."""
        return suites.generate(suites.best_available())

    def fetcher(self, project: str, grant: str) -> Fetcher:
        """Where the cache gets the blobs of `project`, with the scheduler's grant for them."""
        return Fetcher(self._dial, project, grant, self._who, lambda: self._pair)

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


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Implements :class:`sealane_worker.cache.Source`."""

    dial: Dial
    project: str
    grant: str
    who: str
    pair: Callable[[], suites.KeyPair]

    def __call__(self, blob: Blob) -> Iterator[bytes]:
        """See :class:`Source`."""
        return self._download(blob, encrypted=False)

    def encrypted(self, blob: Blob) -> Iterator[bytes]:
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
        with self.dial() as channel:
            stub = ArtifactServiceStub(channel)
            released = stub.ReleaseArtifactKey(request, timeout=KEY_SECONDS, metadata=_shown(self.grant))
        try:
            return encrypted_blob.take(released.wrapped_key, pair, self.who, (self.project, blob.digest))
        except InvalidTag as error:
            raise DataLoss("the key that the registry released does not open here; ask again") from error

    def _name(self, blob: Blob) -> str:
        return f"projects/{self.project}/artifacts/{blob.digest}"

    def _download(self, blob: Blob, *, encrypted: bool) -> Iterator[bytes]:
        request = pb.DownloadArtifactRequest(name=self._name(blob), encrypted=encrypted)
        expected = 0
        with self.dial() as channel:
            for part in ArtifactServiceStub(channel).DownloadArtifact(
                request, timeout=DOWNLOAD_SECONDS, metadata=_shown(self.grant)
            ):
                if part.offset != expected:
                    raise FailedPrecondition("the registry sent an artifact with a gap; fetch it again")
                expected += len(part.data)
                yield part.data


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
