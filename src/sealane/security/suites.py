"""The suites of sealed payloads: HPKE (RFC 9180), base mode, single shot; AES-256-GCM in all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from sealane.errors import InvalidArgument
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.security import jws

HYBRID = int(pb.SUITE_MLKEM768_X25519)
X25519 = int(pb.SUITE_X25519)
NAMES = {HYBRID: "MLKEM768_X25519", X25519: "X25519"}
PUBLIC_BYTES = {HYBRID: 1216, X25519: 32}
_MLKEM_PUBLIC_BYTES = 1184

PrivateKey = X25519PrivateKey | hpke.MLKEM768X25519PrivateKey
PublicKey = X25519PublicKey | hpke.MLKEM768X25519PublicKey


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A sealing key. It lives as long as its process; its private half never leaves memory."""

    suite: int
    private_key: PrivateKey
    public_key: bytes
    private_bytes: bytes = field(repr=False)
    """The seed of the lattice key (FIPS 203: d and z), where the suite has one, and the X25519 key."""

    key_id: str = field(init=False)
    """base64url of the SHA-256 of the public key."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key_id", key_id_of(self.public_key))


def key_id_of(public_key: bytes) -> str:
    """Key id of a public key."""
    return jws.encode(hashlib.sha256(public_key).digest())


def number_of(name: str) -> int:
    """The suite of a name.

    Raises:
        InvalidArgument: no such suite.
    """
    for suite, known in NAMES.items():
        if known == name:
            return suite
    raise InvalidArgument(f"suite {name!r} is unknown; use one of {sorted(NAMES.values())}", field="suite")


def generate(suite: int) -> KeyPair:
    """A fresh key pair.

    Raises:
        UnsupportedAlgorithm: this build of OpenSSL has no ML-KEM; use X25519 there.
    """
    exchange = X25519PrivateKey.generate()
    if suite == X25519:
        return pair_of(exchange)
    return pair_of(exchange, MLKEM768PrivateKey.generate())


def pair_of(exchange: X25519PrivateKey, lattice: MLKEM768PrivateKey | None = None) -> KeyPair:
    """The key pair of these; of the hybrid suite where there is a lattice key."""
    public, private = exchange.public_key().public_bytes_raw(), exchange.private_bytes_raw()
    if lattice is None:
        return KeyPair(X25519, exchange, public, private)
    return KeyPair(
        HYBRID,
        hpke.MLKEM768X25519PrivateKey(lattice, exchange),
        lattice.public_key().public_bytes_raw() + public,
        lattice.private_bytes_raw() + private,
    )


def best_available() -> int:
    """The hybrid suite where this build can do it, else X25519."""
    try:
        generate(HYBRID)
    except UnsupportedAlgorithm:
        return X25519
    return HYBRID


def wrap(suite: int, public_key: bytes, secret: bytes, info: bytes) -> bytes:
    """HPKE encapsulation and ciphertext of `secret` for `public_key`, bound to `info`.

    Raises:
        InvalidArgument: a key that agrees on nothing secret, such as a point of low order (RFC 9180 section 7.1.4).
    """
    try:
        return _suite(suite).encrypt(secret, _public(suite, public_key), info)
    except ValueError as error:
        raise unusable() from error


def unusable() -> InvalidArgument:
    """The error for a key that nothing can be sealed to."""
    return InvalidArgument("the sealing key cannot be sealed to; do not use this worker", field="key")


def unwrap(suite: int, pair: KeyPair, wrapped: bytes, info: bytes) -> bytes:
    """The secret that :func:`wrap` sealed.

    Raises:
        InvalidTag: another key, another `info`, or altered bytes.
    """
    return _suite(suite).decrypt(wrapped, pair.private_key, info)


def _suite(suite: int) -> hpke.Suite:
    kems = {HYBRID: hpke.KEM.MLKEM768_X25519, X25519: hpke.KEM.X25519}
    if suite not in kems:
        raise InvalidArgument(f"suite {suite} is unknown; use one of {sorted(NAMES)}", field="suite")
    return hpke.Suite(kems[suite], hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


#: Reading a lattice key takes a fifth of a wrap, and a client seals to the same few workers.
@lru_cache(maxsize=256)
def _public(suite: int, data: bytes) -> PublicKey:
    if len(data) != PUBLIC_BYTES[suite]:
        raise InvalidArgument(f"a {NAMES[suite]} key has {PUBLIC_BYTES[suite]} bytes, not {len(data)}", field="key")
    if suite == X25519:
        return X25519PublicKey.from_public_bytes(data)
    return hpke.MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(data[:_MLKEM_PUBLIC_BYTES]),
        X25519PublicKey.from_public_bytes(data[_MLKEM_PUBLIC_BYTES:]),
    )
