"""Keys at rest: what is secret and kept is encrypted under a key file, which belongs on another medium."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealane.errors import FailedPrecondition

_MAGIC = b"SLK1"
_NONCE_BYTES = 12
_KEY_BYTES = 32


class KeyFile:
    """Seals and opens with AES-256-GCM, under 32 random bytes.

    Args:
        key: the bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self.key_id = hashlib.sha256(b"sealane/key-file/v1" + key).digest()[:8]
        """Tells key files apart, and nothing of them."""

    @classmethod
    def at(cls, path: Path, *, create: bool, what: str = "auth's keys") -> KeyFile:
        """The key file at `path`; made, for its owner alone, where `create` says that nothing needs the old one.

        Args:
            path: the file.
            create: whether it may be made.
            what: what is encrypted under it, for the message.

        Raises:
            FailedPrecondition: it is missing though something is sealed with it, or it is no key file.
        """
        if not path.exists() and not create:
            raise FailedPrecondition(
                f"the key file {path} is missing, and {what} are encrypted under it; mount or restore it",
                reason="KEY_FILE_MISSING",
            )
        return cls(ensure_secret(path))

    def seal(self, name: str, plain: bytes) -> bytes:
        """`plain`, encrypted; it opens under the same `name` alone."""
        nonce = os.urandom(_NONCE_BYTES)
        return _MAGIC + nonce + self._cipher.encrypt(nonce, plain, name.encode())

    def open(self, name: str, sealed: bytes) -> bytes:
        """What was sealed under `name`.

        Raises:
            FailedPrecondition: it was sealed under another key file or name, or was altered.
        """
        begin = len(_MAGIC) + _NONCE_BYTES
        try:
            if not sealed.startswith(_MAGIC):
                raise InvalidTag
            return self._cipher.decrypt(sealed[len(_MAGIC) : begin], sealed[begin:], name.encode())
        except InvalidTag as error:
            raise FailedPrecondition(
                f"{name} does not open with this key file; restore the one that it was encrypted under",
                reason="KEY_FILE_INVALID",
            ) from error


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that its owner alone can read, whole or not at all, and on the disk before this returns."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def ensure_secret(path: Path) -> bytes:
    """32 random bytes, made where there are none, readable by their owner alone.

    Raises:
        FailedPrecondition: the file holds something else.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_secret(path, os.urandom(_KEY_BYTES))
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise FailedPrecondition(
            f"the key file {path} has {len(key)} bytes, not {_KEY_BYTES}; restore it", reason="KEY_FILE_INVALID"
        )
    return key
