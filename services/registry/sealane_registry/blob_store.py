"""Where finished, verified blobs lie. A folder or an object store: both pass one suite of tests.

Keys are made by :mod:`sealane_registry.blobs` alone, such as ``sha256/ab/abcd...``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Damaged(Exception):
    """What lies in the store is not what was put there."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What lies under a key.

    Args:
        key: the key.
        size: bytes.
        modified: when it was put, seconds since 1970, by the store's clock.
        tag: another one after every put.
    """

    key: str
    size: int
    modified: float
    tag: str


class OpenBlob(Protocol):
    """One blob as it was when it was opened: what is put under its key later is another one."""

    @property
    def stored(self) -> Stored:
        """What was found."""
        ...

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        """Pieces of `length` bytes from `offset`, of any size; fewer bytes where the blob ends early.

        Raises:
            DataLoss: it is gone.
            Unavailable: the store is out of reach, or what lies there is another blob by now.
        """
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class BlobStore(Protocol):
    """The store. Methods block; all raise Unavailable with a hint where it is out of reach."""

    def put(self, key: str, source: Path) -> None:
        """Put a local file under a key, over what is there; it is seen whole or not at all, and is kept after this.

        The source stays.

        Raises:
            ResourceExhausted: it is full.
        """
        ...

    def put_bytes(self, key: str, data: bytes) -> None:
        """The same with a few bytes."""
        ...

    def stat(self, key: str) -> Stored | None:
        """What lies under a key."""
        ...

    def open(self, key: str) -> OpenBlob | None:
        """Open what lies under a key."""
        ...

    def move(self, stored: Stored, key: str) -> bool:
        """Put what was found under another key; false, and nothing is moved, where another one lies there by now."""
        ...

    def delete(self, key: str) -> None:
        """Remove what lies under a key, if anything does."""
        ...

    def list(self, prefix: str) -> Iterator[Stored]:
        """Everything below a prefix, which ends with a slash, in no order."""
        ...


def read_all(store: BlobStore, key: str) -> bytes | None:
    """The bytes of something small; None where nothing is."""
    opened = store.open(key)
    if opened is None:
        return None
    try:
        return b"".join(opened.read(0, opened.stored.size))
    finally:
        opened.close()
