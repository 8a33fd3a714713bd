"""The device key: made before a peer joins, never sent, and good for new certificates while the peer is welcome.

A proof by it is a JWS of type ``sealane-device+jwt`` over one certificate request, used once.
"""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sealane.clock import Clock
from sealane.errors import Unauthenticated
from sealane.security import jws
from sealane.security.proof import ReplayCache

TYPE = "sealane-device+jwt"
FILE = "device.key"
WINDOW_SECONDS = 300.0
#: Ids are remembered, so they are short.
_MAX_ID = 128
_HEADER = frozenset({"alg", "typ", "jwk"})


def ensure_key(directory: Path) -> Ed25519PrivateKey:
    """The device key of this process, made where there is none; the file is readable by its owner alone."""
    path = directory / FILE
    if path.exists():
        return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = Ed25519PrivateKey.generate()
    temporary = path.with_name(FILE + ".new")
    temporary.touch(mode=0o600)
    temporary.write_bytes(key.private_bytes_raw())
    temporary.replace(path)
    return key


def prove(key: Ed25519PrivateKey, certificate_request: bytes, now: float) -> str:
    """A proof for one certificate request (PEM)."""
    claims = {"aud": jws.ISSUER, "iat": int(now), "jti": str(uuid.uuid4()), "csr": _digest(certificate_request)}
    return jws.sign(key, {"typ": TYPE, "jwk": jws.public_jwk(key.public_key().public_bytes_raw())}, claims)


class DeviceProofs:
    """Checks proofs; each is good once, for five minutes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._replays = ReplayCache(clock, window=2 * WINDOW_SECONDS)

    def verify(self, proof: str, certificate_request: bytes, expected: bytes = b"") -> bytes:
        """The raw public key that made `proof` for this request.

        Args:
            proof: the proof.
            certificate_request: PEM.
            expected: the key that must have made it, or several one after the other; empty for any. Proofs by others
                are not remembered, so strangers cannot fill what remembers them.

        Raises:
            Unauthenticated: malformed, by another key, for another request, too old, or used before.
        """
        parsed = jws.parse(proof, header_names=_HEADER)
        jwk = parsed.header.get("jwk")
        if parsed.header["typ"] != TYPE or not isinstance(jwk, dict) or set(jwk) != {"crv", "kty", "x"}:
            raise _refused()
        public = jws.decode(str(jwk["x"]))
        if len(public) != 32 or jwk != jws.public_jwk(public):
            raise _refused()
        jws.verify(parsed, Ed25519PublicKey.from_public_bytes(public))
        claims, issued = parsed.claims, parsed.claims.get("iat")
        if claims.get("aud") != jws.ISSUER or claims.get("csr") != _digest(certificate_request):
            raise _refused()
        if type(issued) is not int or abs(self._clock.now() - issued) > WINDOW_SECONDS:
            raise Unauthenticated("the device proof is too old; check the clocks", reason="DEVICE_PROOF_REFUSED")
        if expected and public not in {expected[at : at + 32] for at in range(0, len(expected), 32)}:
            raise _refused()
        identifier = claims.get("jti")
        if not isinstance(identifier, str) or not 0 < len(identifier) <= _MAX_ID:
            raise _refused()
        if not self._replays.add(f"{jwk['x']}:{identifier}"):
            raise Unauthenticated("the device proof was used before; make a new one", reason="DEVICE_PROOF_REFUSED")
        return public


def _digest(certificate_request: bytes) -> str:
    return jws.encode(hashlib.sha256(certificate_request).digest())


def _refused() -> Unauthenticated:
    return Unauthenticated("the device proof is not for this request; make a new one", reason="DEVICE_PROOF_REFUSED")
