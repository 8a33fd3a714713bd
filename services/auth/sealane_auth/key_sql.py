"""Signing keys on SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import asdict

import sqlalchemy as sa

from sealane_auth.key_store import SigningKey

metadata = sa.MetaData()
signing_keys = sa.Table(
    "signing_keys",
    metadata,
    sa.Column("kid", sa.String, primary_key=True),
    sa.Column("public", sa.LargeBinary, nullable=False),
    sa.Column("sealed_private", sa.LargeBinary, nullable=False),
    sa.Column("create_time", sa.Float, nullable=False),
    sa.Column("sign_time", sa.Float, nullable=False),
    sa.Column("withdraw_time", sa.Float, nullable=False),
    sa.Column("revoke_time", sa.Float, nullable=False),
)


class SqlKeys:
    """Implements :class:`sealane_auth.key_store.KeyStore` on one connection."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def put_key(self, key: SigningKey) -> None:
        """Add a key, or replace the one of the same id."""
        self.delete_key(key.kid)
        self._connection.execute(signing_keys.insert().values(**asdict(key)))

    def all(self) -> list[SigningKey]:
        """All keys, oldest first."""
        order = (signing_keys.c.create_time, signing_keys.c.sign_time, signing_keys.c.kid)
        rows = self._connection.execute(sa.select(signing_keys).order_by(*order))
        return [SigningKey(**row._mapping) for row in rows]

    def delete_key(self, kid: str) -> None:
        """Forget a key."""
        self._connection.execute(signing_keys.delete().where(signing_keys.c.kid == kid))
