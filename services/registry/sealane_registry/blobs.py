"""Content-addressed blobs: published whole, read chunk by chunk against their digests, set aside once they differ.

Nothing that differs goes out. The digest of the whole is checked before a blob is published, by the scrub, and by who
receives it.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

from sealane.errors import DataLoss, InvalidArgument
from sealane_registry.blob_store import BlobStore, OpenBlob, Stored, read_all
from sealane_registry.chunk_tags import CHUNK_BYTES, ChunkHasher, ChunkTags, regrouped
from sealane_registry.spool import CHUNKS, Finished, plain_key

log = logging.getLogger("sealane.registry.blobs")

CORRUPT = "BLOB_CORRUPT"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Damaged(Exception):
    """What lies in the store is not what was put there."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored blob.

    Args:
        sha256: its digest, hex.
        size: bytes as they are stored.
        modified: when it was published last, seconds since 1970, by the store's clock.
    """

    sha256: str
    size: int
    modified: float


class Form(Protocol):
    """How one opened blob lies in the store."""

    size: int
    """Bytes of its content."""

    stored: Stored
    """What was opened."""

    def chunks(self, first: int, end: int) -> Iterator[bytes]:
        """Its chunks from one to before another, each verified; raises Damaged."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def check_digest(sha256: str, field: str = "sha256") -> str:
    """A SHA-256 in lower-case hex.

    Raises:
        InvalidArgument: anything else.
    """
    if not _DIGEST.fullmatch(sha256):
        raise InvalidArgument(f"{field} is no SHA-256; send 64 lower-case hexadecimal digits", field=field)
    return sha256


class Blobs:
    """The blobs of a store. Methods block: call them off the event loop.

    Args:
        store: where they lie.
        key: of the tags of chunks, 32 bytes.
    """

    def __init__(self, store: BlobStore, key: bytes) -> None:
        self._store = store
        self._key = key

    def publish(self, done: Finished) -> None:
        """Make a finished upload visible, under its digest."""
        self._store.put_bytes(*done.beside)
        self._store.put(done.key, done.path)

    def has(self, sha256: str) -> bool:
        """Whether the blob is stored; its content is verified when it is read."""
        return self._store.stat(plain_key(sha256)) is not None

    def read(self, sha256: str, offset: int, length: int) -> Generator[tuple[int, bytes], None, None]:
        """Pieces (offset, data) of at most 1 MiB, verified.

        Args:
            sha256: the blob.
            offset: first byte.
            length: most bytes; 0 for all.

        Raises:
            DataLoss: it is missing (BLOB_MISSING), or no longer matches its digest and was set aside (BLOB_CORRUPT).
        """
        form = self._open(sha256)
        try:
            end = form.size if length == 0 else min(offset + length, form.size)
            first, behind = offset // CHUNK_BYTES, -(-end // CHUNK_BYTES)
            for index, chunk in enumerate(form.chunks(first, behind), first):
                start = index * CHUNK_BYTES
                yield max(start, offset), chunk[max(offset - start, 0) : end - start]
        except Damaged as damaged:
            raise self._set_aside(sha256, form.stored) from damaged
        finally:
            form.close()

    def verify(self, sha256: str) -> Iterator[int]:
        """Read a blob through and check its digest too; gives the sizes of its chunks as they are read.

        Raises:
            DataLoss: as :meth:`read`.
        """
        form, hasher = self._open(sha256), hashlib.sha256()
        try:
            for chunk in form.chunks(0, -(-form.size // CHUNK_BYTES)):
                hasher.update(chunk)
                yield len(chunk)
            if hasher.hexdigest() != sha256:
                raise Damaged
        except Damaged as damaged:
            raise self._set_aside(sha256, form.stored) from damaged
        finally:
            form.close()

    def list(self) -> Iterator[Blob]:
        """All blobs, in no order."""
        for stored in self._store.list("sha256/"):
            if _DIGEST.fullmatch(name := stored.key.rpartition("/")[2]):
                yield Blob(name, stored.size, stored.modified)

    def remove(self, blob: Blob, free: Callable[[], bool]) -> bool:
        """Remove a blob that nobody has; whether it was removed.

        Somebody may upload the same content at the same time, here or in another process. So it is first moved out of
        sight and then asked about again: who recorded it before finds it brought back, and who records it later finds
        it missing (:meth:`has`, after the record) and publishes it anew.

        Args:
            blob: as it was listed; one that was published since stays.
            free: whether no project has it; asked twice.
        """
        stored = self._store.stat(plain_key(blob.sha256))
        if stored is None or stored.modified != blob.modified or not free():
            return False
        trash = f"trash/{blob.sha256}.{secrets.token_hex(8)}"
        if not self._store.move(stored, trash):
            return False
        moved = self._store.stat(trash)
        if moved is not None and not free():
            if self._store.stat(stored.key) is None:
                self._store.move(moved, stored.key)
            self._store.delete(trash)
            return False
        self._store.delete(stored.key + CHUNKS)
        self._store.delete(trash)
        return True

    def _open(self, sha256: str) -> Form:
        opened = self._store.open(plain_key(sha256))
        if opened is None:
            raise DataLoss("the artifact's file is missing; upload it again", reason="BLOB_MISSING")
        try:
            tags = ChunkTags(self._key, sha256, opened.stored.size)
            return _Plain(opened, tags, self._tags(sha256, opened, tags))
        except Damaged as damaged:
            opened.close()
            raise self._set_aside(sha256, opened.stored) from damaged

    def _tags(self, sha256: str, opened: OpenBlob, tags: ChunkTags) -> bytes:
        """The tags of a blob's chunks, made anew where there are none."""
        key = opened.stored.key + CHUNKS
        known = tags.decode(read_all(self._store, key))
        if known is not None:
            return known
        hasher = ChunkHasher(tags)
        for piece in opened.read(0, opened.stored.size):
            hasher.update(piece)
        if hasher.size != opened.stored.size or hasher.sha256() != sha256:
            raise Damaged
        self._store.put_bytes(key, made := hasher.encoded())
        return tags.decode(made) or b""

    def _set_aside(self, sha256: str, stored: Stored) -> DataLoss:
        moved = self._store.move(stored, f"corrupt/{sha256}.{secrets.token_hex(8)}")
        log.error("a stored artifact no longer matches its digest", extra={"sha256": sha256, "set_aside": moved})
        return DataLoss("the stored artifact no longer matches its digest; upload it again", reason=CORRUPT)


class _Plain:
    """Implements :class:`Form`: the content as it is, with a tag for each chunk."""

    def __init__(self, opened: OpenBlob, tags: ChunkTags, known: bytes) -> None:
        self._opened, self._tags, self._known = opened, tags, known
        self.stored, self.size = opened.stored, opened.stored.size

    def chunks(self, first: int, end: int) -> Iterator[bytes]:
        """See :class:`Form`."""
        start = first * CHUNK_BYTES
        length = min(end * CHUNK_BYTES, self.size) - start
        index = first
        for chunk in regrouped(self._opened.read(start, length), CHUNK_BYTES):
            if not self._tags.matches(self._known, index, chunk):
                raise Damaged
            yield chunk
            index += 1
        if index < end:
            raise Damaged

    def close(self) -> None:
        """See :class:`Form`."""
        self._opened.close()
