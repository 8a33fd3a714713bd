"""Revocations on SQLite and PostgreSQL."""

from __future__ import annotations

import sqlalchemy as sa

from sealane.security.revocations import Kind, Revoked

metadata = sa.MetaData()
revocations = sa.Table(
    "revocations",
    metadata,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("value", sa.String, nullable=False),
    sa.Column("project", sa.String, nullable=False),
    sa.Column("number", sa.Float, nullable=False),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("until", sa.Float, nullable=False),
    sqlite_autoincrement=True,
)
epochs = sa.Table(
    "subject_epochs",
    metadata,
    sa.Column("subject", sa.String, primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),
)


class SqlRevocations:
    """Implements :class:`sealane_auth.revocation_store.RevocationStore` on one connection."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def add(self, revoked: Revoked, now: float, until: float = 0.0) -> int:
        """Add one; its sequence. `until` is when it no longer matters, 0 for never."""
        self._connection.execute(
            revocations.delete().where((revocations.c.until > 0) & (revocations.c.until < now - 3600))
        )
        added = self._connection.execute(
            revocations.insert().values(
                kind=revoked.kind.value,
                value=revoked.value,
                project=revoked.project,
                number=revoked.number,
                time=now,
                until=until,
            )
        )
        assert added.inserted_primary_key is not None
        return int(added.inserted_primary_key[0])

    def after(self, sequence: int, now: float, limit: int | None = None) -> list[tuple[int, Revoked]]:
        """Those after `sequence` that still matter, oldest first, `limit` of them at most."""
        rows = self._connection.execute(
            sa.select(revocations)
            .where(revocations.c.sequence > sequence)
            .where(_matters(now))
            .order_by(revocations.c.sequence)
            .limit(limit)
        )
        return [(row.sequence, Revoked(Kind(row.kind), row.value, row.project, row.number)) for row in rows]

    def issuers(self, now: float) -> set[str]:
        """Key identifiers of the intermediates that are distrusted."""
        issuer = revocations.c.kind == Kind.ISSUER.value
        return set(self._connection.scalars(sa.select(revocations.c.value).where(issuer & _matters(now))))

    def count_tokens(self, project: str, now: float) -> int:
        """How many revocations of single tokens of a project still matter."""
        theirs = (revocations.c.kind == Kind.TOKEN.value) & (revocations.c.project == project)
        count = sa.select(sa.func.count()).select_from(revocations).where(theirs & _matters(now))
        return int(self._connection.execute(count).scalar_one())

    def last(self) -> int:
        """Sequence of the last one ever added; 0 for none."""
        return int(self._connection.execute(sa.select(sa.func.max(revocations.c.sequence))).scalar() or 0)

    def epoch_of(self, subject: str) -> int:
        """First epoch of a subject that is good."""
        found = self._connection.execute(sa.select(epochs.c.epoch).where(epochs.c.subject == subject)).scalar()
        return int(found or 0)

    def revoke_subject(self, subject: str, now: float) -> int:
        """Revoke all tokens that a subject has now; the new epoch."""
        epoch = self.epoch_of(subject) + 1
        self._connection.execute(epochs.delete().where(epochs.c.subject == subject))
        self._connection.execute(epochs.insert().values(subject=subject, epoch=epoch))
        # Tokens that begin before are over within the longest life of a token.
        self.add(Revoked(Kind.SUBJECT, subject, number=float(epoch)), now, now + MATTERS_SECONDS)
        return epoch

    def revoke_token(self, project: str, token_id: str, until: float, now: float) -> None:
        """Revoke one token, which ends by itself at `until`."""
        self.add(Revoked(Kind.TOKEN, token_id, project), now, max(until, now) + MATTERS_SECONDS)


def _matters(now: float) -> sa.ColumnElement[bool]:
    return (revocations.c.until == 0) | (revocations.c.until >= now)


#: How long a revoked token could still be shown: its longest life, and clocks that differ.
MATTERS_SECONDS = 960.0
