"""Access tokens (RFC 9068): issuing and the strict, offline, cached verification every service does."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field
from hashlib import sha256

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.clock import Clock
from sealane.errors import Unauthenticated
from sealane.rpc.call import Identity, Quota
from sealane.security import jws
from sealane.security.keys import KeySet
from sealane.security.revocations import Revocations

ISSUER = jws.ISSUER
LIFETIME_SECONDS = 300
LEEWAY_SECONDS = 30
MAX_LIFETIME_SECONDS = 900
#: Longest chain of actors that a token may name.
MAX_ACTORS = 3
_HEADER = frozenset({"alg", "kid", "typ"})
_REQUIRED = ["exp", "iat", "aud", "iss", "sub", "jti", "client_id", "project", "scope"]
_CACHE_SIZE = 4096
#: What PyJWT refuses, in our words.
_REFUSALS: dict[type[jwt.PyJWTError], tuple[str, str]] = {
    jwt.InvalidSignatureError: ("TOKEN_SIGNATURE", "its signature is not auth's"),
    jwt.InvalidAudienceError: ("TOKEN_AUDIENCE", "it is for another service"),
    jwt.InvalidIssuerError: ("TOKEN_ISSUER", "it is of another issuer"),
}


class UnknownKey(Exception):
    """The token names a key that is not in memory; a refresh may bring it."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token is to say.

    Args:
        subject: account or federated identity.
        client_id: client it is issued to.
        project: its project.
        audience: service it is for.
        scopes: permissions.
        key_thumbprint: key to bind it to (``cnf.jkt``, RFC 9449 section 6.1).
        certificate_thumbprint: certificate to bind it to (``cnf.x5t#S256``, RFC 8705 section 3.1).
        models: for permissions limited to some models, the prefixes of their ids.
        epoch: the subject's epoch.
        actors: who acts for the subject, outermost first (RFC 8693 section 4.1).
        quota: of the account, and of the project.
        lifetime: seconds.
    """

    subject: str
    client_id: str
    project: str
    audience: str
    scopes: Iterable[str]
    key_thumbprint: str = ""
    certificate_thumbprint: str = ""
    models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    epoch: int = 0
    actors: tuple[str, ...] = ()
    quota: tuple[Quota, Quota] | None = None
    lifetime: int = LIFETIME_SECONDS


def issue(grant: Grant, *, key: Ed25519PrivateKey, issuer: str, now: float) -> str:
    """A signed token for `grant`."""
    claims: dict[str, object] = {
        "iss": issuer,
        "sub": grant.subject,
        "client_id": grant.client_id,
        "project": grant.project,
        "aud": grant.audience,
        "scope": " ".join(sorted(grant.scopes)),
        "iat": int(now),
        "exp": int(now) + grant.lifetime,
        "jti": str(uuid.uuid4()),
        "epoch": grant.epoch,
    }
    confirmation = {"jkt": grant.key_thumbprint, "x5t#S256": grant.certificate_thumbprint}
    if any(confirmation.values()):
        claims["cnf"] = {name: value for name, value in confirmation.items() if value}
    if grant.models:
        claims["models"] = {name: list(prefixes) for name, prefixes in grant.models.items()}
    if grant.actors:
        claims["act"] = _nested(grant.actors)
    if grant.quota is not None:
        claims["quota"] = [list(astuple(each)) for each in grant.quota]
    kid = jws.thumbprint(key.public_key().public_bytes_raw())
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"typ": "at+jwt", "kid": kid})


def _nested(actors: tuple[str, ...]) -> dict[str, object]:
    outer: dict[str, object] = {"sub": actors[0]}
    if len(actors) > 1:
        outer["act"] = _nested(actors[1:])
    return outer


def actors_of(claims: Mapping[str, object]) -> tuple[str, ...]:
    """The actors that a token names, outermost first (RFC 8693 section 4.1).

    Raises:
        Unauthenticated: the claim ``act`` is malformed or names more than three.
    """
    actors: list[str] = []
    act = claims.get("act")
    while act is not None:
        subject = act.get("sub") if isinstance(act, dict) else None
        if not isinstance(act, dict) or not isinstance(subject, str) or len(actors) == MAX_ACTORS:
            raise Unauthenticated("the token's actors are not acceptable", reason="TOKEN_INVALID")
        actors.append(subject)
        act = act.get("act")
    return tuple(actors)


class TokenVerifier:
    """Verifies tokens for one audience without asking anybody.

    A verified token is cached by its SHA-256 until it expires, so a busy caller costs one hash a call. What is revoked
    is looked up anew whenever the revocations have changed.

    Args:
        keys: auth's public keys.
        issuer: who must have issued the token.
        audience: whom it must be for.
        clock: tells the time.
        revocations: what is no longer good; None where nothing is ever revoked.
    """

    def __init__(
        self, keys: KeySet, *, issuer: str, audience: str, clock: Clock, revocations: Revocations | None = None
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._clock = clock
        self._revocations = revocations
        self._cache: OrderedDict[bytes, tuple[Identity, int, float]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def keys(self) -> KeySet:
        """The key set behind it."""
        return self._keys

    @property
    def revocations(self) -> Revocations | None:
        """What is no longer good, as this verifier knows it."""
        return self._revocations

    def verify(self, token: str) -> Identity:
        """The identity a token proves.

        Raises:
            Unauthenticated: the token does not verify, has expired or was revoked.
            UnknownKey: the key is not in memory and a refresh is allowed now.
        """
        digest = sha256(token.encode()).digest()
        version = 0 if self._revocations is None else self._revocations.version
        cached = self._cache.get(digest)
        if cached is not None:
            identity, seen, until = cached
            if self._clock.now() >= until:
                raise _expired()
            if seen == version:
                return identity
        else:
            identity = identity_of(self._verified(token, self._audience))
        if self._revocations is not None:
            self._revocations.check(identity)
        with self._lock:
            self._cache[digest] = (identity, version, identity.expires + LEEWAY_SECONDS)
            if len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        return identity

    def claims(self, token: str) -> dict[str, object]:
        """What a token of this issuer says, whoever of ours it is for: fully verified and not revoked.

        Raises:
            Unauthenticated: the token does not verify, has expired or was revoked.
            UnknownKey: the key is not in memory and a refresh is allowed now.
        """
        claims = self._verified(token, None)
        if self._revocations is not None:
            self._revocations.check(identity_of(claims))
        return claims

    def _verified(self, token: str, audience: str | None) -> dict[str, object]:
        parsed = jws.parse(token, header_names=_HEADER)
        kid = parsed.header.get("kid")
        if parsed.header["typ"] not in ("at+jwt", "application/at+jwt") or not isinstance(kid, str):
            raise Unauthenticated("this is not an access token", reason="TOKEN_TYPE")  # RFC 9068 section 4
        key = self._keys.get(kid)
        if key is None:
            if self._keys.stale(kid):
                raise UnknownKey(kid)
            raise Unauthenticated("the token's key is not known; get a new token", reason="TOKEN_KEY")
        if parsed.header["alg"] != "EdDSA":
            raise Unauthenticated("the token's algorithm is not its key's; get a new one", reason="TOKEN_ALGORITHM")
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=["EdDSA"],  # one algorithm per key, RFC 8725 section 3.1
                audience=audience,
                issuer=self._issuer,
                options={
                    "require": _REQUIRED,
                    "strict_aud": True,
                    "verify_aud": audience is not None,
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.PyJWTError as error:
            reason, why = _REFUSALS.get(type(error), ("TOKEN_INVALID", "a claim is missing or of another form"))
            raise Unauthenticated(
                f"the token does not verify for {audience or 'any service'}: {why}; get a new one", reason=reason
            ) from error
        if audience is None and not isinstance(claims["aud"], str):
            raise Unauthenticated("the token's audience is not acceptable", reason="TOKEN_INVALID")
        self._check_times(claims)
        return {**claims, "kid": kid}

    def _check_times(self, claims: dict[str, object]) -> None:
        now, times = self._clock.now(), [claims.get(name) for name in ("exp", "iat", "nbf")]
        if any(value is not None and (type(value) not in (int, float)) for value in times):
            raise Unauthenticated("the token's times are not numbers", reason="TOKEN_INVALID")
        try:
            expires, issued, not_before = (float(value) if isinstance(value, int | float) else 0.0 for value in times)
        except OverflowError as error:
            raise Unauthenticated("the token's times are not numbers", reason="TOKEN_INVALID") from error
        if not 0 < expires - issued <= MAX_LIFETIME_SECONDS:
            raise Unauthenticated("the token's lifetime is not acceptable", reason="TOKEN_INVALID")
        if expires + LEEWAY_SECONDS <= now:
            raise _expired()
        if max(issued, not_before) > now + LEEWAY_SECONDS:
            raise Unauthenticated("the token is not valid yet; check the clocks", reason="TOKEN_NOT_YET_VALID")


def identity_of(claims: Mapping[str, object]) -> Identity:
    """The caller that verified claims name; ``kid`` is the key that signed them.

    Raises:
        Unauthenticated: a claim is missing or of another form.
    """
    confirmation = claims.get("cnf", {})
    bound = ("", "")
    if isinstance(confirmation, dict) and set(confirmation) <= {"jkt", "x5t#S256"}:
        bound = (confirmation.get("jkt", ""), confirmation.get("x5t#S256", ""))
    texts = [claims["sub"], claims["project"], claims["scope"], claims["jti"], claims["client_id"], *bound]
    if not all(isinstance(text, str) for text in texts) or not claims["sub"] or not claims["project"]:
        raise _malformed()
    if "cnf" in claims and not any(bound):
        # A confirmation we do not understand must not pass as a bearer token (RFC 7800 section 3.1).
        raise Unauthenticated("the token is bound in a way that is not supported", reason="TOKEN_BINDING")
    epoch = claims.get("epoch", 0)
    if type(epoch) is not int:
        raise _malformed()
    return Identity(
        subject=str(claims["sub"]),
        project=str(claims["project"]),
        scopes=frozenset(str(claims["scope"]).split()),
        token_id=str(claims["jti"]),
        key_thumbprint=bound[0],
        expires=float(str(claims["exp"])),
        certificate_thumbprint=bound[1],
        models=_models(claims.get("models", {})),
        client_id=str(claims["client_id"]),
        key_id=str(claims.get("kid", "")),
        epoch=epoch,
        actor=next(iter(actors_of(claims)), ""),
        quota=_quota(claims.get("quota")),
    )


def _models(value: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise _malformed()
    for prefixes in value.values():
        if not isinstance(prefixes, list) or not prefixes or not all(isinstance(each, str) for each in prefixes):
            raise _malformed()
    return {str(name): tuple(prefixes) for name, prefixes in value.items()}


def _quota(value: object) -> tuple[Quota, Quota] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise _malformed()
    for each in value:
        numbers = isinstance(each, list) and len(each) == 3 and all(type(item) in (int, float) for item in each)
        if not numbers or min(each) < 0:
            raise _malformed()
    account, project = (Quota(float(each[0]), float(each[1]), int(each[2])) for each in value)
    return account, project


def _malformed() -> Unauthenticated:
    return Unauthenticated("the token's claims are not acceptable", reason="TOKEN_INVALID")


def _expired() -> Unauthenticated:
    return Unauthenticated("the token has expired; get a new one", reason="TOKEN_EXPIRED")
