"""Policies, quotas and uses in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import sqlalchemy as sa

from sealane_registry.rows import PolicyRow, QuotaRow, UsageRow, UseRow
from sealane_registry.schema import policies, quotas, usage, use_reports, uses
from sealane_registry.sql import Sql


class LimitSql(Sql):
    """Implements :class:`sealane_registry.store.Limits`."""

    def policy(self, project: str) -> PolicyRow:
        """The policy; an empty one where none was set."""
        row = self._connection.execute(sa.select(policies).where(policies.c.project == project)).one_or_none()
        return PolicyRow() if row is None else PolicyRow(row.content, row.etag, row.update_time)

    def put_policy(self, project: str, row: PolicyRow) -> None:
        """Set it."""
        self._connection.execute(policies.delete().where(policies.c.project == project))
        self._insert(policies, row, project=project)

    def quota(self, project: str) -> QuotaRow:
        """What it may store; zeros where nothing was set."""
        row = self._connection.execute(sa.select(quotas).where(quotas.c.project == project)).one_or_none()
        return QuotaRow() if row is None else QuotaRow(row.max_bytes, row.max_models, row.max_versions)

    def put_quota(self, project: str, row: QuotaRow) -> None:
        """Set it."""
        self._connection.execute(quotas.delete().where(quotas.c.project == project))
        self._insert(quotas, row, project=project)

    def usage(self, project: str) -> UsageRow:
        """What it has."""
        row = self._connection.execute(sa.select(usage).where(usage.c.project == project)).one_or_none()
        return UsageRow() if row is None else UsageRow(row.bytes, row.models)

    def put_uses(self, rows: Sequence[UseRow], now: float) -> None:
        """Replace all that is in use."""
        self._connection.execute(uses.delete())
        if rows:
            self._connection.execute(uses.insert(), [asdict(row) for row in dict.fromkeys(rows)])
        self._connection.execute(use_reports.delete())
        self._connection.execute(use_reports.insert().values(id=1, time=now))

    def holders(self, project: str, kind: str, resource: str, *, below: bool = False) -> list[str]:
        """Who refers to a resource, or to anything below it."""
        place = (uses.c.project == project) & (uses.c.kind == kind)
        place &= uses.c.resource.startswith(resource + "/", autoescape=True) if below else uses.c.resource == resource
        return list(self._connection.execute(sa.select(uses.c.holder).where(place).distinct()).scalars())

    def use_reported(self) -> float:
        """When the scheduler last told what is in use; 0 for never."""
        return float(self._connection.execute(sa.select(use_reports.c.time)).scalar() or 0.0)
