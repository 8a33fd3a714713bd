"""Signing keys: what is kept of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs tokens and statements; its state follows from its times (:mod:`sealane_auth.signing`).

    Args:
        kid: RFC 7638 thumbprint.
        public: raw public key, 32 bytes.
        sealed_private: private key, encrypted under the key file.
        create_time: seconds since 1970.
        sign_time: when it begins to sign.
        withdraw_time: when it is no longer published; 0 while nothing follows it.
        revoke_time: when it was revoked; 0 for never.
    """

    kid: str
    public: bytes
    sealed_private: bytes
    create_time: float
    sign_time: float
    withdraw_time: float = 0.0
    revoke_time: float = 0.0


class KeyStore(Protocol):
    """Records of signing keys, inside one transaction."""

    def put_key(self, key: SigningKey) -> None:
        """Add a key, or replace the one of the same id."""
        ...

    def all(self) -> list[SigningKey]:
        """All keys, oldest first."""
        ...

    def delete_key(self, kid: str) -> None:
        """Forget a key."""
        ...
