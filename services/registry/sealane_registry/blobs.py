"""Content-addressed files in a folder.

An upload is ``incoming/<id>`` until it is whole; then it is checked, synced and renamed to
``cas/sha256/ab/<hex>``. The server's offset is the file's size: the truth after any crash.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from sealane.errors import Aborted, DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted
from sealane.failpoint import failpoint

CHUNK_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_digest(sha256: str, field: str = "sha256") -> str:
    """A SHA-256 in lower-case hex.

    Raises:
        InvalidArgument: anything else.
    """
    if not _DIGEST.fullmatch(sha256):
        raise InvalidArgument(f"{field} is no SHA-256; send 64 lower-case hexadecimal digits", field=field)
    return sha256


class BlobFolder:
    """The folder. Methods block on the disk: call them off the event loop."""

    def __init__(self, root: Path) -> None:
        self._incoming = root / "incoming"
        self._blobs = root / "cas" / "sha256"
        for folder in (self._incoming, self._blobs):
            folder.mkdir(parents=True, exist_ok=True)

    def open_upload(self, upload: str) -> int:
        """Make room for an upload, or find it; returns the bytes held."""
        path = self._incoming / upload
        path.touch(mode=0o600)
        return path.stat().st_size

    def append(self, upload: str, offset: int, data: bytes, size: int) -> int:
        """Append a chunk; returns the new offset.

        Args:
            upload: id of the upload.
            offset: where the sender thinks the chunk starts.
            data: the chunk.
            size: declared size of the whole.

        Raises:
            Aborted: the server holds another number of bytes, or the upload has ended.
            InvalidArgument: more bytes than declared.
            ResourceExhausted: the disk is full.
        """
        path = self._incoming / upload
        held = self._held(upload)
        if offset != held:
            raise Aborted(
                f"the server holds {held} bytes, the chunk starts at {offset}; go on at {held}",
                reason="UPLOAD_OFFSET",
                offset=str(held),
            )
        if held + len(data) > size:
            raise InvalidArgument(
                f"{held + len(data)} bytes were sent, {size} were declared; start again with the right size",
                reason="UPLOAD_TOO_LONG",
            )
        try:
            with path.open("ab") as file:
                file.write(data)
        except OSError as error:
            os.truncate(path, held)
            raise ResourceExhausted("the disk took no more; free space and go on", retry_after=30.0) from error
        return held + len(data)

    def publish(self, upload: str, sha256: str, size: int) -> None:
        """Check an upload and make it visible.

        Raises:
            Aborted: the upload has ended. That a blob of this digest is there proves nothing: it may be
                another project's.
            FailedPrecondition: short (kept), or another digest (dropped).
        """
        path = self._incoming / upload
        held = self._held(upload)
        if held != size:
            raise FailedPrecondition(
                f"the upload holds {held} of {size} bytes; send the rest from offset {held}", reason="UPLOAD_SHORT"
            )
        if _digest_of(path) != sha256:
            path.unlink()
            raise FailedPrecondition(
                "the content does not match its digest; compute the digest again and upload anew",
                reason="DIGEST_MISMATCH",
            )
        target = self._path(sha256)
        target.parent.mkdir(exist_ok=True)
        _sync(path)
        failpoint("registry.before_publish")
        path.replace(target)
        _sync(target.parent)

    def discard(self, upload: str) -> None:
        """Remove what an upload holds, if it holds anything."""
        (self._incoming / upload).unlink(missing_ok=True)

    def keep_uploads(self, uploads: set[str]) -> None:
        """Remove what all other uploads hold."""
        for path in self._incoming.iterdir():
            if path.name not in uploads:
                path.unlink()

    def has(self, sha256: str) -> bool:
        """Whether the blob is stored."""
        return self._path(sha256).exists()

    def read(self, sha256: str, offset: int, length: int) -> Iterator[tuple[int, bytes]]:
        """Chunks (offset, data) of a blob, verified before the first one goes out.

        Raises:
            DataLoss: the stored file no longer matches its digest; it is set aside.
        """
        path = self._path(sha256)
        if not path.exists():
            raise DataLoss("the artifact's file is missing; upload it again")
        if _digest_of(path) != sha256:
            path.replace(path.with_suffix(".corrupt"))
            raise DataLoss("the stored artifact no longer matches its digest; upload it again")
        end = path.stat().st_size if length == 0 else min(offset + length, path.stat().st_size)
        with path.open("rb") as file:
            file.seek(offset)
            while offset < end:
                data = file.read(min(CHUNK_BYTES, end - offset))
                if not data:
                    return
                yield offset, data
                offset += len(data)

    def _held(self, upload: str) -> int:
        try:
            return (self._incoming / upload).stat().st_size
        except FileNotFoundError:
            # Only StartUpload makes the file: a late chunk must not bring a finished upload back.
            raise Aborted("the upload has ended; start it again to see what is held", reason="UPLOAD_ENDED") from None

    def _path(self, sha256: str) -> Path:
        return self._blobs / sha256[:2] / sha256


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
