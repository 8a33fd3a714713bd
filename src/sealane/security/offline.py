"""Offline grants: auth's word that an edge node may serve callers of its own site alone, for some days.

A grant names the node's own key. With it the node signs tokens for itself as the only audience, for the accounts that
the grant names, and its own sealing statements; both are worth nothing elsewhere, or once the grant is over. An evicted
node that stays offline is cut off then, and not before (SECURITY 3.5).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sealane.errors import Unauthenticated
from sealane.security import jws
from sealane.security.keys import KeySet
from sealane.security.tokens import ISSUER, MAX_LIFETIME_SECONDS

TYPE = "sealane-offline-grant+jwt"
#: What a site's own tokens may allow at most.
SITE_SCOPES = frozenset({"infer", "models:read"})
MAX_GRANT_BYTES = 64 * 1024
_HEADER = frozenset({"alg", "typ", "kid"})
_LEEWAY_SECONDS = 30


@dataclass(frozen=True, slots=True)
class SiteAccount:
    """An account that may call a site.

    Args:
        subject: its resource name.
        public_key: raw Ed25519 key that it proves itself with.
        models: prefixes of the model ids that it may use; empty for all.
    """

    subject: str
    public_key: bytes
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OfflineGrant:
    """A verified grant.

    Args:
        node: id of the node.
        public_key: raw Ed25519 key of the node.
        accounts: who may call, by name.
        attributes: of the node, from its join token.
        expires: seconds since 1970.
    """

    node: str
    public_key: bytes
    accounts: Mapping[str, SiteAccount]
    attributes: Mapping[str, str]
    expires: float

    @property
    def audience(self) -> str:
        """The only audience that the node's tokens may have."""
        return audience_of(self.node)


def audience_of(node: str) -> str:
    """The audience of tokens that a node issues for itself."""
    return f"sealane-node/{node}"


@dataclass(frozen=True, slots=True)
class GrantRequest:
    """What a grant is to say."""

    node: str
    public_key: bytes
    accounts: Iterable[SiteAccount]
    attributes: Mapping[str, str]
    ttl: float


def issue(request: GrantRequest, key: Ed25519PrivateKey, now: float) -> str:
    """A signed grant."""
    claims: dict[str, object] = {
        "iss": ISSUER,
        "sub": f"spiffe://sealane/node/{request.node}",
        "aud": audience_of(request.node),
        "jwk": jws.public_jwk(request.public_key),
        "accounts": [
            {"sub": each.subject, "jwk": jws.public_jwk(each.public_key), "models": list(each.models)}
            for each in request.accounts
        ],
        "attributes": dict(request.attributes),
        "iat": int(now),
        "exp": int(now + request.ttl),
    }
    kid = jws.thumbprint(key.public_key().public_bytes_raw())
    return jws.sign(key, {"typ": TYPE, "kid": kid}, claims)


def verify(grant: str, keys: KeySet, now: float) -> OfflineGrant:
    """Check a grant against auth's keys, as the node and its callers do without asking anybody.

    Raises:
        Unauthenticated: not signed by auth, over, or not consistent in itself.
    """
    parsed = jws.parse(grant, header_names=_HEADER, limit=MAX_GRANT_BYTES)
    kid = parsed.header.get("kid")
    if parsed.header["typ"] != TYPE or not isinstance(kid, str):
        raise Unauthenticated("this is not an offline grant", reason="GRANT_TYPE")
    key = keys.get(kid)
    if key is None:
        raise Unauthenticated("the grant is signed with an unknown key", reason="GRANT_KEY")
    jws.verify(parsed, key)
    claims = parsed.claims
    node = str(claims.get("sub", "")).removeprefix("spiffe://sealane/node/")
    expires, accounts = claims.get("exp"), claims.get("accounts")
    if claims.get("iss") != ISSUER or claims.get("aud") != audience_of(node) or not isinstance(accounts, list):
        raise Unauthenticated("the offline grant is not consistent", reason="GRANT_INVALID")
    if type(expires) is not int or expires + _LEEWAY_SECONDS <= now:
        raise Unauthenticated("the offline grant is over; the node must reach auth", reason="GRANT_EXPIRED")
    sites = [SiteAccount(str(each["sub"]), _key(each["jwk"]), tuple(each["models"])) for each in accounts]
    attributes = claims.get("attributes")
    return OfflineGrant(
        node=node,
        public_key=_key(claims.get("jwk")),
        accounts={each.subject: each for each in sites},
        attributes=attributes if isinstance(attributes, dict) else {},
        expires=float(expires),
    )


def check_site_token(token: str, grant: OfflineGrant, now: float) -> SiteAccount:
    """The account of a token that the node signed for a caller of its site.

    Raises:
        Unauthenticated: not the node's, for another audience, longer than the grant, wider than a site may give, or for
            an account that the grant does not name.
    """
    parsed = jws.parse(token, header_names=_HEADER)
    if parsed.header["typ"] != "at+jwt" or parsed.header.get("kid") != jws.thumbprint(grant.public_key):
        raise _refused("the token is not by the node of this grant")
    jws.verify(parsed, Ed25519PublicKey.from_public_bytes(grant.public_key))
    claims = parsed.claims
    expires, issued, scope = claims.get("exp"), claims.get("iat"), claims.get("scope")
    if type(expires) is not int or type(issued) is not int or not isinstance(scope, str):
        raise _refused("the token's claims are not acceptable")
    if claims.get("aud") != grant.audience or claims.get("iss") != f"spiffe://sealane/node/{grant.node}":
        raise _refused("the token is for another audience")
    if not 0 < expires - issued <= MAX_LIFETIME_SECONDS or expires > grant.expires:
        raise _refused("the token outlives what the grant allows")
    if expires + _LEEWAY_SECONDS <= now or issued > now + _LEEWAY_SECONDS or grant.expires + _LEEWAY_SECONDS <= now:
        raise _refused("the token or its grant is over")
    if not frozenset(scope.split()) <= SITE_SCOPES:
        raise _refused("the token allows more than a site may give")
    account = grant.accounts.get(str(claims.get("sub")))
    if account is None:
        raise _refused("the grant does not name the token's account")
    return account


def _key(jwk: object) -> bytes:
    if not isinstance(jwk, dict) or set(jwk) != {"crv", "kty", "x"}:
        raise Unauthenticated("the offline grant holds a key that is not acceptable", reason="GRANT_INVALID")
    public = jws.decode(str(jwk["x"]))
    if len(public) != 32 or jwk != jws.public_jwk(public):
        raise Unauthenticated("the offline grant holds a key that is not acceptable", reason="GRANT_INVALID")
    return public


def _refused(message: str) -> Unauthenticated:
    return Unauthenticated(message, reason="SITE_TOKEN_REFUSED")
