"""What the SQL stores of all nouns share: the connection, keys of a place, labels."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from sealane.records.listing import Column
from sealane_registry.rows import Scope
from sealane_registry.schema import labels, versions


class Sql:
    """One connection, inside one transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def _insert(self, table: sa.Table, row: object, **more: object) -> None:
        names = [column.name for column in table.columns if hasattr(row, column.name) and column.name not in more]
        self._connection.execute(table.insert().values({name: getattr(row, name) for name in names} | more))

    def _touch(self, scope: Scope) -> None:
        """The version's etag changes."""
        self._connection.execute(versions.update().where(in_version(versions, scope)).values(etag=secrets.token_hex(8)))

    def _set_labels(self, project: str, kind: str, resource: str, values: Mapping[str, str]) -> None:
        place = (labels.c.project == project) & (labels.c.kind == kind) & (labels.c.resource == resource)
        self._connection.execute(labels.delete().where(place))
        if values:
            rows = [
                {"project": project, "kind": kind, "resource": resource, "key": key, "value": value}
                for key, value in values.items()
            ]
            self._connection.execute(labels.insert(), rows)


def in_version(table: sa.Table, scope: Scope) -> sa.ColumnElement[bool]:
    """Rows of a version."""
    # A caller may name a number that is larger than any there is.
    number = sa.literal(scope.number, sa.BigInteger)
    return (table.c.project == scope.project) & (table.c.model == scope.model) & (table.c.number == number)


def in_variant(table: sa.Table, scope: Scope) -> sa.ColumnElement[bool]:
    """Rows of a variant."""
    return in_version(table, scope) & (table.c.variant == scope.name)


def with_label(project: str, kind: str, resource: Any) -> Callable[[str, str | None], Column]:
    """Makes the condition that a row has a label, for :class:`sealane.records.listing.Columns`.

    Args:
        project: of the rows.
        kind: kind of the resource.
        resource: column, or expression, of the resource's id.
    """

    def condition(key: str, value: str | None) -> Column:
        wanted = (labels.c.project == project) & (labels.c.kind == kind) & (labels.c.key == key)
        if value is not None:
            wanted &= labels.c.value == value
        return resource.in_(sa.select(labels.c.resource).where(wanted))  # type: ignore[no-any-return]  # a column's own

    return condition
