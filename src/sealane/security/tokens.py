"""Access tokens (RFC 9068): issuing and the strict, offline, cached verification every service does."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.clock import Clock
from sealane.errors import Unauthenticated
from sealane.rpc.call import Identity
from sealane.security import jws
from sealane.security.keys import KeySet

ISSUER = "https://auth.service.sealane"
LIFETIME_SECONDS = 300
LEEWAY_SECONDS = 30
MAX_LIFETIME_SECONDS = 900
_HEADER = frozenset({"alg", "kid", "typ"})
_REQUIRED = ["exp", "iat", "aud", "iss", "sub", "jti", "client_id", "project", "scope"]
_CACHE_SIZE = 4096


class UnknownKey(Exception):
    """The token names a key that is not in memory; a refresh may bring it."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token is to say."""

    subject: str
    client_id: str
    project: str
    audience: str
    scopes: Iterable[str]
    key_thumbprint: str = ""


def issue(grant: Grant, *, key: Ed25519PrivateKey, issuer: str, now: float) -> str:
    """A signed token for `grant`, valid for five minutes."""
    public = key.public_key().public_bytes_raw()
    claims: dict[str, object] = {
        "iss": issuer,
        "sub": grant.subject,
        "client_id": grant.client_id,
        "project": grant.project,
        "aud": grant.audience,
        "scope": " ".join(sorted(grant.scopes)),
        "iat": int(now),
        "exp": int(now) + LIFETIME_SECONDS,
        "jti": str(uuid.uuid4()),
        "epoch": 0,
    }
    if grant.key_thumbprint:
        claims["cnf"] = {"jkt": grant.key_thumbprint}  # RFC 9449 section 6.1
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"typ": "at+jwt", "kid": jws.thumbprint(public)})


class TokenVerifier:
    """Verifies tokens for one audience without asking anybody.

    A verified token is cached by its SHA-256 until it expires, so a busy caller costs one hash a call.
    """

    def __init__(self, keys: KeySet, *, issuer: str, audience: str, clock: Clock) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._clock = clock
        self._cache: OrderedDict[bytes, Identity] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def keys(self) -> KeySet:
        """The key set behind it."""
        return self._keys

    def verify(self, token: str) -> Identity:
        """The identity a token proves.

        Raises:
            Unauthenticated: the token does not verify.
            UnknownKey: the key is not in memory and a refresh is allowed now.
        """
        digest = hashlib.sha256(token.encode()).digest()
        cached = self._cache.get(digest)
        if cached is not None:
            if self._clock.now() < cached.expires + LEEWAY_SECONDS:
                return cached
            raise _expired()
        identity = self._verify(token)
        with self._lock:
            self._cache[digest] = identity
            if len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        return identity

    def _verify(self, token: str) -> Identity:
        parsed = jws.parse(token, header_names=_HEADER)
        kid = parsed.header.get("kid")
        if parsed.header["typ"] not in ("at+jwt", "application/at+jwt") or not isinstance(kid, str):
            raise Unauthenticated("this is not an access token", reason="TOKEN_TYPE")  # RFC 9068 section 4
        key = self._keys.get(kid)
        if key is None:
            if self._keys.stale(kid):
                raise UnknownKey(kid)
            raise Unauthenticated("the token's key is not known; get a new token", reason="TOKEN_KEY")
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=["EdDSA"],  # one algorithm per key, RFC 8725 section 3.1
                audience=self._audience,
                issuer=self._issuer,
                options={
                    "require": _REQUIRED,
                    "strict_aud": True,
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(
                f"the token does not verify for {self._audience}: {type(error).__name__}; get a new one",
                reason="TOKEN_INVALID",
            ) from error
        self._check_times(claims)
        return _identity(claims)

    def _check_times(self, claims: dict[str, object]) -> None:
        now, times = self._clock.now(), [claims.get(name) for name in ("exp", "iat", "nbf")]
        if any(value is not None and (type(value) not in (int, float)) for value in times):
            raise Unauthenticated("the token's times are not numbers", reason="TOKEN_INVALID")
        expires, issued, not_before = (float(value) if isinstance(value, int | float) else 0.0 for value in times)
        if not 0 < expires - issued <= MAX_LIFETIME_SECONDS:
            raise Unauthenticated("the token's lifetime is not acceptable", reason="TOKEN_INVALID")
        if expires + LEEWAY_SECONDS <= now:
            raise _expired()
        if max(issued, not_before) > now + LEEWAY_SECONDS:
            raise Unauthenticated("the token is not valid yet; check the clocks", reason="TOKEN_NOT_YET_VALID")


def _identity(claims: dict[str, object]) -> Identity:
    confirmation = claims.get("cnf", {})
    bound = confirmation.get("jkt", "") if isinstance(confirmation, dict) else None
    texts = [claims["sub"], claims["project"], claims["scope"], claims["jti"], bound]
    if not all(isinstance(text, str) for text in texts) or not claims["sub"] or not claims["project"]:
        raise Unauthenticated("the token's claims are not acceptable", reason="TOKEN_INVALID")
    if "cnf" in claims and not bound:
        # A confirmation we do not understand must not pass as a bearer token (RFC 7800 section 3.1).
        raise Unauthenticated("the token is bound in a way that is not supported", reason="TOKEN_BINDING")
    return Identity(
        subject=str(claims["sub"]),
        project=str(claims["project"]),
        scopes=frozenset(str(claims["scope"]).split()),
        token_id=str(claims["jti"]),
        key_thumbprint=str(bound),
        expires=float(str(claims["exp"])),
    )


def _expired() -> Unauthenticated:
    return Unauthenticated("the token has expired; get a new one", reason="TOKEN_EXPIRED")
