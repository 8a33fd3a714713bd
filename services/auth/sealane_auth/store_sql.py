"""The store on SQLite and PostgreSQL: one connection, shared by the nouns."""

from __future__ import annotations

import sqlalchemy as sa

from sealane.records import tables
from sealane.records.tables import Actor
from sealane_auth import account_sql, issuer_sql, key_sql, peer_sql, revocation_sql, session_sql
from sealane_auth.account_sql import SqlAccounts
from sealane_auth.issuer_sql import SqlIssuers
from sealane_auth.key_sql import SqlKeys
from sealane_auth.peer_sql import SqlPeers
from sealane_auth.revocation_sql import SqlRevocations
from sealane_auth.session_sql import SqlSessions

#: Tables of every noun.
METADATA = tuple(
    module.metadata for module in (account_sql, session_sql, issuer_sql, peer_sql, key_sql, revocation_sql)
)


class SqlStore:
    """Implements :class:`sealane_auth.store.Store` on one connection."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self.accounts = SqlAccounts(connection)
        self.sessions = SqlSessions(connection)
        self.issuers = SqlIssuers(connection)
        self.peers = SqlPeers(connection)
        self.keys = SqlKeys(connection)
        self.revocations = SqlRevocations(connection)

    def record(self, actor: Actor, action: str, resource: str, now: float, **details: str) -> None:
        """Audit and announce one change, in its transaction."""
        tables.record(self._connection, actor=actor, action=action, resource=resource, now=now, **details)
