"""Versions in SQL."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from sealane.records.listing import Columns, Listing
from sealane_registry.rows import ApprovalRow, Scope, VersionRow
from sealane_registry.schema import approvals, models, versions
from sealane_registry.sql import Sql, in_version, with_label


class VersionSql(Sql):
    """Implements :class:`sealane_registry.store.Versions`."""

    def add_version(self, row: VersionRow, labels: Mapping[str, str]) -> int:
        """Add under the next number, which is returned; `row.number` is ignored."""
        key = (models.c.project == row.project) & (models.c.model == row.model)
        taken = (
            models.update()
            .where(key)
            .values(next_number=models.c.next_number + 1, update_time=row.create_time, etag=secrets.token_hex(8))
            .returning(models.c.next_number)
        )
        number = int(self._connection.execute(taken).scalar_one()) - 1
        self._insert(versions, row, number=number)
        self._set_labels(row.project, "version", label_key(row.model, number), labels)
        return number

    def version(self, scope: Scope) -> VersionRow | None:
        """A version of a model that was not deleted."""
        there = sa.exists().where(
            (models.c.project == scope.project) & (models.c.model == scope.model) & (models.c.delete_time == 0)
        )
        row = self._connection.execute(sa.select(versions).where(in_version(versions, scope) & there)).one_or_none()
        return None if row is None else self._whole([row])[0]

    def versions(self, project: str, model: str, listing: Listing) -> list[VersionRow]:
        """The page's versions and one more."""
        columns = Columns(
            {
                "number": versions.c.number,
                "create_time": versions.c.create_time,
                "state": versions.c.state,
                "publisher": versions.c.publisher,
            },
            versions.c.number,
            with_label(project, "version", versions.c.model + "/" + sa.cast(versions.c.number, sa.String)),
        )
        query = sa.select(versions).where((versions.c.project == project) & (versions.c.model == model))
        return self._whole(self._connection.execute(columns.apply(query, listing)).all())

    def put_state(self, scope: Scope, state: str, reason: str) -> None:
        """Set a version's state; its etag changes."""
        changed = versions.update().where(in_version(versions, scope))
        self._connection.execute(changed.values(state=state, state_reason=reason, etag=secrets.token_hex(8)))

    def add_approval(self, scope: Scope, row: ApprovalRow) -> None:
        """Add an approval, or replace the approver's own; the version's etag changes."""
        own = in_version(approvals, scope) & (approvals.c.approver == row.approver)
        self._connection.execute(approvals.delete().where(own))
        self._insert(
            approvals,
            row,
            project=scope.project,
            model=scope.model,
            number=scope.number,
            roles=" ".join(row.roles),
        )
        self._touch(scope)

    def _whole(self, rows: Sequence[Any]) -> list[VersionRow]:
        found: dict[int, list[ApprovalRow]] = {}
        # What was only pushed has no approvals: most lists are of that.
        reviewed = [row.number for row in rows if row.state != "PUSHED"]
        if reviewed:
            found = self._approvals(rows[0], reviewed)
        return [_row(row, found.get(row.number, ())) for row in rows]

    def _approvals(self, first: Any, numbers: Sequence[int]) -> dict[int, list[ApprovalRow]]:
        place = (approvals.c.project == first.project) & (approvals.c.model == first.model)
        place &= approvals.c.number.in_(numbers)
        found: dict[int, list[ApprovalRow]] = {}
        for item in self._connection.execute(sa.select(approvals).where(place).order_by(approvals.c.time)):
            approval = ApprovalRow(item.approver, tuple(item.roles.split()), item.comment, item.time)
            found.setdefault(item.number, []).append(approval)
        return found


def _row(row: Any, given: Sequence[ApprovalRow]) -> VersionRow:
    return VersionRow(
        row.project,
        row.model,
        row.number,
        row.content,
        row.create_time,
        row.etag,
        row.state,
        row.state_reason,
        row.publisher,
        tuple(given),
    )


def label_key(model: str, number: int) -> str:
    """Under which a version's labels are kept."""
    return f"{model}/{number}"
