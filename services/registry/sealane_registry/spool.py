"""Uploads under way: a file each in ``incoming/``, whose length is the truth after any crash.

The digests are kept while the bytes come in, so that a finished upload is not read again; only what was begun before
the process started is.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sealane.errors import Aborted, FailedPrecondition, InvalidArgument
from sealane.failpoint import failpoint
from sealane_registry.blob_folder import disk_error, sync
from sealane_registry.store import UploadRow

#: Uploads whose digests are kept in memory; those of others are computed at their end.
MAX_KEPT = 64


@dataclass(frozen=True, slots=True)
class Finished:
    """A whole and verified upload, in the form in which it is stored.

    Args:
        path: the file.
        key: where it goes in the store.
        beside: key and content of what must be there before it; None for nothing.
    """

    path: Path
    key: str
    beside: tuple[str, bytes] | None = None


class Writing(Protocol):
    """The form in which one upload lies on the disk."""

    held: int
    """Bytes of the content that are held."""

    def append(self, data: bytes | memoryview) -> None:
        """Take the next bytes; raises OSError, and then the disk holds what it held, and this is not used again."""
        ...

    def sha256(self) -> str:
        """Digest of what is held, hex."""
        ...

    def finish(self) -> Finished:
        """What is stored."""
        ...


class Forms(Protocol):
    """Makes the form of an upload, and finds it again."""

    def begin(self, path: Path, row: UploadRow) -> None:
        """Make the file of a new upload."""
        ...

    def resume(self, path: Path, row: UploadRow) -> Writing:
        """Go on with an upload; raises FileNotFoundError where it has ended."""
        ...


class Spool:
    """The folder. Methods block on the disk, and one upload is used by one caller at a time.

    Args:
        folder: the folder.
        forms: in which form uploads lie there.
    """

    def __init__(self, folder: Path, forms: Forms) -> None:
        self._folder = folder
        self._forms = forms
        self._kept: OrderedDict[str, Writing] = OrderedDict()
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def open(self, row: UploadRow) -> int:
        """Make room for an upload, or find it; returns the bytes held."""
        path = self._folder / row.upload
        if not path.exists():
            try:
                self._forms.begin(path, row)
            except OSError as error:
                self.discard(row.upload)
                raise disk_error(error) from error
        return self._writing(row).held

    def append(self, row: UploadRow, offset: int, data: bytes | memoryview) -> int:
        """Append a chunk; returns the new offset.

        Args:
            row: the upload.
            offset: where the sender thinks the chunk starts.
            data: the chunk.

        Raises:
            Aborted: the server holds another number of bytes, or the upload has ended.
            InvalidArgument: more bytes than declared.
            ResourceExhausted: the disk is full.
        """
        writing = self._writing(row)
        held = writing.held
        if offset != held:
            raise Aborted(
                f"the server holds {held} bytes, the chunk starts at {offset}; go on at {held}",
                reason="UPLOAD_OFFSET",
                offset=str(held),
            )
        if held + len(data) > row.size:
            raise InvalidArgument(
                f"{held + len(data)} bytes were sent, {row.size} were declared; start again with the right size",
                reason="UPLOAD_TOO_LONG",
            )
        try:
            writing.append(data)
        except OSError as error:
            # It may have hashed what the disk did not take: the next chunk finds what the disk holds.
            self._forget(row.upload)
            raise disk_error(error) from error
        return writing.held

    def finish(self, row: UploadRow) -> Finished:
        """Check an upload and have the disk keep it. Its file stays until it is discarded.

        Raises:
            Aborted: the upload has ended. That a blob of this digest is there proves nothing: it may be
                another project's.
            FailedPrecondition: short (kept), or another digest (dropped).
        """
        writing = self._writing(row)
        if writing.held != row.size:
            raise FailedPrecondition(
                f"the upload holds {writing.held} of {row.size} bytes; send the rest from offset {writing.held}",
                reason="UPLOAD_SHORT",
            )
        if writing.sha256() != row.sha256:
            self.discard(row.upload)
            raise FailedPrecondition(
                "the content does not match its digest; compute the digest again and upload anew",
                reason="DIGEST_MISMATCH",
            )
        try:
            done = writing.finish()
            sync(done.path)
        except OSError as error:
            # What a failed sync left in memory may never reach the disk, and a second sync would not tell.
            self.discard(row.upload)
            raise disk_error(error) from error
        failpoint("registry.before_publish")
        return done

    def discard(self, upload: str) -> None:
        """Remove what an upload holds, if it holds anything."""
        self._forget(upload)
        (self._folder / upload).unlink(missing_ok=True)

    def keep_only(self, uploads: set[str]) -> None:
        """Remove what all other uploads hold."""
        for path in self._folder.iterdir():
            if path.name not in uploads:
                path.unlink()

    def _forget(self, upload: str) -> None:
        with self._lock:
            self._kept.pop(upload, None)

    def _writing(self, row: UploadRow) -> Writing:
        with self._lock:
            kept = self._kept.pop(row.upload, None)
        if kept is None:
            try:
                kept = self._forms.resume(self._folder / row.upload, row)
            except FileNotFoundError:
                # Only StartUpload makes the file: a late chunk must not bring a finished upload back.
                raise Aborted(
                    "the upload has ended; start it again to see what is held", reason="UPLOAD_ENDED"
                ) from None
            except OSError as error:
                raise disk_error(error) from error
        with self._lock:
            self._kept[row.upload] = kept
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return kept


def create(path: Path, content: bytes) -> None:
    """Make a file for its owner alone; one that is there is not touched."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)


def append(path: Path, at: int, data: bytes | memoryview) -> None:
    """Write at the end of a file, all or nothing.

    Raises:
        FileNotFoundError: it is gone.
        OSError: the disk is full or fails; nothing was added.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        view, offset = memoryview(data), at
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written
    except OSError:
        os.ftruncate(descriptor, at)
        raise
    finally:
        os.close(descriptor)
