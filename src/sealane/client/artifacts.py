"""Files of the registry: up and down in chunks, resumed where a stream was cut, always checked."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, TypeVar

from sealane.client import references
from sealane.client.keyed_locks import KeyedLocks
from sealane.client.session import Session
from sealane.errors import Aborted, DataLoss, SealaneError, Unavailable
from sealane.protocols.chunks import ChunkStub, upload_request
from sealane.registry.v1 import artifact_service_pb2 as pb
from sealane.registry.v1 import artifact_service_pb2_grpc

T = TypeVar("T")

CHUNK_BYTES = 1 << 20
#: Files that are under way at the same time.
PARALLEL = 4
#: Chunks of a download that wait to be written, with the one that is being written.
_WAITING = 2
_ATTEMPTS_WITHOUT_PROGRESS = 5
_SLOWEST_BYTES_PER_SECOND = 64 * 1024
_PATIENCE_SECONDS = 60.0

Progress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes that are over, and all its bytes."""


def no_progress(name: str, done: int, total: int) -> None:
    """Tells nobody."""


class Artifacts:
    """Stored files of the project, named by their SHA-256."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sending = KeyedLocks()

    def upload_all(self, files: Sequence[Path], *, progress: Progress = no_progress) -> list[str]:
        """Store files, four at a time; their SHA-256 in the same order. Raises as :meth:`upload`, and stops then.

        Args:
            files: paths.
            progress: called after every chunk, by one thread at a time.
        """
        told = _one_at_a_time(progress)
        return _together([lambda file=file: self.upload(file, progress=told) for file in files])  # type: ignore[misc]

    def download_all(self, files: Mapping[Path, str], *, progress: Progress = no_progress) -> None:
        """Fetch files, path -> SHA-256, four at a time. Raises as :meth:`download`, and stops then."""
        told = _one_at_a_time(progress)
        _together(
            [lambda path=path, sha=sha: self.download(sha, path, progress=told) for path, sha in files.items()]  # type: ignore[misc]
        )

    def upload(self, content: Path | str | bytes, *, progress: Progress = no_progress) -> str:
        """Store a file, or bytes; returns the SHA-256 as 64 hexadecimal digits.

        What the registry has already is not sent again; a cut stream goes on where it was cut.

        Args:
            content: path of a file, or the content itself.
            progress: called after every chunk.

        Raises:
            FailedPrecondition: the file changed while it was read.
            SealaneError: the registry refused, or stayed out of reach.
        """
        source = _Source(content)
        sha256 = source.sha256()
        # Files of the same content are one upload: the second finds what the first has sent.
        with self._sending.hold(sha256, time.monotonic() + _allowance(source.size)):
            self._store(source, sha256, progress)
        return sha256

    def download(self, sha256: str, path: Path | str, *, progress: Progress = no_progress) -> Path:
        """Fetch a file to `path`; it appears there only when it is whole and its digest matches.

        Raises:
            NotFound: the project has no such artifact.
            DataLoss: what arrived does not match its digest.
        """
        target = Path(path)
        partial = target.with_name(f".{target.name}.part")
        name = references.resource(self._session.project, "artifacts", sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                found = self._receive(name, file, lambda done: progress(target.name, done, 0))
            if found != references.last(name):
                raise DataLoss(f"{target.name} arrived with another digest; fetch it again", reason="DIGEST_MISMATCH")
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return target

    def _store(self, source: _Source, sha256: str, progress: Progress) -> None:
        request = pb.StartUploadRequest(parent=self._session.parent, sha256=sha256, size_bytes=source.size)
        failures, held = 0, -1
        while True:
            upload = self._stub().StartUpload(request, timeout=self._session.timeout)
            if upload.complete:
                progress(source.name, source.size, source.size)
                return
            failures = 0 if upload.offset > held else failures + 1
            held = upload.offset
            try:
                if held < source.size:
                    self._send(source, upload, progress)
                finish = pb.FinishUploadRequest(name=upload.name)
                self._stub().FinishUpload(finish, timeout=_allowance(source.size))
            except (Unavailable, Aborted) as error:
                if failures >= _ATTEMPTS_WITHOUT_PROGRESS:
                    raise
                _pause(failures, error)
                continue
            return

    def _stub(self) -> artifact_service_pb2_grpc.ArtifactServiceStub:
        return artifact_service_pb2_grpc.ArtifactServiceStub(self._session.channel("registry"))

    def _send(self, source: _Source, upload: pb.Upload, progress: Progress) -> None:
        stub = ChunkStub(self._session.channel("registry"))
        stub.UploadChunks(source.chunks(upload, progress), timeout=_allowance(source.size - upload.offset))

    def _receive(self, name: str, file: BinaryIO, progress: Callable[[int], None]) -> str:
        """Fetch all of it; returns the digest of what came, hex."""
        failures, done = 0, 0
        with _Sink(file) as sink:
            while True:
                request = pb.DownloadArtifactRequest(name=name, offset=done)
                try:
                    for chunk in ChunkStub(self._session.channel("registry")).DownloadArtifact(request):
                        if chunk.offset != done:
                            raise DataLoss("the registry sent an artifact with a gap; fetch it again")
                        sink.take(chunk.data)
                        done += len(chunk.data)
                        progress(done)
                        failures = 0
                    return sink.sha256()
                except Unavailable as error:
                    failures += 1
                    if failures >= _ATTEMPTS_WITHOUT_PROGRESS:
                        raise
                    _pause(failures, error)


class _Sink:
    """Hashes and writes chunks while the next ones come in."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hasher = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="download")
        self._writing: deque[Future[None]] = deque()

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def take(self, data: bytes | memoryview) -> None:
        """Take the next chunk; raises OSError for an earlier one."""
        self._wait(_WAITING - 1)
        self._writing.append(self._pool.submit(self._write, data))

    def sha256(self) -> str:
        """Digest of everything, hex, once it is written."""
        self._wait(0)
        return self._hasher.hexdigest()

    def _wait(self, most: int) -> None:
        """Until at most so many chunks are not written."""
        while len(self._writing) > most:
            self._writing.popleft().result()

    def _write(self, data: bytes | memoryview) -> None:
        self._hasher.update(data)
        self._file.write(data)


