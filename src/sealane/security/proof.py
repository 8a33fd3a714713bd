"""Proof of possession of the key that a token is bound to (DPoP, RFC 9449), in metadata ``dpop``."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections import OrderedDict

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sealane.clock import Clock
from sealane.errors import ResourceExhausted, Unauthenticated
from sealane.security import jws

WINDOW_SECONDS = 60.0
#: Ids are remembered, so they are short (RFC 9449 section 11.1).
_MAX_ID = 128
_HEADER = frozenset({"alg", "typ", "jwk"})
_REFUSED = "PROOF_REFUSED"


def prove(key: Ed25519PrivateKey, *, method_path: str, token: str, now: float) -> str:
    """A proof for one call of `method_path` with `token`."""
    public = key.public_key().public_bytes_raw()
    claims = {
        "jti": str(uuid.uuid4()),
        "htm": "POST",
        "htu": method_path,
        "iat": int(now),
        "ath": _token_hash(token),
    }
    return jws.sign(key, {"typ": "dpop+jwt", "jwk": jws.public_jwk(public)}, claims)


class ReplayCache:
    """Remembers ids for a window. When it is full it refuses: early eviction would open the window."""

    def __init__(self, clock: Clock, *, window: float, capacity: int = 100_000) -> None:
        self._clock = clock
        self._window = window
        self._capacity = capacity
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, identifier: str) -> bool:
        """Remember an id; False where it was there already.

        Raises:
            ResourceExhausted: too many ids in the window.
        """
        now = self._clock.monotonic()
        with self._lock:
            while self._seen and next(iter(self._seen.values())) < now - self._window:
                self._seen.popitem(last=False)
            if identifier in self._seen:
                return False
            if len(self._seen) >= self._capacity:
                raise ResourceExhausted("too many requests to remember; slow down", retry_after=1.0)
            self._seen[identifier] = now
            return True


class ProofVerifier:
    """Checks proofs at the first hop (RFC 9449 section 4.3)."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._replays = ReplayCache(clock, window=2 * WINDOW_SECONDS)

    def verify(self, proof: str, *, method_path: str, token: str, thumbprint: str, http_method: str = "POST") -> None:
        """Check that `proof` was made for this call by the key of `thumbprint`.

        Args:
            proof: what the caller sent.
            method_path: what ``htu`` must be: the path of a gRPC method, or the URL of an HTTP request.
            token: the token that it came with.
            thumbprint: of the key that the token is bound to.
            http_method: what ``htm`` must be.

        Raises:
            Unauthenticated: it was not.
        """
        if not proof:
            raise _refused("the token is bound to a key; send a proof in metadata 'dpop'")
        claims = _signed(proof, thumbprint)
        issued = claims.get("iat")
        named = (claims.get("htm"), claims.get("htu"))
        if named != (http_method, method_path) or claims.get("ath") != _token_hash(token):
            raise _refused("the proof is for another call")
        if type(issued) is not int or abs(self._clock.now() - issued) > WINDOW_SECONDS:
            raise _refused("the proof is too old; check the clocks")
        identifier = claims.get("jti")
        if not isinstance(identifier, str) or not 0 < len(identifier) <= _MAX_ID:
            raise _refused("the proof has no id of at most 128 characters")
        if not self._replays.add(f"{thumbprint}:{identifier}"):
            raise _refused("the proof was used before")


def _signed(proof: str, thumbprint: str) -> dict[str, object]:
    """The claims of a proof that the key of `thumbprint` signed."""
    try:
        parsed = jws.parse(proof, header_names=_HEADER)
        jwk = parsed.header.get("jwk")
        if parsed.header["typ"] != "dpop+jwt" or not isinstance(jwk, dict) or set(jwk) != {"crv", "kty", "x"}:
            raise _refused("the proof's header is not acceptable")
        public = jws.decode(str(jwk["x"]))
        if len(public) != 32 or jwk != jws.public_jwk(public) or jws.thumbprint(public) != thumbprint:
            raise _refused("the proof is by another key than the token's")
        jws.verify(parsed, Ed25519PublicKey.from_public_bytes(public))
    except Unauthenticated as error:
        if error.reason == _REFUSED:
            raise
        # The parser speaks of tokens; whoever reads this must look at the proof.
        raise _refused("the proof is malformed or its signature does not verify") from error
    return parsed.claims


def _token_hash(token: str) -> str:
    return jws.encode(hashlib.sha256(token.encode()).digest())


def _refused(message: str) -> Unauthenticated:
    return Unauthenticated(message, reason=_REFUSED)
