"""Encrypted copies of artifacts (format: docs/encryption.md): pure, bytes in and bytes out.

A copy is a header, ``SLE1`` and 16 random bytes, and a record for each MiB of the content: AES-256-GCM with the number
of the record as its nonce, bound to digest and size of the whole. Its key is HKDF-SHA256 (RFC 5869) of the registry's
root secret with the header as salt: every copy has a key of its own, and one that is released tells nothing of others.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sealane.security import suites

CHUNK_BYTES = 1 << 20
TAG_BYTES = 16
RECORD_BYTES = CHUNK_BYTES + TAG_BYTES
KEY_BYTES = 32
_MAGIC = b"SLE1"
HEADER_BYTES = len(_MAGIC) + 16


def new_header() -> bytes:
    """The header of a new copy, which its key is made from."""
    return _MAGIC + os.urandom(HEADER_BYTES - len(_MAGIC))


def is_header(data: bytes) -> bool:
    """Whether these bytes are a header."""
    return len(data) == HEADER_BYTES and data.startswith(_MAGIC)


def records_of(size: int) -> int:
    """Number of records of a content of so many bytes."""
    return -(-size // CHUNK_BYTES)


def copy_size(size: int) -> int:
    """Bytes of an encrypted copy of a content of so many bytes."""
    return HEADER_BYTES + size + records_of(size) * TAG_BYTES


def content_size(copied: int) -> int:
    """Bytes of the content of a copy of so many bytes; negative for what is no whole copy."""
    records = -(-(copied - HEADER_BYTES) // RECORD_BYTES)
    size = copied - HEADER_BYTES - records * TAG_BYTES
    return size if copied >= HEADER_BYTES and records_of(size) == records else -1


def copy_key(root: bytes, header: bytes, sha256: str, size: int) -> bytes:
    """The key of one copy.

    Args:
        root: secret of the registry, 32 bytes.
        header: of the copy.
        sha256: of the content, hex.
        size: of the content, bytes.
    """
    info = b"sealane/encrypted-copy/v1" + bytes.fromhex(sha256) + size.to_bytes(8, "big")
    return HKDF(hashes.SHA256(), KEY_BYTES, header, info).derive(root)


class Records:
    """Seals and opens the records of one copy.

    Args:
        key: of the copy.
        sha256: of the content, hex.
        size: of the content, bytes.
    """

    def __init__(self, key: bytes, sha256: str, size: int) -> None:
        self._key = key
        self._cipher = AESGCM(key)
        self._bound = _MAGIC + bytes.fromhex(sha256) + size.to_bytes(8, "big")

    def seal(self, index: int, chunk: bytes) -> bytes:
        """The record of a chunk. Another content of this copy must never be sealed under the same number."""
        return self._cipher.encrypt(_nonce(index), chunk, self._bound)

    def open(self, index: int, record: bytes | memoryview) -> bytes:
        """The chunk of a record.

        Raises:
            InvalidTag: it is not the one that was sealed.
        """
        return self._cipher.decrypt(_nonce(index), record, self._bound)

    def begin(self, index: int) -> RecordWriter:
        """Begin the record of a chunk that comes in pieces."""
        return RecordWriter(self._key, _nonce(index), self._bound)

    def unfinished(self, index: int, part: bytes) -> bytes:
        """What a record that was not finished holds so far; nothing proves it but the digest of the whole.

        GCM is counter mode from block 2 on where the nonce has 96 bits (NIST SP 800-38D).
        """
        counter = _nonce(index) + (2).to_bytes(4, "big")
        return Cipher(algorithms.AES(self._key), modes.CTR(counter)).decryptor().update(part)


class RecordWriter:
    """One record, while its chunk comes in."""

    def __init__(self, key: bytes, nonce: bytes, bound: bytes) -> None:
        self._encryptor = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
        self._encryptor.authenticate_additional_data(bound)
        self.taken = 0

    def update(self, data: bytes | memoryview) -> bytes:
        """Take the next bytes; the same number of encrypted ones."""
        self.taken += len(data)
        return self._encryptor.update(data)

    def tag(self) -> bytes:
        """The end of the record."""
        self._encryptor.finalize()
        return self._encryptor.tag


def release(key: bytes, recipient: tuple[int, bytes], who: str, artifact: tuple[str, str]) -> bytes:
    """A copy's key for one recipient alone: HPKE, bound to who asked for what.

    Args:
        key: of the copy.
        recipient: suite and public key.
        who: subject that asks, as its certificate or token says.
        artifact: project and SHA-256.

    Raises:
        InvalidArgument: a key that cannot be sealed to.
    """
    suite, public_key = recipient
    return suites.wrap(suite, public_key, key, _info(who, artifact))


def take(wrapped: bytes, pair: suites.KeyPair, who: str, artifact: tuple[str, str]) -> bytes:
    """The key that was released to this pair.

    Raises:
        InvalidTag: it was released to somebody else, for something else, or was altered.
    """
    key = suites.unwrap(pair.suite, pair, wrapped, _info(who, artifact))
    if len(key) != KEY_BYTES:
        raise InvalidTag
    return key


def _info(who: str, artifact: tuple[str, str]) -> bytes:
    """Neither names nor digests hold a line feed."""
    return "\n".join(("sealane artifact key v1", who, *artifact)).encode()


def _nonce(index: int) -> bytes:
    return index.to_bytes(12, "big")
