"""What every way to a token shares: the shape of what is asked and given, its checks, and the signature."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sealane.clock import Clock
from sealane.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated
from sealane.security import jws, tokens
from sealane.security.permissions import PERMISSIONS, Grants
from sealane_auth.signing import Keyring
from sealane_auth.store import Store

AUDIENCES = ("sealane-auth", "sealane-registry", "sealane-scheduler", "sealane-inference")
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  # the name of a type
OFFLINE = "offline_access"


@dataclass(frozen=True, slots=True)
class Settings:
    """How tokens are issued.

    Args:
        token_seconds: longest life of an access token.
        key_cache_seconds: how long verifiers may keep the key set.
        federation_ca: file with the root certificates for external issuers, PEM; None for the system's.
        federation_private: let external issuers be on loopback and private addresses.
    """

    token_seconds: int = tokens.LIFETIME_SECONDS
    key_cache_seconds: int = 300
    federation_ca: Path | None = None
    federation_private: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """The token that is asked for.

    Args:
        audience: service that it is for.
        scope: scopes, separated by spaces; empty for all.
        key_thumbprint: key to bind it to.
        certificate_thumbprint: certificate to bind it to.
        model_prefixes: limits, where there are any.
        lifetime: longest life in seconds; 0 for as long as is allowed.
    """

    audience: str
    scope: str = ""
    key_thumbprint: str = ""
    certificate_thumbprint: str = ""
    model_prefixes: tuple[str, ...] = ()
    lifetime: int = 0

    def check(self) -> None:
        """Refuse what can never work.

        Raises:
            InvalidArgument: unknown audience or scope, malformed thumbprint, two bindings.
        """
        if self.audience not in AUDIENCES:
            raise InvalidArgument(
                f"audience {self.audience!r} is unknown; use one of {list(AUDIENCES)}",
                field="audience",
                reason="UNKNOWN_AUDIENCE",
            )
        unknown = sorted(set(self.scope.split()) - PERMISSIONS - {OFFLINE})
        if unknown:
            raise InvalidArgument(
                f"scopes {unknown} are unknown; use some of {sorted(PERMISSIONS)}",
                field="scope",
                reason="UNKNOWN_SCOPE",
            )
        if self.key_thumbprint and not _is_thumbprint(self.key_thumbprint):
            raise InvalidArgument("key_thumbprint is no RFC 7638 SHA-256 thumbprint", field="key_thumbprint")
        if self.key_thumbprint and self.certificate_thumbprint:
            raise InvalidArgument("bind a token to a key or to a certificate, not to both", field="certificate_bound")
        if self.lifetime < 0:
            raise InvalidArgument(
                "lifetime_seconds is negative; leave it out for the longest", field="lifetime_seconds"
            )

    def scopes_of(self, grants: Grants) -> frozenset[str]:
        """The scopes asked for, which must all be in `grants`; all of them where none is named.

        Raises:
            PermissionDenied: not all are, or there are none at all.
        """
        asked = frozenset(self.scope.split()) - {OFFLINE}
        excess = sorted(asked - grants.scopes)
        if excess or not grants.scopes:
            raise PermissionDenied(
                f"scope {' '.join(excess) or 'of any kind'} is not held; ask an admin", reason="SCOPE_MISSING"
            )
        return asked or grants.scopes


@dataclass(frozen=True, slots=True)
class Issued:
    """What a client gets."""

    token: str = field(repr=False)
    token_type: str
    expires_in: int
    scope: str
    refresh_token: str = field(default="", repr=False)
    issued_type: str = ""


class Mint:
    """Signs tokens."""

    def __init__(self, clock: Clock, keyring: Keyring) -> None:
        self._clock = clock
        self._keyring = keyring

    def sign(self, store: Store, grant: tokens.Grant) -> Issued:
        """A signed token.

        Raises:
            FailedPrecondition: it would be longer than any service takes.
        """
        token = tokens.issue(grant, key=self._keyring.signing(store.keys), issuer=tokens.ISSUER, now=self._clock.now())
        if len(token) > jws.MAX_TOKEN_BYTES:
            raise FailedPrecondition(
                "the token would be too long for its model prefixes; ask for fewer scopes", reason="TOKEN_TOO_LONG"
            )
        return Issued(
            token, "DPoP" if grant.key_thumbprint else "Bearer", grant.lifetime, " ".join(sorted(grant.scopes))
        )


def id_of(issued: Issued) -> str:
    """Id (``jti``) of a token that was just signed."""
    return str(jws.parse(issued.token, header_names=frozenset({"alg", "kid", "typ"})).claims["jti"])


def _is_thumbprint(text: str) -> bool:
    try:
        return len(jws.decode(text)) == 32
    except Unauthenticated:
        return False
