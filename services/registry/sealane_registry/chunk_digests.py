"""Digests of a blob's chunks: what is read is checked chunk by chunk, so a range costs its own bytes alone.

They lie beside the blob. A list that is damaged or missing is made again from the blob, against its whole digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

CHUNK_BYTES = 1 << 20
_MAGIC = b"SLC1"
_DIGEST_BYTES = 32


class ChunkHasher:
    """SHA-256 of the whole and of each chunk of 1 MiB, while the bytes come in."""

    def __init__(self) -> None:
        self._whole = hashlib.sha256()
        self._chunk = hashlib.sha256()
        self._in_chunk = 0
        self._digests = bytearray()
        self.size = 0

    def update(self, data: bytes) -> None:
        """Take the next bytes."""
        self._whole.update(data)
        self.size += len(data)
        view = memoryview(data)
        while view:
            part = view[: CHUNK_BYTES - self._in_chunk]
            self._chunk.update(part)
            self._in_chunk += len(part)
            view = view[len(part) :]
            if self._in_chunk == CHUNK_BYTES:
                self._next()

    def sha256(self) -> str:
        """Digest of the whole, hex."""
        return self._whole.hexdigest()

    def digests(self) -> bytes:
        """Digests of the chunks, one after the other, once all bytes are in."""
        if self._in_chunk:
            self._next()
        return bytes(self._digests)

    def _next(self) -> None:
        self._digests += self._chunk.digest()
        self._chunk, self._in_chunk = hashlib.sha256(), 0


def encode(sha256: str, size: int, digests: bytes) -> bytes:
    """The file that holds the digests: for which blob, the digests, and a checksum."""
    body = _MAGIC + bytes.fromhex(sha256) + size.to_bytes(8, "big") + digests
    return body + hashlib.sha256(body).digest()


def decode(data: bytes | None, sha256: str, size: int) -> bytes | None:
    """The digests of such a file; None where it is none of this blob."""
    if data is None or hashlib.sha256(data[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:]:
        return None
    digests = data[len(_MAGIC) + _DIGEST_BYTES + 8 : -_DIGEST_BYTES]
    fits = len(digests) == _DIGEST_BYTES * -(-size // CHUNK_BYTES)
    return digests if fits and data == encode(sha256, size, digests) else None


def matches(digests: bytes, index: int, chunk: bytes) -> bool:
    """Whether a chunk is the one that was stored."""
    return hashlib.sha256(chunk).digest() == digests[index * _DIGEST_BYTES : (index + 1) * _DIGEST_BYTES]


def regrouped(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of `size`, the last one shorter."""
    rest = b""
    for piece in pieces:
        if not rest and len(piece) == size:
            yield piece
            continue
        joined, at = rest + piece, 0
        while len(joined) - at >= size:
            yield joined[at : at + size]
            at += size
        rest = joined[at:]
    if rest:
        yield rest
