"""Sessions (families of refresh tokens), and ids that may be used once: what is kept of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Session:
    """A family of refresh tokens, of which one is good at a time (RFC 9700 section 4.14.2).

    Args:
        session_id: random id, part of each of its refresh tokens.
        token_hash: SHA-256 of the refresh token that is good now, in hex.
        subject: resource name of the account.
        client_id: client that it belongs to.
        project: its project.
        scopes: scopes that it may ask for at most.
        key_thumbprint: key that its access tokens are bound to; empty for none.
        certificate_thumbprint: certificate that its access tokens are bound to; empty for none.
        public: whether a refresh needs no client authentication, because a person's passphrase began it.
        epoch: the subject's epoch when it began.
        create_time: seconds since 1970; it lives at most 90 days from then.
        expire_time: seconds since 1970; moves on with each use.
        tokens: ids of access tokens that may still be good, with the time each ends.
    """

    session_id: str
    token_hash: str
    subject: str
    client_id: str
    project: str
    scopes: tuple[str, ...]
    key_thumbprint: str
    certificate_thumbprint: str
    public: bool
    epoch: int
    create_time: float
    expire_time: float
    tokens: tuple[tuple[str, float], ...] = ()


class SessionStore(Protocol):
    """Records of sessions and used ids, inside one transaction."""

    def put_session(self, session: Session) -> None:
        """Add, or replace the one of the same id."""
        ...

    def session(self, session_id: str) -> Session | None:
        """A session."""
        ...

    def sessions_of(self, subject: str) -> list[Session]:
        """Sessions of a subject, oldest first."""
        ...

    def delete_session(self, session_id: str) -> None:
        """Forget one."""
        ...

    def delete_sessions(self, subject: str) -> int:
        """Forget all of a subject; how many there were."""
        ...

    def expire(self, now: float) -> None:
        """Forget sessions whose time is over."""
        ...

    def use_id(self, identifier: str, until: float, now: float) -> bool:
        """Remember an id until a time; False where it is remembered already. Those whose time is over are forgotten."""
        ...
