"""Sealing statements: auth's word that a key belongs to a node, and where that node stands."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.errors import Unauthenticated
from sealane.security import jws, suites
from sealane.security.keys import KeySet

TYPE = "sealane-sealing+jwt"
LIFETIME_SECONDS = 600
#: Reason of the refusal of a statement by a key that is not known here.
UNKNOWN_KEY = "STATEMENT_KEY"
_HEADER = frozenset({"alg", "typ", "kid"})
_LEEWAY_SECONDS = 30
_ATTRIBUTES = ("tier", "zone", "region", "pool", "clearance", "relay")


@dataclass(frozen=True, slots=True)
class Statement:
    """A verified statement."""

    node: str
    suite: int
    key_id: str
    public_key: bytes
    attributes: dict[str, str]
    expires: float

    @property
    def issued(self) -> float:
        """Seconds since 1970 at which auth signed it."""
        return self.expires - LIFETIME_SECONDS


def issue(
    *, node: str, suite: int, public_key: bytes, attributes: Mapping[str, str], key: Ed25519PrivateKey, now: float
) -> str:
    """A signed statement, valid for ten minutes."""
    claims: dict[str, object] = {
        "sub": f"spiffe://sealane/node/{node}",
        "node": node,
        "suite": suites.NAMES[suite],
        "key_id": suites.key_id_of(public_key),
        "public_key": jws.encode(public_key),
        "iat": int(now),
        "exp": int(now) + LIFETIME_SECONDS,
        **{name: attributes.get(name, "") for name in _ATTRIBUTES},
    }
    kid = jws.thumbprint(key.public_key().public_bytes_raw())
    return jws.sign(key, {"typ": TYPE, "kid": kid}, claims)


def claims_of(statement: str) -> dict[str, str]:
    """What a statement says, for those who need not be convinced; empty where it cannot be read.

    Its node knows it, and gateways only route by it.
    """
    if not statement:
        return {}
    try:
        parsed = jws.parse(statement, header_names=_HEADER, limit=jws.MAX_STATEMENT_BYTES)
    except Unauthenticated:
        return {}
    return {name: value for name, value in parsed.claims.items() if isinstance(value, str)}


def verify(statement: str, keys: KeySet, now: float | None = None, *, fetch: bool = True) -> Statement:
    """Check a statement against auth's keys.

    Args:
        statement: a JWS.
        keys: of auth.
        now: seconds since 1970; None asks the machine.
        fetch: fetch the keys where this one is not known yet, which blocks; otherwise it is an unknown key.

    Raises:
        Unauthenticated: not signed by auth, expired, or not consistent in itself.
    """
    parsed = jws.parse(statement, header_names=_HEADER, limit=jws.MAX_STATEMENT_BYTES)
    kid = parsed.header.get("kid")
    if parsed.header["typ"] != TYPE or not isinstance(kid, str):
        raise Unauthenticated("this is not a sealing statement", reason="STATEMENT_TYPE")
    key = keys.get(kid)
    if key is None and fetch and keys.stale(kid):
        keys.refresh()
        key = keys.get(kid)
    if key is None:
        raise Unauthenticated("the statement is signed with an unknown key", reason=UNKNOWN_KEY)
    jws.verify(parsed, key)
    claims = {name: value for name, value in parsed.claims.items() if isinstance(value, str)}
    expires = parsed.claims.get("exp")
    if type(expires) is not int or expires + _LEEWAY_SECONDS <= (time.time() if now is None else now):
        raise Unauthenticated("the sealing statement has expired; fetch the context again", reason="STATEMENT_EXPIRED")
    public = jws.decode(claims.get("public_key", ""))
    if suites.key_id_of(public) != claims.get("key_id") or not claims.get("node"):
        raise Unauthenticated("the sealing statement is not consistent", reason="STATEMENT_INVALID")
    return Statement(
        node=claims["node"],
        suite=suites.number_of(claims.get("suite", "")),
        key_id=claims["key_id"],
        public_key=public,
        attributes={name: claims.get(name, "") for name in _ATTRIBUTES},
        expires=float(expires),
    )
