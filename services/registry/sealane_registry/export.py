"""All records as lines of JSON, each one row, and back: the form of backups, the same for both databases."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from typing import IO, Any

import sqlalchemy as sa

from sealane.errors import DataLoss
from sealane.records import tables
from sealane_registry import schema

#: Uploads under way are not part of a backup: their bytes are not.
LEFT_OUT = frozenset({"uploads"})
_BATCH = 1000


def exported() -> list[sa.Table]:
    """The tables of an export, by name."""
    every = {**schema.metadata.tables, **tables.metadata.tables}
    return [every[name] for name in sorted(every) if name not in LEFT_OUT]


def write(connection: sa.Connection, out: IO[bytes]) -> tuple[dict[str, int], bytes]:
    """Write all rows as of this transaction; returns their number by table and the SHA-256 over the lines."""
    hasher, counts = hashlib.sha256(), {}
    for table in exported():
        counts[table.name] = 0
        for row in connection.execute(sa.select(table).order_by(*table.primary_key)).mappings():
            values = {name: _told(value) for name, value in row.items()}
            line = json.dumps([table.name, values], separators=(",", ":")).encode() + b"\n"
            hasher.update(line)
            out.write(line)
            counts[table.name] += 1
    return counts, hasher.digest()


def read(connection: sa.Connection, lines: Iterable[bytes]) -> dict[str, int]:
    """Put rows into empty tables; returns their number by table.

    Raises:
        DataLoss: a line that no export wrote.
    """
    known = {table.name: table for table in exported()}
    counts = dict.fromkeys(known, 0)
    waiting: list[dict[str, Any]] = []
    last = ""

    def flush() -> None:
        if waiting:
            connection.execute(known[last].insert(), waiting)
            counts[last] += len(waiting)
            waiting.clear()

    for line in lines:
        try:
            name, told = json.loads(line)
            values = {known[name].columns[key].name: _value(value) for key, value in told.items()}
        except (ValueError, KeyError, TypeError) as error:
            raise DataLoss("the backup's records cannot be read; take another one", reason="BACKUP_BROKEN") from error
        if name != last or len(waiting) >= _BATCH:
            flush()
            last = name
        waiting.append(values)
    flush()
    if connection.dialect.name == "postgresql":
        _continue_sequences(connection)
    return counts


def _continue_sequences(connection: sa.Connection) -> None:
    """Numbers that PostgreSQL gives out go on behind those that came in."""
    for table in exported():
        for column in table.primary_key:
            if column.autoincrement is True or (table.name == "measurements" and column.name == "id"):
                highest = connection.execute(sa.select(sa.func.max(column))).scalar()
                if highest:
                    place = sa.func.pg_get_serial_sequence(table.name, column.name)
                    connection.execute(sa.select(sa.func.setval(place, highest)))


def _told(value: Any) -> Any:
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes | memoryview) else value


def _value(value: Any) -> Any:
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value
