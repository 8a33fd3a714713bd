"""Reads the audit tables as they are, believing nothing: a row may have been edited behind the service's back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from sealane.records.database import Database
from sealane.records.tables import audit, audit_checkpoints
from sealane.security.audit_checkpoint import Checkpoint
from sealane.security.audit_log import AuditRow, Bounds, Unreadable

BATCH = 1000
#: A row that waits for its seal for longer is a fault while the service runs.
UNSEALED_SECONDS = 30.0
_TEXTS = ("project", "actor", "action", "resource", "request_id", "details")

Read = AuditRow | Unreadable


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events of a project; what is empty lets everything pass."""

    project: str
    action: str = ""
    actor: str = ""
    resource_prefix: str = ""
    start: float | None = None
    end: float | None = None


def rows(database: Database) -> Iterator[Read]:
    """All rows by sequence, then those without one; read in batches, so that work in between goes on.

    Blocks: not for an event loop.
    """
    last: int | None = -(2**63)
    while last is not None:
        batch = database.read(_reader(audit.c.sequence > sa.literal(last, sa.BigInteger), audit.c.sequence)).result()
        yield from batch
        last = _last([row.sequence for row in batch])
    last = 0
    while last is not None:
        batch = database.read(_reader(audit.c.sequence.is_(None) & (audit.c.id > last), audit.c.id)).result()
        yield from batch
        last = _last([row.id for row in batch])


def checkpoints(database: Database, service: str) -> Iterator[Checkpoint]:
    """All checkpoints by sequence, in batches. Blocks."""
    after = (-1, 0)
    while True:
        batch = database.read(_checkpoint_reader(service, after)).result()
        for _, checkpoint in batch:
            yield checkpoint
        if len(batch) < BATCH:
            return
        after = (batch[-1][1].sequence, batch[-1][0])


def bounds(connection: sa.Connection, now: float) -> Bounds:
    """What the table says about its end. SQLite keeps the highest id it gave out, and gives back what is undone."""
    before = int((now - UNSEALED_SECONDS) * 1e9)
    if connection.dialect.name != "sqlite":
        return Bounds(unsealed_before_ns=before)
    last = connection.execute(sa.text("select seq from sqlite_sequence where name = 'audit'")).scalar()
    return Bounds(last if isinstance(last, int) else 0, dense=True, unsealed_before_ns=before)


def events(connection: sa.Connection, wanted: Filter, after: int, size: int) -> list[Read]:
    """Rows of a project after an id, oldest first."""
    columns = audit.c
    where = (columns.project == wanted.project) & (columns.id > after)
    if wanted.action:
        where &= columns.action == wanted.action
    if wanted.actor:
        where &= columns.actor == wanted.actor
    if wanted.resource_prefix:
        prefix = wanted.resource_prefix  # not LIKE: SQLite's does not mind the case
        where &= sa.func.substr(columns.resource, 1, len(prefix)) == prefix
    if wanted.start is not None:
        where &= columns.time >= wanted.start
    if wanted.end is not None:
        where &= columns.time < wanted.end
    found = connection.execute(sa.select(audit).where(where).order_by(columns.id).limit(size))
    return [read(row) for row in found.mappings()]


def checkpoint_page(connection: sa.Connection, service: str, after: int, size: int) -> list[tuple[int, Checkpoint]]:
    """Checkpoints with their ids, in the order they were made."""
    query = sa.select(audit_checkpoints).where(audit_checkpoints.c.id > after)
    found = connection.execute(query.order_by(audit_checkpoints.c.id).limit(size)).mappings()
    return [(row["id"], _checkpoint(row, service)) for row in found]


def read(row: sa.RowMapping) -> Read:
    """A row of the table; what no service writes makes it unreadable."""
    sequence, seal, time = row["sequence"], row["hash"], row["time"]
    number = sequence if type(sequence) is int else None
    if sequence is not None and number is None:
        return Unreadable(row["id"], None, f"the sequence of row {row['id']} is not a number")
    texts = {name: row[name] for name in _TEXTS}
    wrong = [name for name, value in texts.items() if type(value) is not str]
    if type(time) is not float or not math.isfinite(time):
        wrong.append("time")
    try:
        digest = bytes.fromhex(seal) if seal is not None else b""
    except (TypeError, ValueError):
        digest, wrong = b"", [*wrong, "hash"]
    if wrong:
        return Unreadable(row["id"], number, f"{' and '.join(wrong)} of row {row['id']} are not of their kind")
    numerator, denominator = time.as_integer_ratio()
    return AuditRow(
        row["id"], (numerator * 10**9 + denominator // 2) // denominator, **texts, sequence=number, hash=digest
    )


def _reader(where: sa.ColumnElement[bool], order: sa.ColumnElement[int]) -> Callable[[sa.Connection], list[Read]]:
    def run(connection: sa.Connection) -> list[Read]:
        try:
            found = connection.execute(sa.select(audit).where(where).order_by(order).limit(BATCH)).mappings()
            return [read(row) for row in found]
        except sa.exc.OperationalError:
            # A text that is no UTF-8 fails the whole batch: find the row.
            chosen = sa.select(audit.c.id, audit.c.sequence).where(where).order_by(order).limit(BATCH)
            return [_alone(connection, *row) for row in connection.execute(chosen).all()]

    return run


def _alone(connection: sa.Connection, row_id: int, sequence: int | None) -> Read:
    try:
        return read(connection.execute(sa.select(audit).where(audit.c.id == row_id)).mappings().one())
    except sa.exc.OperationalError:
        return Unreadable(row_id, sequence, f"a text of row {row_id} is no UTF-8")


def _last(keys: list[int | None]) -> int | None:
    """Where the next batch begins; None when this was the last one."""
    return keys[-1] if len(keys) == BATCH else None


def _checkpoint_reader(service: str, after: tuple[int, int]) -> Callable[[sa.Connection], list[tuple[int, Checkpoint]]]:
    def run(connection: sa.Connection) -> list[tuple[int, Checkpoint]]:
        table = audit_checkpoints.c
        later = (table.sequence > after[0]) | ((table.sequence == after[0]) & (table.id > after[1]))
        query = sa.select(audit_checkpoints).where(later).order_by(table.sequence, table.id).limit(BATCH)
        return [(row["id"], _checkpoint(row, service)) for row in connection.execute(query).mappings()]

    return run


def _checkpoint(row: sa.RowMapping, service: str) -> Checkpoint:
    """A checkpoint of the table; what is not of its kind becomes what no signature fits."""
    seal, signature, chain = (
        row[name] if isinstance(row[name], bytes) else b"" for name in ("hash", "signature", "chain")
    )
    sequence, time_us = (row[name] if type(row[name]) is int else 0 for name in ("sequence", "time_us"))
    return Checkpoint(service, sequence, seal, time_us, signature, chain)
