"""Tables that every service keeps beside its own: outbox, audit trail, request ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from sealane.errors import Unavailable
from sealane.failpoint import armed, failpoint

metadata = sa.MetaData()
#: Where a connection keeps the names of what was recorded, for fail points after the commit.
RECORDED = "recorded"

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("revision", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("project", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("resource", sa.String, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("project", sa.String, nullable=False),
    sa.Column("actor", sa.String, nullable=False),
    sa.Column("action", sa.String, nullable=False),
    sa.Column("resource", sa.String, nullable=False),
    sa.Column("request_id", sa.String, nullable=False),
    sa.Column("details", sa.Text, nullable=False),
    # Filled by the sealer, which chains rows after their commit.
    sa.Column("sequence", sa.Integer, unique=True),
    sa.Column("hash", sa.String),
    sa.Index("audit_project", "project", "id"),
    sqlite_autoincrement=True,
)

# Signed marks in the chain; more than one may be about the same row.
audit_checkpoints = sa.Table(
    "audit_checkpoints",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.Column("time_us", sa.BigInteger, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
    sa.Column("chain", sa.LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

request_ids = sa.Table(
    "request_ids",
    metadata,
    sa.Column("project", sa.String, primary_key=True),
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("content", sa.String, nullable=False),
    sa.Column("response", sa.LargeBinary, nullable=False),
    sa.Column("time", sa.Float, nullable=False),
)


# Made once, because making them takes longer than running them, and every change runs them.
_ADD_AUDIT, _ADD_OUTBOX = audit.insert(), outbox.insert()


def values_of(row: object) -> dict[str, Any]:
    """The fields of a row that is a dataclass with slots, by name."""
    return {name: getattr(row, name) for name in row.__slots__}  # type: ignore[attr-defined]  # it has them


def by_project(keys: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """Projects and names, by project: a statement runs once for each, because SQLite looks for pairs in every row."""
    found: dict[str, set[str]] = {}
    for project, name in keys:
        found.setdefault(project, set()).add(name)
    return [{"of": project, "names": sorted(names)} for project, names in sorted(found.items())]


@dataclass(frozen=True, slots=True)
class Actor:
    """Who changes something, for the audit trail."""

    subject: str
    project: str
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A change that is audited and announced.

    Args:
        actor: who makes it.
        action: what it is, as the method is called.
        resource: name of what changes.
        details: what else there is to say.
    """

    actor: Actor
    action: str
    resource: str
    details: Mapping[str, str]


def record(connection: sa.Connection, *, actor: Actor, action: str, resource: str, now: float, **details: str) -> None:
    """Audit row and outbox row of one change, in the change's own transaction.

    Raises:
        Unavailable: it cannot be recorded, so the change must not be made.
    """
    record_all(connection, [Change(actor, action, resource, details)], now)


def record_all(connection: sa.Connection, changes: Sequence[Change], now: float) -> None:
    """The rows of several changes.

    Raises:
        Unavailable: they cannot be recorded, so none of them must be made.
    """
    if not changes:
        return
    payloads = [json.dumps(change.details, sort_keys=True) for change in changes]
    try:
        connection.execute(
            _ADD_AUDIT,
            [
                {
                    "time": now,
                    "project": change.actor.project,
                    "actor": change.actor.subject,
                    "action": change.action,
                    "resource": change.resource,
                    "request_id": change.actor.request_id,
                    "details": payload,
                }
                for change, payload in zip(changes, payloads, strict=True)
            ],
        )
        connection.execute(
            _ADD_OUTBOX,
            [
                {
                    "time": now,
                    "project": change.actor.project,
                    "kind": change.action,
                    "resource": change.resource,
                    "payload": payload,
                }
                for change, payload in zip(changes, payloads, strict=True)
            ],
        )
    except sa.exc.SQLAlchemyError as error:
        raise Unavailable(
            "the change was not made, because it cannot be recorded; try again, and look at the service's disk",
            reason="NOT_AUDITED",
        ) from error
    for action in dict.fromkeys(change.action for change in changes):
        failpoint(f"{action}.recorded")
        if armed():
            connection.info.setdefault(RECORDED, []).append(action)
