"""Encrypted copies of artifacts, among the uploads and in the store: they open with the registry's secret alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from cryptography.exceptions import InvalidTag

from sealane.security import encrypted_blob
from sealane.security.encrypted_blob import (
    CHUNK_BYTES,
    HEADER_BYTES,
    RECORD_BYTES,
    TAG_BYTES,
    Records,
    RecordWriter,
    copy_key,
    copy_size,
    is_header,
    new_header,
    records_of,
)
from sealane_registry.beside import beside
from sealane_registry.blob_store import Damaged, OpenBlob
from sealane_registry.chunk_tags import regrouped
from sealane_registry.spool import Finished, Writing, append, create
from sealane_registry.store import UploadRow


def encrypted_key(sha256: str) -> str:
    """Where an encrypted copy lies in the store."""
    return f"encrypted/{sha256[:2]}/{sha256}"


class EncryptedForms:
    """Implements :class:`sealane_registry.spool.Forms`: uploads are encrypted as they come.

    Args:
        root: secret of the registry, 32 bytes.
    """

    def __init__(self, root: bytes) -> None:
        self._root = root

    def begin(self, path: Path, row: UploadRow) -> None:
        """See :class:`Forms`."""
        create(path, new_header())

    def resume(self, path: Path, row: UploadRow) -> Writing:
        """See :class:`Forms`."""
        return EncryptedWriting(path, row, self._root)


class EncryptedWriting:
    """Implements :class:`sealane_registry.spool.Writing`.

    An upload has a header of its own, and its sender has promised one content: no two are encrypted under one key.
    """

    def __init__(self, path: Path, row: UploadRow, root: bytes) -> None:
        self._path, self._row = path, row
        self._records = Records(copy_key(root, _header(path), row.sha256, row.size), row.sha256, row.size)
        self.held = _held(path, row.size)
        os.truncate(path, self._position(self.held))  # a record whose end did not get to the disk is sent again
        self._hasher = hashlib.sha256()
        self._hashed = 0
        self._writer: RecordWriter | None = None

    def append(self, data: bytes | memoryview) -> None:
        """See :class:`Writing`."""
        with beside(lambda: self._hash(data)):
            self._append(data)
        self.held += len(data)

    def _append(self, data: bytes | memoryview) -> None:
        view, index = memoryview(data), self.held // CHUNK_BYTES
        writer, pieces = self._writer or self._go_on(), []
        while view:
            whole = min(CHUNK_BYTES, self._row.size - index * CHUNK_BYTES)
            part = view[: whole - writer.taken]
            pieces.append(writer.update(part))
            view = view[len(part) :]
            if writer.taken == whole:
                pieces.append(writer.tag())
                index += 1
                writer = self._records.begin(index)
        self._writer = None  # what is on the disk is the truth, should it fail
        append(self._path, self._position(self.held), b"".join(pieces))
        self._writer = writer

    def _hash(self, data: bytes | memoryview) -> None:
        if self._hashed == self.held:  # else it was begun before the process, and is read at its end
            self._hasher.update(data)
            self._hashed += len(data)

    def sha256(self) -> str:
        """See :class:`Writing`."""
        if self._hashed != self.held:
            self._hasher, self._hashed = hashlib.sha256(), 0
            try:
                for chunk in self._stored_chunks():
                    self._hasher.update(chunk)
                    self._hashed += len(chunk)
            except InvalidTag:
                return ""  # the disk gave something else back
        return self._hasher.hexdigest()

    def finish(self) -> Finished:
        """See :class:`Writing`."""
        return Finished(self._path, encrypted_key(self._row.sha256))

    def _go_on(self) -> RecordWriter:
        """The record under way, with what the disk holds of it."""
        index, taken = divmod(self.held, CHUNK_BYTES)
        writer = self._records.begin(index)
        if taken:
            with self._path.open("rb") as file:
                file.seek(self._position(index * CHUNK_BYTES))
                writer.update(self._records.unfinished(index, file.read(taken)))
        return writer

    def _stored_chunks(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            file.seek(HEADER_BYTES)
            for index in range(records_of(self._row.size)):
                yield self._records.open(index, file.read(RECORD_BYTES))

    def _position(self, held: int) -> int:
        """Where the next byte goes."""
        whole = self._row.size if held == self._row.size else held // CHUNK_BYTES * CHUNK_BYTES
        return HEADER_BYTES + held + records_of(whole) * TAG_BYTES


def drop_in_the_clear(folder: Path) -> None:
    """Remove uploads that were begun before they were encrypted; their senders begin again."""
    for path in folder.iterdir() if folder.is_dir() else ():
        with path.open("rb") as file:
            encrypted = is_header(file.read(HEADER_BYTES))
        if not encrypted:
            path.unlink()


def _header(path: Path) -> bytes:
    """The header of an upload; a new one where a crash left half of it."""
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    if not is_header(header):
        header = new_header()
        os.truncate(path, 0)
        append(path, 0, header)
    return header


def _held(path: Path, size: int) -> int:
    """Bytes of the content that an upload's file holds."""
    records, rest = divmod(path.lstat().st_size - HEADER_BYTES, RECORD_BYTES)
    last = size - records * CHUNK_BYTES
    if 0 < last < CHUNK_BYTES and rest >= last + TAG_BYTES:
        return size
    return min(records * CHUNK_BYTES + (rest if rest < min(last, CHUNK_BYTES) else 0), size)


