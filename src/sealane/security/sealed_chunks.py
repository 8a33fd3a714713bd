"""Plaintexts of sealed payloads in chunks (docs/sealed-protocol.md): AES-256-GCM, and what each chunk is bound to."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealane.security.length_prefixed import lp

CHUNK_BYTES = 1 << 20
TAG_BYTES = 16
REQUEST, RESPONSE = b"request", b"response"
#: Prefix of the nonces of a key that seals one thing alone.
ALONE = bytes(4)

#: A chunk, or the part of a message that it is.
Chunk = bytes | memoryview


class ChunkCipher:
    """AES-256-GCM over chunks of 1 MiB.

    Args:
        key: 32 bytes.
        direction: of what is sealed with it; bound with each chunk.
    """

    def __init__(self, key: bytes, direction: bytes) -> None:
        self._cipher = AESGCM(key)
        self._direction = lp(direction)

    def seal(self, digest: bytes, plaintext: bytes, prefix: bytes = ALONE) -> list[bytes]:
        """The chunks of a plaintext; an empty one has one.

        Args:
            digest: what they are bound to.
            plaintext: bytes.
            prefix: first bytes of each nonce: what tells uses of the key apart.
        """
        view, total, bound = memoryview(plaintext), chunk_count(plaintext), self._direction + lp(digest)
        return [
            self._cipher.encrypt(
                _nonce(prefix, index, total), view[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES], bound + lp(index)
            )
            for index in range(total)
        ]

    def seal_into(self, digest: bytes, parts: Sequence[Chunk], places: Sequence[memoryview], prefix: bytes) -> None:
        """The same into places that are there, each 16 bytes longer than its part."""
        bound = self._direction + lp(digest)
        for index, (part, place) in enumerate(zip(parts, places, strict=True)):
            self._cipher.encrypt_into(_nonce(prefix, index, len(parts)), part, bound + lp(index), place)

    def open(self, digest: bytes, chunks: Sequence[Chunk], prefix: bytes = ALONE) -> bytes | bytearray:
        """The plaintext of chunks.

        Raises:
            InvalidTag: anything at all is not as it was sealed.
        """
        sizes = [len(chunk) - TAG_BYTES for chunk in chunks]
        # All but the last are full, and even an empty plaintext has one: without any, nothing would be authentic.
        if not sizes or set(sizes[:-1]) - {CHUNK_BYTES} or not 0 <= sizes[-1] <= CHUNK_BYTES:
            raise InvalidTag
        total, bound = len(chunks), self._direction + lp(digest)
        if total == 1:
            return self._cipher.decrypt(_nonce(prefix, 0, 1), chunks[0], bound + lp(0))
        plaintext = bytearray(sum(sizes))  # in one piece from the start: large ones are not joined by copying
        view, at = memoryview(plaintext), 0
        for index, (chunk, size) in enumerate(zip(chunks, sizes, strict=True)):
            nonce = _nonce(prefix, index, total)
            self._cipher.decrypt_into(nonce, chunk, bound + lp(index), view[at : at + size])
            at += size
        return plaintext


def chunk_count(plaintext: bytes) -> int:
    """Chunks that a plaintext takes; an empty one takes one."""
    return max(1, -(-len(plaintext) // CHUNK_BYTES))


def _nonce(prefix: bytes, index: int, total: int) -> bytes:
    """Prefix, index and last flag, so that truncation shows: 12 bytes."""
    return prefix + struct.pack(">II", index, int(index == total - 1))
