"""The one row that says which scheduler leads, on the database's own clock.

Whoever leads renews it. Whoever takes it over makes its epoch grow, and every write of the one before is refused by the
epoch from then on, in the transaction of that write.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

metadata = sa.MetaData()
leadership = sa.Table(
    "leadership",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("holder", sa.String, nullable=False),
    sa.Column("address", sa.String, nullable=False),
    sa.Column("mesh_address", sa.String, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("until", sa.Float, nullable=False),
)
_ROW = leadership.c.id == 1
# Made once: every group of writes asks.
_EPOCH = sa.select(leadership.c.epoch).where(_ROW)
_EPOCH_HELD = _EPOCH.with_for_update(read=True)


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who leads, or wants to.

    Args:
        holder: a process; the same after it was started again.
        address: where others reach its client port.
        mesh_address: where others reach its mesh port.
    """

    holder: str = ""
    address: str = ""
    mesh_address: str = ""


def leader(connection: sa.Connection) -> Claimant:
    """Who leads, or led last."""
    columns = (leadership.c.holder, leadership.c.address, leadership.c.mesh_address)
    return Claimant(*connection.execute(sa.select(*columns).where(_ROW)).one())


def claim(connection: sa.Connection, who: Claimant, seconds: float, *, force: bool = False) -> int:
    """Take the lead where nobody has it.

    Args:
        connection: of this transaction.
        who: wants it.
        seconds: for which it is taken.
        force: take it from whoever has it, of whom is known that it has ended.

    Returns:
        The epoch of the lead, which grows with every claim; 0 where somebody else has it.
    """
    now = _now(connection)
    free = (leadership.c.until < now) | (leadership.c.holder == who.holder)
    values = {"holder": who.holder, "address": who.address, "mesh_address": who.mesh_address}
    taken = leadership.update().where(_ROW if force else _ROW & free)
    epoch = taken.values(**values, epoch=leadership.c.epoch + 1, until=now + seconds).returning(leadership.c.epoch)
    return int(connection.execute(epoch).scalar_one_or_none() or 0)


def renew(connection: sa.Connection, epoch: int, seconds: float) -> bool:
    """Keep the lead for so many seconds from now; 0 gives it up. Whether it was still had."""
    mine = leadership.update().where(_ROW & (leadership.c.epoch == epoch))
    return connection.execute(mine.values(until=_now(connection) + seconds)).rowcount == 1


def holds(connection: sa.Connection, epoch: int) -> bool:
    """Whether the lead is still that of `epoch`. Nobody takes it over before this transaction has ended."""
    query = _EPOCH_HELD if connection.dialect.name == "postgresql" else _EPOCH
    return bool(connection.execute(query).scalar_one() == epoch)


def _now(connection: sa.Connection) -> sa.ColumnElement[float]:
    """The database's clock, seconds since 1970, at this statement and not at the begin of its transaction."""
    if connection.dialect.name == "postgresql":
        return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Float)
    return (sa.func.julianday("now") - 2440587.5) * 86400.0