class EncryptedCopy:
    """Implements :class:`sealane_registry.blobs.Form`, and reads the copy as it lies there.

    Args:
        opened: the copy.
        root: secret of the registry.
        sha256: digest of the content, hex.

    Raises:
        Damaged: it is no copy.
    """

    def __init__(self, opened: OpenBlob, root: bytes, sha256: str) -> None:
        self._opened, self.stored = opened, opened.stored
        self.size = encrypted_blob.content_size(self.stored.size)
        header = b"".join(opened.read(0, min(HEADER_BYTES, self.stored.size)))
        if self.size < 0 or not is_header(header):
            raise Damaged
        self._header = header
        self._records = Records(copy_key(root, header, sha256, self.size), sha256, self.size)

    def chunks(self, first: int, end: int) -> Iterator[bytes]:
        """See :class:`Form`."""
        return (chunk for _, chunk in self._opened_records(first, end))

    def pieces(self, offset: int, length: int) -> Iterator[tuple[int, bytes]]:
        """Pieces (offset, bytes) of the copy itself, every record proved: at most a record and the header.

        Args:
            offset: first byte of the copy.
            length: most bytes; 0 for all.

        Raises:
            Damaged: it is not what was put there.
        """
        end = self.stored.size if length == 0 else min(offset + length, self.stored.size)
        if offset < min(HEADER_BYTES, end):
            yield offset, self._header[offset : min(HEADER_BYTES, end)]
        first = max(offset - HEADER_BYTES, 0) // RECORD_BYTES
        behind = -(-(end - HEADER_BYTES) // RECORD_BYTES)
        for index, (record, _) in enumerate(self._opened_records(first, behind), first):
            start = HEADER_BYTES + index * RECORD_BYTES
            if offset < start + len(record):
                yield max(start, offset), record[max(offset - start, 0) : end - start]

    def close(self) -> None:
        """See :class:`Form`."""
        self._opened.close()

    def _opened_records(self, first: int, end: int) -> Iterator[tuple[bytes, bytes]]:
        """Records from one to before another, and their chunks."""
        if first >= end:
            return
        start = HEADER_BYTES + first * RECORD_BYTES
        length = min(HEADER_BYTES + end * RECORD_BYTES, self.stored.size) - start
        index = first
        for record in regrouped(self._opened.read(start, length), RECORD_BYTES):
            try:
                yield record, self._records.open(index, record)
            except InvalidTag as error:
                raise Damaged from error
            index += 1
        if index < end:
            raise Damaged


def encrypt_to(path: Path, chunks: Iterator[bytes], root: bytes, artifact: tuple[str, int]) -> None:
    """Write an encrypted copy to a new file.

    Args:
        path: the file.
        chunks: the content, in chunks of 1 MiB.
        root: secret of the registry.
        artifact: SHA-256 and size of the content.
    """
    header = new_header()
    records = Records(copy_key(root, header, *artifact), *artifact)
    create(path, header)
    at = HEADER_BYTES
    for index, chunk in enumerate(chunks):
        append(path, at, record := records.seal(index, chunk))
        at += len(record)
    if at != copy_size(artifact[1]):
        raise Damaged
