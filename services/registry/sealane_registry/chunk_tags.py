"""Tags of a blob's chunks: what is read is checked chunk by chunk, so a range costs its own bytes alone.

A tag is AES-256-GMAC (NIST SP 800-38D) under a key of this registry and this blob: it costs a fifteenth of SHA-256, and
who can write into a bucket and has not the key cannot make one. They are made while the content is hashed, lie beside
the blob, and are made again, against its digest, where they are damaged, missing or of another key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CHUNK_BYTES = 1 << 20
KEY_BYTES = 32
_MAGIC = b"SLC1"
_TAG_BYTES = 16
_HEAD_BYTES = len(_MAGIC) + 32 + 8
_LIST_NONCE = b"\xff" * 12


class ChunkTags:
    """Makes and checks the tags of one blob.

    Args:
        key: of the registry, 32 bytes.
        sha256: of the blob, hex.
        size: of the blob, bytes.
    """

    def __init__(self, key: bytes, sha256: str, size: int) -> None:
        self._head = _MAGIC + bytes.fromhex(sha256) + size.to_bytes(8, "big")
        # Each nonce is used for one content alone: that of the digest which the key is derived from.
        self._key = hmac.digest(key, b"sealane/chunks/v1" + self._head, "sha256")
        self._cipher = AESGCM(self._key)
        self._count = -(-size // CHUNK_BYTES)

    def begin(self, index: int) -> _Tagging:
        """Begin the tag of a chunk that comes in pieces."""
        return _Tagging(self._key, _nonce(index))

    def matches(self, tags: bytes, index: int, chunk: bytes) -> bool:
        """Whether a chunk is the one that was stored."""
        wanted = tags[index * _TAG_BYTES : (index + 1) * _TAG_BYTES]
        return hmac.compare_digest(self._cipher.encrypt(_nonce(index), b"", chunk), wanted)

    def encode(self, tags: bytes) -> bytes:
        """The file that holds the tags: for which blob, the tags, and a tag over all."""
        body = self._head + tags
        return body + self._cipher.encrypt(_LIST_NONCE, b"", body)

    def decode(self, data: bytes | None) -> bytes | None:
        """The tags of such a file; None where it is none of this blob and key."""
        tags = data[_HEAD_BYTES:-_TAG_BYTES] if data is not None else b""
        if len(tags) != self._count * _TAG_BYTES or data != self.encode(tags):
            return None
        return tags


class _Tagging:
    """One tag, while its chunk comes in."""

    def __init__(self, key: bytes, nonce: bytes) -> None:
        self._encryptor = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
        self.taken = 0

    def update(self, data: memoryview) -> None:
        """Take the next bytes."""
        self._encryptor.authenticate_additional_data(data)
        self.taken += len(data)

    def tag(self) -> bytes:
        """The tag of what was taken."""
        self._encryptor.finalize()
        return self._encryptor.tag


class ChunkHasher:
    """SHA-256 of the whole and a tag of each chunk of 1 MiB, while the bytes come in."""

    def __init__(self, tags: ChunkTags) -> None:
        self._tags = tags
        self._whole = hashlib.sha256()
        self._done = bytearray()
        self._tagging: _Tagging | None = None
        self.size = 0

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._whole.update(data)
        self.size += len(data)
        view = memoryview(data)
        while view:
            tagging = self._tagging or self._tags.begin(len(self._done) // _TAG_BYTES)
            part = view[: CHUNK_BYTES - tagging.taken]
            tagging.update(part)
            view = view[len(part) :]
            self._tagging = tagging
            if tagging.taken == CHUNK_BYTES:
                self._next(tagging)

    def sha256(self) -> str:
        """Digest of the whole, hex."""
        return self._whole.hexdigest()

    def encoded(self) -> bytes:
        """The file that holds the tags, once all bytes are in."""
        if self._tagging is not None:
            self._next(self._tagging)
        return self._tags.encode(bytes(self._done))

    def _next(self, tagging: _Tagging) -> None:
        self._done += tagging.tag()
        self._tagging = None


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


def _nonce(index: int) -> bytes:
    return index.to_bytes(12, "big")
