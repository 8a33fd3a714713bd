"""Sessions and used ids on SQLite and PostgreSQL."""

from __future__ import annotations

import json
from dataclasses import asdict

import sqlalchemy as sa

from sealane_auth.session_store import Session

metadata = sa.MetaData()
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("session_id", sa.String, primary_key=True),
    sa.Column("token_hash", sa.String, nullable=False),
    sa.Column("subject", sa.String, nullable=False, index=True),
    sa.Column("client_id", sa.String, nullable=False),
    sa.Column("project", sa.String, nullable=False),
    sa.Column("scopes", sa.String, nullable=False),
    sa.Column("key_thumbprint", sa.String, nullable=False),
    sa.Column("certificate_thumbprint", sa.String, nullable=False),
    sa.Column("public", sa.Boolean, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("create_time", sa.Float, nullable=False),
    sa.Column("expire_time", sa.Float, nullable=False),
    sa.Column("tokens", sa.Text, nullable=False),
)
used_ids = sa.Table(
    "used_ids",
    metadata,
    sa.Column("identifier", sa.String, primary_key=True),
    sa.Column("until", sa.Float, nullable=False, index=True),
)


class SqlSessions:
    """Implements :class:`sealane_auth.session_store.SessionStore` on one connection."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def put_session(self, session: Session) -> None:
        """Add, or replace the one of the same id."""
        self.delete_session(session.session_id)
        written = {"scopes": " ".join(session.scopes), "tokens": json.dumps(session.tokens)}
        self._connection.execute(sessions.insert().values(asdict(session) | written))

    def session(self, session_id: str) -> Session | None:
        """A session."""
        row = self._connection.execute(sa.select(sessions).where(sessions.c.session_id == session_id)).one_or_none()
        return None if row is None else _session(row)

    def sessions_of(self, subject: str) -> list[Session]:
        """Sessions of a subject, oldest first."""
        order = (sessions.c.create_time, sessions.c.session_id)
        rows = self._connection.execute(sa.select(sessions).where(sessions.c.subject == subject).order_by(*order))
        return [_session(row) for row in rows]

    def delete_session(self, session_id: str) -> None:
        """Forget one."""
        self._connection.execute(sessions.delete().where(sessions.c.session_id == session_id))

    def delete_sessions(self, subject: str) -> int:
        """Forget all of a subject; how many there were."""
        return self._connection.execute(sessions.delete().where(sessions.c.subject == subject)).rowcount

    def expire(self, now: float) -> None:
        """Forget sessions whose time is over."""
        self._connection.execute(sessions.delete().where(sessions.c.expire_time < now))

    def use_id(self, identifier: str, until: float, now: float) -> bool:
        """Remember an id until a time; False where it is remembered already. Those whose time is over are forgotten."""
        self._connection.execute(used_ids.delete().where(used_ids.c.until < now))
        wanted = used_ids.c.identifier == identifier
        if self._connection.execute(sa.select(used_ids).where(wanted)).first() is not None:
            return False
        self._connection.execute(used_ids.insert().values(identifier=identifier, until=until))
        return True


def _session(row: sa.Row[tuple[object, ...]]) -> Session:
    tokens = tuple((str(token), float(end)) for token, end in json.loads(row.tokens))
    return Session(**(dict(row._mapping) | {"scopes": tuple(row.scopes.split()), "tokens": tokens}))
