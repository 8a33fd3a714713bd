"""HPKE (RFC 9180) base mode by hand, over primitives alone: what the sealed protocol wraps keys with.

A second implementation to hold the first one against, written from RFC 9180 and draft-connolly-cfrg-xwing-kem. KDF is
HKDF-SHA256 throughout. The private key of X-Wing is its seed of 32 bytes, or what that expands to: the seed of
ML-KEM-768 (64 bytes) and the X25519 key (32).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

X25519, XWING = 0x0020, 0x647A
HKDF_SHA256 = 0x0001
AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305 = 0x0001, 0x0002, 0x0003
KEY_BYTES = {AES_128_GCM: 16, AES_256_GCM: 32, CHACHA20_POLY1305: 32}
#: Length of an encapsulated key.
ENC_BYTES = {X25519: 32, XWING: 1120}
XWING_LABEL = rb"\./" + rb"/^" + b"\\"


def hkdf_extract(salt: bytes, key: bytes) -> bytes:
    """RFC 5869, section 2.2."""
    return hmac.digest(salt or bytes(32), key, "sha256")


def hkdf_expand(key: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869, section 2.3."""
    out, block = b"", b""
    while len(out) < length:
        block = hmac.digest(key, block + info + bytes([len(out) // 32 + 1]), "sha256")
        out += block
    return out[:length]


def labeled_extract(suite_id: bytes, salt: bytes, label: bytes, key: bytes) -> bytes:
    return hkdf_extract(salt, b"HPKE-v1" + suite_id + label + key)


def labeled_expand(suite_id: bytes, key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    return hkdf_expand(key, length.to_bytes(2) + b"HPKE-v1" + suite_id + label + info, length)


def agree(private: X25519PrivateKey, public: bytes) -> bytes:
    """X25519; `cryptography` refuses a shared secret that is all zero, as section 7.1.4 demands."""
    return private.exchange(X25519PublicKey.from_public_bytes(public))


def expanded(private: bytes) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    """Both halves of an X-Wing private key."""
    both = hashlib.shake_256(private).digest(96) if len(private) == 32 else private
    return MLKEM768PrivateKey.from_seed_bytes(both[:64]), X25519PrivateKey.from_private_bytes(both[64:])


def public_of(kem: int, private: bytes) -> bytes:
    """The public key of a private one."""
    if kem == X25519:
        return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    lattice, curve = expanded(private)
    return lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()


def dhkem(agreed: bytes, enc: bytes, public: bytes) -> bytes:
    """Shared secret of DHKEM, section 4.1, from what X25519 agreed on."""
    suite_id = b"KEM" + X25519.to_bytes(2)
    prk = labeled_extract(suite_id, b"", b"eae_prk", agreed)
    return labeled_expand(suite_id, prk, b"shared_secret", enc + public, 32)


def combined(lattice: bytes, agreed: bytes, enc: bytes, public: bytes) -> bytes:
    """Shared secret of X-Wing, from those of ML-KEM and X25519."""
    return hashlib.sha3_256(lattice + agreed + enc + public + XWING_LABEL).digest()


def encap(kem: int, public: bytes, ephemeral: bytes | None = None) -> tuple[bytes, bytes]:
    """Shared secret and encapsulated key. `ephemeral` is the X25519 key of a test vector."""
    own = X25519PrivateKey.from_private_bytes(ephemeral) if ephemeral else X25519PrivateKey.generate()
    enc, curve = own.public_key().public_bytes_raw(), public[-32:]
    if kem == X25519:
        return dhkem(agree(own, curve), enc, curve), enc
    secret, ciphertext = MLKEM768PublicKey.from_public_bytes(public[:-32]).encapsulate()
    return combined(secret, agree(own, curve), enc, curve), ciphertext + enc


def decap(kem: int, private: bytes, enc: bytes) -> bytes:
    """Shared secret of an encapsulated key."""
    curve = public_of(kem, private)[-32:]
    if kem == X25519:
        return dhkem(agree(X25519PrivateKey.from_private_bytes(private), enc), enc, curve)
    lattice, own = expanded(private)
    return combined(lattice.decapsulate(enc[:-32]), agree(own, enc[-32:]), enc[-32:], curve)


@dataclass(frozen=True)
class Context:
    """The key schedule of one encapsulation, section 5.1."""

    aead: int
    schedule: bytes
    secret: bytes
    key: bytes
    base_nonce: bytes
    exporter_secret: bytes

    def nonce(self, seq: int) -> bytes:
        """Nonce of message number `seq`."""
        return (int.from_bytes(self.base_nonce) ^ seq).to_bytes(12)

    def seal(self, plaintext: bytes, aad: bytes = b"", seq: int = 0) -> bytes:
        return self._aead().encrypt(self.nonce(seq), plaintext, aad)

    def open(self, ciphertext: bytes, aad: bytes = b"", seq: int = 0) -> bytes:
        return self._aead().decrypt(self.nonce(seq), ciphertext, aad)

    def _aead(self) -> AESGCM | ChaCha20Poly1305:
        return ChaCha20Poly1305(self.key) if self.aead == CHACHA20_POLY1305 else AESGCM(self.key)


def key_schedule(kem: int, aead: int, shared_secret: bytes, info: bytes) -> Context:
    """Mode base: no pre-shared key."""
    suite_id = b"HPKE" + kem.to_bytes(2) + HKDF_SHA256.to_bytes(2) + aead.to_bytes(2)
    psk_id_hash = labeled_extract(suite_id, b"", b"psk_id_hash", b"")
    schedule = b"\x00" + psk_id_hash + labeled_extract(suite_id, b"", b"info_hash", info)
    secret = labeled_extract(suite_id, shared_secret, b"secret", b"")
    key, nonce, exporter = (
        labeled_expand(suite_id, secret, label, schedule, length)
        for label, length in ((b"key", KEY_BYTES[aead]), (b"base_nonce", 12), (b"exp", 32))
    )
    return Context(aead, schedule, secret, key, nonce, exporter)


def seal(kem: int, public: bytes, info: bytes, plaintext: bytes, aad: bytes = b"") -> bytes:
    """Single shot with AES-256-GCM: encapsulated key and ciphertext."""
    shared_secret, enc = encap(kem, public)
    return enc + key_schedule(kem, AES_256_GCM, shared_secret, info).seal(plaintext, aad)


def open_(kem: int, private: bytes, info: bytes, sealed: bytes, aad: bytes = b"") -> bytes:
    """Single shot with AES-256-GCM: the plaintext of an encapsulated key and ciphertext."""
    enc, ciphertext = sealed[: ENC_BYTES[kem]], sealed[ENC_BYTES[kem] :]
    return key_schedule(kem, AES_256_GCM, decap(kem, private, enc), info).open(ciphertext, aad)


def seal_as_agreed(kem: int, public: bytes, agreed: bytes, enc: bytes, info: bytes, plaintext: bytes) -> bytes:
    """What somebody seals who says that X25519 agreed on this, with whatever share `enc`."""
    if kem == X25519:
        shared_secret, sent = dhkem(agreed, enc, public), enc
    else:
        secret, ciphertext = MLKEM768PublicKey.from_public_bytes(public[:-32]).encapsulate()
        shared_secret, sent = combined(secret, agreed, enc, public[-32:]), ciphertext + enc
    return sent + key_schedule(kem, AES_256_GCM, shared_secret, info).seal(plaintext)


# -- points of low order -------------------------------------------------------------------------------------------

_P = 2**255 - 19
#: Every u coordinate of low order, and its other forms below 2^255. The bit above is not part of a coordinate.
LOW_ORDER = [
    (u | top).to_bytes(32, "little")
    for u in (
        *(0, 1, _P - 1, _P, _P + 1),
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    )
    for top in (0, 1 << 255)
]
