"""Who the client is, and the tokens it gets for that: one per service, cached, refreshed in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.auth.v1 import token_service_pb2
from sealane.errors import FailedPrecondition, SealaneError, Unauthenticated
from sealane.security import jws, proof

_HEADER = frozenset({"alg", "kid", "typ"})
_REFRESH_AT = 0.8
_RETRY_SECONDS = 5.0
_MARGIN_SECONDS = 2.0
#: Reasons for which a new token may be taken where this one was not.
_DEAD = frozenset({"TOKEN_REVOKED", "TOKEN_KEY", "TOKEN_EXPIRED"})


@dataclass(frozen=True, slots=True)
class Token:
    """An access token and the claims that its holder needs.

    Args:
        text: the token itself; never logged.
        token_id: ``jti``; sealed requests are bound to it.
        project: project that it acts in.
        expires: seconds since 1970 at which it ends.
        refresh: seconds since 1970 at which a new one should be fetched.
        bound: whether it is bound to the client's key.
    """

    text: str = field(repr=False)
    token_id: str
    project: str
    expires: float
    refresh: float
    bound: bool

    @classmethod
    def of(cls, text: str) -> Token:
        """Read the claims of a token. They are the client's own and only the services need to verify them.

        Raises:
            Unauthenticated: this is no token.
        """
        claims = jws.parse(text, header_names=_HEADER).claims
        issued, expires = claims.get("iat"), claims.get("exp")
        if not isinstance(issued, int) or not isinstance(expires, int):
            raise Unauthenticated("the token says not when it expires; get a new one", reason="TOKEN_MALFORMED")
        return cls(
            text=text,
            token_id=str(claims.get("jti", "")),
            project=str(claims.get("project", "")),
            expires=float(expires),
            refresh=issued + _REFRESH_AT * (expires - issued),
            bound="cnf" in claims,
        )


class Credentials(Protocol):
    """A way to get tokens."""

    @property
    def key(self) -> Ed25519PrivateKey | None:
        """Key that bound tokens are bound to; None lets the client make one."""
        ...

    @property
    def project(self) -> str:
        """Project that is acted in; empty lets the client read it from a token."""
        ...

    def fetch(self, issue: Issue, audience: str, thumbprint: str) -> str:
        """A token for `audience`, bound to the key of `thumbprint` unless that is empty."""
        ...


Issue = Callable[
    [token_service_pb2.IssueTokenRequest | token_service_pb2.ExchangeTokenRequest],
    token_service_pb2.IssueTokenResponse,
]
"""Asks auth for a token, for a credential or for another token."""


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """Id and secret of a service account (RFC 6749 section 4.4).

    Args:
        client_id: its id, ``account@project``.
        client_secret: its secret.
        scope: scopes to ask for, separated by spaces; empty asks for all that the account holds.
        project: its project; empty reads it from the first token.
    """

    client_id: str
    client_secret: str = field(repr=False)
    scope: str = ""
    project: str = ""

    @property
    def key(self) -> Ed25519PrivateKey | None:
        """The client makes its own."""
        return None

    def fetch(self, issue: Issue, audience: str, thumbprint: str) -> str:
        """A token from auth."""
        request = token_service_pb2.IssueTokenRequest(
            grant_type="client_credentials",
            client_id=self.client_id,
            client_secret=self.client_secret,
            audience=audience,
            scope=self.scope,
            key_thumbprint=thumbprint,
        )
        return issue(request).access_token


@dataclass(frozen=True, slots=True)
class StaticToken:
    """Tokens fetched before, for a site that is cut off from auth, and for tests.

    Args:
        tokens: audience -> token; or one token, used for every audience.
        key: key that the tokens are bound to, where they are.
    """

    tokens: Mapping[str, str] | str = field(repr=False)
    key: Ed25519PrivateKey | None = field(default=None, repr=False)

    @property
    def project(self) -> str:
        """The project in the tokens."""
        text = self.tokens if isinstance(self.tokens, str) else next(iter(self.tokens.values()), "")
        return Token.of(text).project

    def fetch(self, issue: Issue, audience: str, thumbprint: str) -> str:
        """The token that is there; auth is not asked.

        Raises:
            FailedPrecondition: none for this audience.
        """
        text = self.tokens if isinstance(self.tokens, str) else self.tokens.get(audience, "")
        if not text:
            raise FailedPrecondition(
                f"no token for {audience} was given; fetch one while auth is in reach with "
                f"'sealane token --audience {audience}'",
                reason="NO_TOKEN",
            )
        return text


class TokenSource:
    """Caches tokens per audience and binding; a refresh runs beside the calls, which use what is there.

    While auth is out of reach a token is used until it expires.
    """

    def __init__(self, credentials: Credentials, issue: Issue) -> None:
        self._credentials = credentials
        self._issue = issue
        self._slots: dict[tuple[str, bool], _Slot] = {}
        self._lock = threading.Lock()
        self.key = credentials.key or Ed25519PrivateKey.generate()
        self.thumbprint = jws.thumbprint(self.key.public_key().public_bytes_raw())

    def get(self, audience: str, *, bound: bool = False) -> Token:
        """A token that is good now.

        Raises:
            SealaneError: auth refused, or is out of reach and no token is left.
        """
        with self._lock:
            slot = self._slots.setdefault((audience, bound), _Slot())
        now = time.time()
        token = slot.token
        usable = token is not None and now < token.expires - _MARGIN_SECONDS
        if token is not None and usable and now < max(token.refresh, slot.retry):
            return token
        if token is not None and usable:
            if slot.lock.acquire(blocking=False):
                # No call waits for a refresh, least of all while auth is away.
                threading.Thread(target=self._refresh_quietly, args=(slot, audience, bound), daemon=True).start()
            return token
        with slot.lock:
            return self._refresh(slot, audience, bound)

    def _refresh(self, slot: _Slot, audience: str, bound: bool) -> Token:
        token = slot.token
        if token is not None and time.time() < token.refresh:
            return token  # another caller was first
        fetched = Token.of(self._credentials.fetch(self._issue, audience, self.thumbprint if bound else ""))
        slot.token = fetched
        return fetched

    def _refresh_quietly(self, slot: _Slot, audience: str, bound: bool) -> None:
        try:
            self._refresh(slot, audience, bound)
        except (SealaneError, ValueError):  # ValueError: the client was closed meanwhile
            slot.retry = time.time() + _RETRY_SECONDS
        finally:
            slot.lock.release()

    def refused(self, failure: SealaneError) -> bool:
        """A service no longer takes a token: forget what is cached. Whether it makes sense to try again.

        A token that was good is refused after an emergency: its key was retired, or its subject's tokens were revoked.
        """
        if not isinstance(failure, Unauthenticated) or failure.reason not in _DEAD:
            return False
        with self._lock:
            self._slots.clear()
        return True

    def headers(self, token: Token, method_path: str, *, prove: bool = True) -> dict[str, str]:
        """Metadata that authenticates one call of `method_path`; `prove` where the body is no proof itself."""
        if not token.bound:
            return {"authorization": f"Bearer {token.text}"}
        headers = {"authorization": f"DPoP {token.text}"}
        if prove:
            headers["dpop"] = proof.prove(self.key, method_path=method_path, token=token.text, now=time.time())
        return headers


class _Slot:
    """The token of one audience and binding."""

    __slots__ = ("lock", "retry", "token")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.token: Token | None = None
        self.retry = 0.0


@dataclass(frozen=True, slots=True)
class AudienceCredentials:
    """Authenticates the calls of one channel (:class:`sealane.rpc.channel.Credentials`).

    Args:
        source: where tokens come from.
        audience: service that the channel leads to.
    """

    source: TokenSource
    audience: str

    def metadata(self, method_path: str) -> Mapping[str, str]:
        """Metadata of one call; a fresh proof every time."""
        return self.source.headers(self.source.get(self.audience), method_path)

    def refused(self, failure: SealaneError) -> bool:
        """Forget tokens that a service no longer takes; whether it makes sense to try again."""
        return self.source.refused(failure)
