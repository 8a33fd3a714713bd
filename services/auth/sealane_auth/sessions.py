"""The rules of refresh tokens: each is good once, and one that comes again ends its family.

RFC 6749 section 6 with rotation (RFC 9700 section 4.14.2): who shows a used token is either the client or a thief, and
nobody can tell which, so both lose the session and the access tokens that it gave.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import replace

from sealane.clock import Clock
from sealane.errors import ResourceExhausted, Unauthenticated
from sealane.records.tables import Actor
from sealane_auth.accounts import hash_secret
from sealane_auth.minting import Issued, id_of
from sealane_auth.session_store import Session
from sealane_auth.store import Store

SLIDING_SECONDS = 30 * 86_400.0
ABSOLUTE_SECONDS = 90 * 86_400.0
_SESSIONS_PER_SUBJECT = 50
_TOKENS_AT_ONCE = 200


class SessionRules:
    """Begins, continues and ends sessions."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def begin(self, store: Store, session: Session, issued: Issued) -> Issued:
        """Start a session, whose id, times and tokens are filled in; `issued` with its first refresh token."""
        now = self._clock.now()
        store.sessions.expire(now)
        for old in store.sessions.sessions_of(session.subject)[: 1 - _SESSIONS_PER_SUBJECT]:
            self.end(store, old, Actor(old.subject, old.project), "oldest of too many")
        secret = secrets.token_urlsafe(32)
        made = replace(
            session,
            session_id=secrets.token_hex(16),
            token_hash=hash_secret(secret),
            create_time=now,
            expire_time=now + SLIDING_SECONDS,
            tokens=((id_of(issued), now + issued.expires_in),),
        )
        store.sessions.put_session(made)
        store.record(Actor(made.subject, made.project), "BeginSession", _name(made), now, scopes=" ".join(made.scopes))
        return replace(issued, refresh_token=f"{made.session_id}.{secret}")

    def find(self, store: Store, refresh_token: str) -> Session:
        """The session that a refresh token belongs to, used tokens included.

        Raises:
            Unauthenticated: none, or its time is over, or its subject was revoked since.
        """
        session = store.sessions.session(refresh_token.partition(".")[0])
        if session is None or session.expire_time <= self._clock.now():
            raise refused()
        if store.revocations.epoch_of(session.subject) > session.epoch:
            raise refused()
        return session

    def is_current(self, session: Session, refresh_token: str) -> bool:
        """Whether a refresh token is the one that is good now, and no used one."""
        return hmac.compare_digest(hash_secret(refresh_token.partition(".")[2]), session.token_hash)

    def go_on(self, store: Store, session: Session, issued: Issued) -> Issued:
        """Replace the refresh token; `issued` with its successor.

        Raises:
            ResourceExhausted: so many access tokens at once cannot be watched.
        """
        now, secret = self._clock.now(), secrets.token_urlsafe(32)
        live = tuple(each for each in session.tokens if each[1] > now)
        if len(live) >= _TOKENS_AT_ONCE:
            raise ResourceExhausted("this session has too many tokens; use those that it got", retry_after=60.0)
        store.sessions.put_session(
            replace(
                session,
                token_hash=hash_secret(secret),
                expire_time=min(now + SLIDING_SECONDS, session.create_time + ABSOLUTE_SECONDS),
                tokens=(*live, (id_of(issued), now + issued.expires_in)),
            )
        )
        return replace(issued, refresh_token=f"{session.session_id}.{secret}")

    def end(self, store: Store, session: Session, actor: Actor, why: str) -> None:
        """End a session and revoke the access tokens that it gave."""
        now = self._clock.now()
        for token_id, ends in session.tokens:
            if ends > now:
                store.revocations.revoke_token(session.project, token_id, ends, now)
        store.sessions.delete_session(session.session_id)
        store.record(actor, "EndSession", _name(session), now, reason=why)


def is_refresh_token(text: str) -> bool:
    """Whether a text has the form of a refresh token; access tokens have two dots."""
    return text.count(".") == 1


def refused() -> Unauthenticated:
    """The one answer to a refresh token that is not good."""
    return Unauthenticated("the refresh token is unknown, used or expired; log in again", reason="INVALID_GRANT")


def _name(session: Session) -> str:
    # The id is half of what a refresh token is made of: the log gets a part that names it and opens nothing.
    return f"{session.subject}/sessions/{session.session_id[:8]}"
