"""The store on SQLite and PostgreSQL."""

from __future__ import annotations

import json

import sqlalchemy as sa

from sealane.errors import AlreadyExists
from sealane.records import tables
from sealane.records.tables import Actor
from sealane_auth.store import Account, EnrolledPeer, JoinToken, SigningKey

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("project", sa.String, primary_key=True),
    sa.Column("account_id", sa.String, primary_key=True),
    sa.Column("client_id", sa.String, nullable=False, unique=True),
    sa.Column("secret_hash", sa.String, nullable=False),
    sa.Column("scopes", sa.String, nullable=False),
    sa.Column("create_time", sa.Float, nullable=False),
    sa.Column("etag", sa.String, nullable=False),
)
join_tokens = sa.Table(
    "join_tokens",
    metadata,
    sa.Column("token_hash", sa.String, primary_key=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("subject", sa.String, nullable=False),
    sa.Column("attributes", sa.Text, nullable=False),
    sa.Column("hosts", sa.String, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
)
peers = sa.Table(
    "peers",
    metadata,
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("subject", sa.String, primary_key=True),
    sa.Column("attributes", sa.Text, nullable=False),
    sa.Column("hosts", sa.String, nullable=False),
)
signing_keys = sa.Table(
    "signing_keys",
    metadata,
    sa.Column("kid", sa.String, primary_key=True),
    sa.Column("private_pem", sa.LargeBinary, nullable=False),
    sa.Column("create_time", sa.Float, nullable=False),
)


class SqlStore:
    """Implements :class:`sealane_auth.store.Store` on one connection."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def add_account(self, account: Account) -> None:
        """Add; a taken (project, account_id) raises AlreadyExists."""
        taken = sa.select(accounts.c.client_id).where(
            (accounts.c.project == account.project) & (accounts.c.account_id == account.account_id)
        )
        if self._connection.execute(taken).first() is not None:
            raise AlreadyExists(f"service account {account.account_id} exists; choose another id")
        row = {
            "project": account.project,
            "account_id": account.account_id,
            "client_id": account.client_id,
            "secret_hash": account.secret_hash,
            "scopes": " ".join(account.scopes),
            "create_time": account.create_time,
            "etag": account.etag,
        }
        self._connection.execute(accounts.insert().values(row))

    def account_by_client(self, client_id: str) -> Account | None:
        """The account of a client id."""
        row = self._connection.execute(sa.select(accounts).where(accounts.c.client_id == client_id)).one_or_none()
        return None if row is None else _account(row)

    def accounts(self, project: str, after: str, limit: int) -> list[Account]:
        """Accounts of a project by id, strictly after the id `after`."""
        wanted = (accounts.c.project == project) & (accounts.c.account_id > after)
        rows = self._connection.execute(sa.select(accounts).where(wanted).order_by(accounts.c.account_id).limit(limit))
        return [_account(row) for row in rows]

    def add_join_token(self, token: JoinToken) -> None:
        """Add an unused token."""
        self._connection.execute(
            join_tokens.insert().values(
                token_hash=token.token_hash,
                kind=token.kind,
                subject=token.subject,
                attributes=json.dumps(token.attributes),
                hosts=",".join(token.hosts),
                expires=token.expires,
            )
        )

    def take_join_token(self, token_hash: str) -> JoinToken | None:
        """Use a token up: returns it the first time, None ever after."""
        taken = join_tokens.delete().where(join_tokens.c.token_hash == token_hash).returning(*join_tokens.c)
        row = self._connection.execute(taken).one_or_none()
        if row is None:
            return None
        return JoinToken(
            row.token_hash, row.kind, row.subject, json.loads(row.attributes), _hosts(row.hosts), row.expires
        )

    def put_peer(self, peer: EnrolledPeer) -> None:
        """Add or replace a peer."""
        key = (peers.c.kind == peer.kind) & (peers.c.subject == peer.subject)
        self._connection.execute(peers.delete().where(key))
        self._connection.execute(
            peers.insert().values(
                kind=peer.kind,
                subject=peer.subject,
                attributes=json.dumps(peer.attributes),
                hosts=",".join(peer.hosts),
            )
        )

    def peer(self, kind: str, subject: str) -> EnrolledPeer | None:
        """A peer that has joined."""
        key = (peers.c.kind == kind) & (peers.c.subject == subject)
        row = self._connection.execute(sa.select(peers).where(key)).one_or_none()
        return (
            None if row is None else EnrolledPeer(row.kind, row.subject, json.loads(row.attributes), _hosts(row.hosts))
        )

    def add_signing_key(self, key: SigningKey) -> None:
        """Add a key."""
        self._connection.execute(
            signing_keys.insert().values(kid=key.kid, private_pem=key.private_pem, create_time=key.create_time)
        )

    def signing_keys(self) -> list[SigningKey]:
        """All keys, oldest first."""
        rows = self._connection.execute(sa.select(signing_keys).order_by(signing_keys.c.create_time))
        return [SigningKey(row.kid, row.private_pem, row.create_time) for row in rows]

    def record(self, actor: Actor, action: str, resource: str, now: float, **details: str) -> None:
        """Audit and announce one change, in its transaction."""
        tables.record(self._connection, actor=actor, action=action, resource=resource, now=now, **details)


def _account(row: sa.Row[tuple[object, ...]]) -> Account:
    values = row._mapping
    return Account(
        project=str(values["project"]),
        account_id=str(values["account_id"]),
        client_id=str(values["client_id"]),
        secret_hash=str(values["secret_hash"]),
        scopes=tuple(str(values["scopes"]).split()),
        create_time=float(str(values["create_time"])),
        etag=str(values["etag"]),
    )


def _hosts(text: str) -> tuple[str, ...]:
    return tuple(host for host in text.split(",") if host)
