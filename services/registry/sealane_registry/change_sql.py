"""What was changed, in SQL: the audit trail and the outbox that watches read."""

from __future__ import annotations

import sqlalchemy as sa

from sealane.records import tables
from sealane.records.tables import Actor, outbox
from sealane_registry.rows import ChangeRow
from sealane_registry.sql import Sql


class ChangeSql(Sql):
    """Implements :class:`sealane_registry.store.Changes`."""

    def record(self, actor: Actor, action: str, resource: str, now: float, **details: str) -> None:
        """Audit and announce one change, in its transaction."""
        tables.record(self._connection, actor=actor, action=action, resource=resource, now=now, **details)

    def changes(self, project: str, after: int, limit: int) -> list[ChangeRow]:
        """Changes of a project after a revision, in order."""
        wanted = (outbox.c.project == project) & (outbox.c.revision > after)
        query = sa.select(outbox).where(wanted).order_by(outbox.c.revision).limit(limit)
        return [
            ChangeRow(row.revision, row.time, row.kind, row.resource, row.payload)
            for row in self._connection.execute(query)
        ]

    def revisions(self) -> tuple[int, int]:
        """The last revision that is no longer kept, and the newest; zeros for none."""
        low, high = self._connection.execute(
            sa.select(sa.func.min(outbox.c.revision), sa.func.max(outbox.c.revision))
        ).one()
        return ((low or 1) - 1, high or 0)

    def drop_changes(self, before: float) -> None:
        """Forget changes before a time, but the newest one."""
        _, newest = self.revisions()
        self._connection.execute(outbox.delete().where((outbox.c.time < before) & (outbox.c.revision < newest)))
