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
from functools import partial
from pathlib import Path
from typing import Protocol

from sealane.errors import DataLoss, FailedPrecondition, InvalidArgument
from sealane.security.encrypted_blob import HEADER_BYTES, copy_key, is_header
from sealane_registry.blob_folder import sync
from sealane_registry.blob_store import BlobStore, Damaged, OpenBlob, Stored
from sealane_registry.chunk_tags import CHUNK_BYTES
from sealane_registry.encrypted_copies import EncryptedCopy, encrypt_to, encrypted_key
from sealane_registry.plain_copies import CHUNKS, PlainCopy, plain_key
from sealane_registry.spool import Finished

log = logging.getLogger("sealane.registry.blobs")

CORRUPT = "BLOB_CORRUPT"
_TRASH = "trash/"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored blob.

    Args:
        sha256: its digest, hex.
        size: bytes as they are stored.
        modified: when it was published last, seconds since 1970, by the store's clock.
        key: where it lies in the store.
    """

    sha256: str
    size: int
    modified: float
    key: str


@dataclass(frozen=True, slots=True)
class Encryption:
    """How blobs are encrypted.

    Args:
        root: secret that the keys of copies come from, 32 bytes.
        scratch: folder for copies that are being made; emptied at a start.
    """

    root: bytes
    scratch: Path


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
        encryption: how they are encrypted; None where they lie in the clear.
    """

    def __init__(self, store: BlobStore, key: bytes, encryption: Encryption | None = None) -> None:
        self._store = store
        self._key = key
        self._encryption = encryption

    def publish(self, done: Finished) -> None:
        """Make a finished upload visible, under its digest."""
        if done.beside is not None:
            self._store.put_bytes(*done.beside)
        self._store.put(done.key, done.path)

    def has(self, sha256: str) -> bool:
        """Whether the blob is stored; its content is verified when it is read."""
        return any(self._store.stat(key) is not None for key in self._places(sha256))

    def in_the_clear(self) -> Iterator[Blob]:
        """Blobs that lie in the clear though the registry encrypts: those of before."""
        return (blob for blob in self._below("sha256/") if self._encryption is not None)

    def drop_left_overs(self) -> None:
        """Remove what lies set aside in the clear though the registry encrypts: it was kept to be looked at."""
        for stored in list(self._store.list("corrupt/")) if self._encryption is not None else ():
            if not self._is_encrypted(stored.key):
                self._store.delete(stored.key)

    def encrypt(self, sha256: str, pace: Callable[[int], None] = lambda size: None) -> None:
        """Put an encrypted copy in the place of one in the clear.

        Args:
            sha256: the blob.
            pace: told the size of each chunk that was read; may wait, or raise to stop.

        Raises:
            DataLoss: it no longer matches its digest and was set aside.
        """
        encryption, opened = self._encrypts(), self._store.open(plain_key(sha256))
        if opened is None:
            return  # somebody was faster
        form, scratch = self._plain(sha256, opened), encryption.scratch / f"encrypting-{secrets.token_hex(8)}"
        try:
            encrypt_to(scratch, _checked(form, sha256, pace), encryption.root, (sha256, form.size))
            sync(scratch)
            self._store.put(encrypted_key(sha256), scratch)
        except Damaged as damaged:
            raise self._set_aside(sha256, form.stored) from damaged
        finally:
            form.close()
            scratch.unlink(missing_ok=True)
        self._store.delete(plain_key(sha256) + CHUNKS)
        self._store.delete(plain_key(sha256))

    def key_of(self, sha256: str, size: int, header: bytes) -> bytes:
        """The key of an encrypted copy.

        Args:
            sha256: of the content.
            size: of the content, bytes.
            header: of the copy.

        Raises:
            FailedPrecondition: nothing is encrypted here (NOT_ENCRYPTED).
            InvalidArgument: no header.
        """
        root = self._encrypts().root
        if not is_header(header):
            raise InvalidArgument("header must be the first 20 bytes of the encrypted copy", field="header")
        return copy_key(root, header, sha256, size)

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

    def read_encrypted(self, sha256: str, offset: int, length: int) -> Generator[tuple[int, bytes], None, None]:
        """Pieces (offset, data) of the encrypted copy, each of at most 1 MiB and 64 bytes, verified.

        Args:
            sha256: the blob.
            offset: first byte of the copy.
            length: most bytes; 0 for all.

        Raises:
            DataLoss: as :meth:`read`.
            FailedPrecondition: nothing is encrypted here (NOT_ENCRYPTED).
        """
        root = self._encrypts().root
        opened = self._store.open(encrypted_key(sha256))
        if opened is None:
            self.encrypt(sha256)
            opened = self._store.open(encrypted_key(sha256))
        if opened is None:
            raise _missing()
        form = self._encrypted(sha256, opened, root)
        try:
            yield from form.pieces(offset, length)
        except Damaged as damaged:
            raise self._set_aside(sha256, form.stored) from damaged
        finally:
            form.close()

    def verify(self, sha256: str) -> Iterator[int]:
        """Read a blob through and check its digest too; gives the sizes of its chunks as they are read.

        Raises:
            DataLoss: as :meth:`read`.
        """
        form = self._open(sha256)
        try:
            for chunk in _checked(form, sha256, lambda size: None):
                yield len(chunk)
        except Damaged as damaged:
            raise self._set_aside(sha256, form.stored) from damaged
        finally:
            form.close()

    def list(self) -> Iterator[Blob]:
        """All blobs, in no order; one that is being encrypted may come twice."""
        yield from self._below("sha256/")
        yield from self._below("encrypted/")

    def remove(self, blob: Blob, free: Callable[[], bool]) -> bool:
        """Remove a blob that nobody has; whether it was removed.

        Somebody may upload the same content at the same time, here or in another process. So it is first moved out of
        sight and then asked about again: who recorded it before finds it brought back, and who records it later finds
        it missing (:meth:`has`, after the record) and publishes it anew.

        Args:
            blob: as it was listed; one that was published since stays.
            free: whether no project has it; asked twice.
        """
        stored = self._store.stat(blob.key)
        if stored is None or stored.modified != blob.modified or not free():
            return False
        trash = f"{_TRASH}{stored.key}.{secrets.token_hex(8)}"
        if not self._store.move(stored, trash):
            return False
        moved = self._store.stat(trash)
        return moved is None or self._decide(moved, free)

    def empty_trash(self, free: Callable[[str], bool]) -> None:
        """End the removals that a crash cut short; only while none is under way.

        Args:
            free: whether no project has a digest.
        """
        for moved in list(self._store.list(_TRASH)):
            sha256 = moved.key.rpartition("/")[2].partition(".")[0]
            self._decide(moved, partial(free, sha256))

    def _decide(self, moved: Stored, free: Callable[[], bool]) -> bool:
        """Delete what was moved out of sight, or bring it back; whether it is gone."""
        key = moved.key.removeprefix(_TRASH).rpartition(".")[0]
        if gone := free():
            self._store.delete(key + CHUNKS)  # where it lay in the clear
        elif self._store.stat(key) is None:
            self._store.move(moved, key)
        self._store.delete(moved.key)
        return gone

    def _below(self, prefix: str) -> Iterator[Blob]:
        for stored in self._store.list(prefix):
            if _DIGEST.fullmatch(name := stored.key.rpartition("/")[2]):
                yield Blob(name, stored.size, stored.modified, stored.key)

    def _places(self, sha256: str) -> tuple[str, ...]:
        """Where a blob may lie. Once it is gone from the second place it was encrypted, and is in the first."""
        if self._encryption is None:
            return (plain_key(sha256),)
        return encrypted_key(sha256), plain_key(sha256), encrypted_key(sha256)

    def _encrypts(self) -> Encryption:
        if self._encryption is None:
            raise FailedPrecondition(
                "the registry does not encrypt its artifacts; set SEALANE_REGISTRY_MASTER_KEY_FILE there",
                reason="NOT_ENCRYPTED",
            )
        return self._encryption

    def _open(self, sha256: str) -> Form:
        for key in self._places(sha256):
            opened = self._store.open(key)
            if opened is not None:
                if key == plain_key(sha256):
                    return self._plain(sha256, opened)
                return self._encrypted(sha256, opened, self._encrypts().root)
        raise _missing()

    def _encrypted(self, sha256: str, opened: OpenBlob, root: bytes) -> EncryptedCopy:
        try:
            return EncryptedCopy(opened, root, sha256)
        except Damaged as damaged:
            opened.close()
            raise self._set_aside(sha256, opened.stored) from damaged

    def _plain(self, sha256: str, opened: OpenBlob) -> PlainCopy:
        try:
            return PlainCopy(self._store, opened, self._key, sha256)
        except Damaged as damaged:
            opened.close()
            raise self._set_aside(sha256, opened.stored) from damaged

    def _is_encrypted(self, key: str) -> bool:
        opened = self._store.open(key)
        if opened is None:
            return True  # it is gone
        try:
            return is_header(b"".join(opened.read(0, min(HEADER_BYTES, opened.stored.size))))
        finally:
            opened.close()

    def _set_aside(self, sha256: str, stored: Stored) -> DataLoss:
        moved = self._store.move(stored, place := f"corrupt/{sha256}.{secrets.token_hex(8)}")
        if moved and self._encryption is not None and stored.key == plain_key(sha256):
            self._store.delete(place)  # what is left of it is readable
        log.error("a stored artifact no longer matches its digest", extra={"sha256": sha256, "set_aside": moved})
        return DataLoss("the stored artifact no longer matches its digest; upload it again", reason=CORRUPT)


def _missing() -> DataLoss:
    return DataLoss("the artifact's file is missing; upload it again", reason="BLOB_MISSING")


def _checked(form: Form, sha256: str, pace: Callable[[int], None]) -> Iterator[bytes]:
    """All chunks of a blob; raises Damaged at the end where its digest is another one."""
    hasher = hashlib.sha256()
    for chunk in form.chunks(0, -(-form.size // CHUNK_BYTES)):
        hasher.update(chunk)
        pace(len(chunk))
        yield chunk
    if hasher.hexdigest() != sha256:
        raise Damaged
