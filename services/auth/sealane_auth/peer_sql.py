"""Join tokens and peers on SQLite and PostgreSQL."""

from __future__ import annotations

import json

import sqlalchemy as sa

from sealane_auth.peer_store import JoinToken, Offline, Peer, VouchedKey

metadata = sa.MetaData()
join_tokens = sa.Table(
    "join_tokens",
    metadata,
    sa.Column("token_hash", sa.String, primary_key=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("subject", sa.String, nullable=False),
    sa.Column("attributes", sa.Text, nullable=False),
    sa.Column("hosts", sa.String, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
    sa.Column("offline", sa.Text, nullable=False),
)
peers = sa.Table(
    "peers",
    metadata,
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("subject", sa.String, primary_key=True),
    sa.Column("attributes", sa.Text, nullable=False),
    sa.Column("hosts", sa.String, nullable=False),
    sa.Column("device_key", sa.LargeBinary, nullable=False),
    sa.Column("offline", sa.Text, nullable=False),
    sa.Column("join_time", sa.Float, nullable=False),
    sa.Column("evict_time", sa.Float, nullable=False),
)


sealing_statements = sa.Table(
    "sealing_statements",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("node", sa.String, nullable=False),
    sa.Column("jws", sa.Text, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
)


class SqlPeers:
    """Implements :class:`sealane_auth.peer_store.PeerStore` on one connection."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

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
                offline=_written(token.offline),
            )
        )

    def take_join_token(self, token_hash: str) -> JoinToken | None:
        """Use a token up: returns it the first time, None ever after."""
        taken = join_tokens.delete().where(join_tokens.c.token_hash == token_hash).returning(*join_tokens.c)
        row = self._connection.execute(taken).one_or_none()
        if row is None:
            return None
        return JoinToken(
            token_hash=row.token_hash,
            kind=row.kind,
            subject=row.subject,
            attributes=json.loads(row.attributes),
            hosts=_hosts(row.hosts),
            expires=row.expires,
            offline=_read(row.offline),
        )

    def forget_join_tokens(self, kind: str, subject: str) -> None:
        """Delete the unused tokens for one subject."""
        theirs = (join_tokens.c.kind == kind) & (join_tokens.c.subject == subject)
        self._connection.execute(join_tokens.delete().where(theirs))

    def forget_expired_join_tokens(self, now: float) -> None:
        """Delete the tokens that can no longer be used."""
        self._connection.execute(join_tokens.delete().where(join_tokens.c.expires < now))

    def put_peer(self, peer: Peer) -> None:
        """Add or replace a peer."""
        key = (peers.c.kind == peer.kind) & (peers.c.subject == peer.subject)
        self._connection.execute(peers.delete().where(key))
        self._connection.execute(
            peers.insert().values(
                kind=peer.kind,
                subject=peer.subject,
                attributes=json.dumps(peer.attributes),
                hosts=",".join(peer.hosts),
                device_key=peer.device_key,
                offline=_written(peer.offline),
                join_time=peer.join_time,
                evict_time=peer.evict_time,
            )
        )

    def peer(self, kind: str, subject: str) -> Peer | None:
        """A peer that has joined, evicted ones included."""
        key = (peers.c.kind == kind) & (peers.c.subject == subject)
        row = self._connection.execute(sa.select(peers).where(key)).one_or_none()
        return None if row is None else _peer(row)

    def peers(self, after: tuple[str, str], limit: int) -> list[Peer]:
        """Peers by (kind, subject), strictly after `after`."""
        kind, subject = after
        wanted = (peers.c.kind > kind) | ((peers.c.kind == kind) & (peers.c.subject > subject))
        rows = self._connection.execute(
            sa.select(peers).where(wanted).order_by(peers.c.kind, peers.c.subject).limit(limit)
        )
        return [_peer(row) for row in rows]

    def put_statement(self, vouched: VouchedKey, now: float) -> None:
        """Keep the statement about a key in the place of an earlier one; those that have expired are forgotten."""
        table = sealing_statements
        self._connection.execute(table.delete().where((table.c.name == vouched.name) | (table.c.expires <= now)))
        values = {"name": vouched.name, "node": vouched.node, "jws": vouched.jws, "expires": vouched.expires}
        self._connection.execute(table.insert().values(values))

    def forget_statement(self, node: str) -> None:
        """A node has none any more."""
        self._connection.execute(sealing_statements.delete().where(sealing_statements.c.node == node))

    def statements(self, now: float, after: str, limit: int) -> list[VouchedKey]:
        """Statements that are good at `now`, by name, strictly after `after`."""
        table = sealing_statements
        good = (table.c.expires > now) & (table.c.name > after)
        rows = self._connection.execute(sa.select(table).where(good).order_by(table.c.name).limit(limit))
        return [VouchedKey(row.node, row.name.rpartition("/")[2], row.jws, row.expires) for row in rows]

    def longest_offline(self) -> float:
        """The longest time, in seconds, for which a welcome node may serve its site alone; 0 for none."""
        rows = self._connection.execute(sa.select(peers.c.offline).where(peers.c.evict_time == 0))
        return max((_read(row.offline).ttl for row in rows), default=0.0)


def _peer(row: sa.Row[tuple[object, ...]]) -> Peer:
    return Peer(
        kind=row.kind,
        subject=row.subject,
        attributes=json.loads(row.attributes),
        hosts=_hosts(row.hosts),
        device_key=row.device_key,
        offline=_read(row.offline),
        join_time=row.join_time,
        evict_time=row.evict_time,
    )


def _written(offline: Offline) -> str:
    return json.dumps({"ttl": offline.ttl, "accounts": list(offline.accounts)})


def _read(text: str) -> Offline:
    facts = json.loads(text)
    return Offline(float(facts["ttl"]), tuple(facts["accounts"]))


def _hosts(text: str) -> tuple[str, ...]:
    return tuple(host for host in text.split(",") if host)