def _together(works: Sequence[Callable[[], T]]) -> list[T]:
    """Do all of it, some at a time; what the first that fails raises, once those that run have ended."""
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="transfer") as pool:
        futures: list[Future[T]] = [pool.submit(work) for work in works]
        done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
        for future in waiting:
            future.cancel()
        for future in futures:
            if future in done:
                future.result()
        return [future.result() for future in futures]


def _one_at_a_time(progress: Progress) -> Progress:
    lock = threading.Lock()

    def told(name: str, done: int, total: int) -> None:
        with lock:
            progress(name, done, total)

    return told


class _Source:
    """What is uploaded: a file or bytes."""

    def __init__(self, content: Path | str | bytes) -> None:
        self._content = content if isinstance(content, bytes) else Path(content)
        self.name = "bytes" if isinstance(self._content, bytes) else self._content.name
        self.size = len(self._content) if isinstance(self._content, bytes) else self._content.stat().st_size

    def sha256(self) -> str:
        """Digest of the whole."""
        with self._open() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # any readable

    def chunks(self, upload: pb.Upload, progress: Progress) -> Iterator[bytes]:
        """Serialized messages from the server's offset to the end."""
        offset = upload.offset
        with self._open() as file:
            file.seek(offset)
            while data := file.read(min(CHUNK_BYTES, self.size - offset)):
                yield upload_request(upload.name, offset, data)
                offset += len(data)
                progress(self.name, offset, self.size)

    def _open(self) -> AbstractContextManager[BinaryIO]:
        return io.BytesIO(self._content) if isinstance(self._content, bytes) else self._content.open("rb")


def _allowance(size: int) -> float:
    return _PATIENCE_SECONDS + size / _SLOWEST_BYTES_PER_SECOND


def _pause(failures: int, error: SealaneError) -> None:
    time.sleep(max(0.1 * 2**failures, error.retry_after or 0.0))
