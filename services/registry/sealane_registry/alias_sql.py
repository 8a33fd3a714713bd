"""Aliases and their history in SQL."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from sealane.records.listing import Columns, Listing
from sealane_registry.rows import AliasRow, MoveRow, Scope
from sealane_registry.schema import alias_moves, aliases
from sealane_registry.sql import Sql


class AliasSql(Sql):
    """Implements :class:`sealane_registry.store.Aliases`."""

    def alias(self, scope: Scope) -> AliasRow | None:
        """An alias that is there, or was taken away."""
        row = self._connection.execute(sa.select(aliases).where(_key(aliases, scope))).one_or_none()
        return None if row is None else _alias(row)

    def aliases(self, project: str, model: str) -> list[AliasRow]:
        """All that are there, by name."""
        there = (aliases.c.project == project) & (aliases.c.model == model) & (aliases.c.number > 0)
        return [
            _alias(row) for row in self._connection.execute(sa.select(aliases).where(there).order_by(aliases.c.alias))
        ]

    def put_alias(self, row: AliasRow, etag: str, move: MoveRow) -> bool:
        """Set an alias and add its move if its etag is still `etag` (empty: if there is none); whether it was set."""
        scope = Scope(row.project, row.model, name=row.alias)
        there = self.alias(scope)
        if etag != ("" if there is None or there.number == 0 else there.etag):
            return False
        if there is None:
            self._insert(aliases, row)
        else:
            values = {"number": row.number, "update_time": row.update_time, "etag": row.etag}
            # Asked again where the row is written: another process may have moved it since it was read.
            same = _key(aliases, scope) & (aliases.c.etag == there.etag)
            changed = aliases.update().where(same).values(**values, moves=row.moves, head=row.head)
            if self._connection.execute(changed).rowcount != 1:
                return False
        self._insert(alias_moves, move)
        return True

    def moves(self, scope: Scope, listing: Listing) -> list[MoveRow]:
        """The page's moves and one more."""
        columns = Columns(
            {
                "sequence": alias_moves.c.sequence,
                "move_time": sa.cast(alias_moves.c.time_us, sa.Float) / 1e6,
                "mover": alias_moves.c.mover,
                "version": alias_moves.c.number,
            },
            alias_moves.c.sequence,
        )
        query = columns.apply(sa.select(alias_moves).where(_key(alias_moves, scope)), listing)
        return [_move(row) for row in self._connection.execute(query)]

    def move_as_of(self, scope: Scope, time_us: int) -> MoveRow | None:
        """The last move that is not later."""
        query = (
            sa.select(alias_moves)
            .where(_key(alias_moves, scope) & (alias_moves.c.time_us <= time_us))
            .order_by(alias_moves.c.time_us.desc(), alias_moves.c.sequence.desc())
            .limit(1)
        )
        row = self._connection.execute(query).one_or_none()
        return None if row is None else _move(row)


def _key(table: sa.Table, scope: Scope) -> sa.ColumnElement[bool]:
    return (table.c.project == scope.project) & (table.c.model == scope.model) & (table.c.alias == scope.name)


def _alias(row: Any) -> AliasRow:
    return AliasRow(row.project, row.model, row.alias, row.number, row.update_time, row.etag, row.moves, row.head)


def _move(row: Any) -> MoveRow:
    return MoveRow(
        row.project,
        row.model,
        row.alias,
        row.sequence,
        row.number,
        row.previous,
        row.time_us,
        row.mover,
        row.evidence,
        row.previous_hash,
        row.hash,
    )
