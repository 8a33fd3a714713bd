"""Tables that every service keeps beside its own: outbox, audit trail, request ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from google.protobuf.message import Message

from sealane.errors import AlreadyExists, InvalidArgument, Unavailable
from sealane.failpoint import armed, failpoint

metadata = sa.MetaData()
#: Where a connection keeps the names of what was recorded, for fail points after the commit.
RECORDED = "recorded"
#: For so long a repeat gets the first answer; clients give up within minutes.
_REPEAT_SECONDS = 7 * 86_400.0
_MAX_REQUEST_ID = 128
_FORGOTTEN_AT_ONCE = 100

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
_ADD_AUDIT, _ADD_OUTBOX, _ADD_REQUEST = (table.insert() for table in (audit, outbox, request_ids))
_REQUEST = sa.select(request_ids).where(
    (request_ids.c.project == sa.bindparam("of")) & (request_ids.c.request_id == sa.bindparam("id"))
)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who changes something, for the audit trail."""

    subject: str
    project: str
    request_id: str = ""


def record(connection: sa.Connection, *, actor: Actor, action: str, resource: str, now: float, **details: str) -> None:
    """Audit row and outbox row of one change, in the change's own transaction.

    Raises:
        Unavailable: it cannot be recorded, so the change must not be made.
    """
    record_all(connection, actor=actor, action=action, changes={resource: details}, now=now)


def record_all(
    connection: sa.Connection, *, actor: Actor, action: str, changes: Mapping[str, Mapping[str, str]], now: float
) -> None:
    """The rows of several resources that one call changes: the name of each, and its details.

    Raises:
        Unavailable: they cannot be recorded, so the change must not be made.
    """
    payloads = {resource: json.dumps(details, sort_keys=True) for resource, details in changes.items()}
    try:
        connection.execute(
            _ADD_AUDIT,
            [
                {
                    "time": now,
                    "project": actor.project,
                    "actor": actor.subject,
                    "action": action,
                    "resource": resource,
                    "request_id": actor.request_id,
                    "details": payload,
                }
                for resource, payload in payloads.items()
            ],
        )
        connection.execute(
            _ADD_OUTBOX,
            [
                {"time": now, "project": actor.project, "kind": action, "resource": resource, "payload": payload}
                for resource, payload in payloads.items()
            ],
        )
    except sa.exc.SQLAlchemyError as error:
        raise Unavailable(
            "the change was not made, because it cannot be recorded; try again, and look at the service's disk",
            reason="NOT_AUDITED",
        ) from error
    failpoint(f"{action}.recorded")
    if armed():
        connection.info.setdefault(RECORDED, []).append(action)


def once(
    connection: sa.Connection, *, project: str, request_id: str, request: Message, now: float, run: Callable[[], bytes]
) -> bytes:
    """Run a mutation once per request id; a repeat gets the first answer (AIP-155).

    Args:
        connection: of the mutation's own transaction.
        project: owner of the id.
        request_id: empty runs without protection.
        request: its content, so that an id used twice for different things is noticed.
        now: seconds since 1970.
        run: makes the change and returns the serialized answer.

    Raises:
        AlreadyExists: the id was used for another request.
        InvalidArgument: the id is too long.
    """
    if not request_id:
        return run()
    if len(request_id) > _MAX_REQUEST_ID:
        raise InvalidArgument(f"a request_id has at most {_MAX_REQUEST_ID} characters; use a UUID", field="request_id")
    content = hashlib.sha256(
        request.DESCRIPTOR.full_name.encode() + b"\0" + request.SerializeToString(deterministic=True)
    ).hexdigest()
    row = connection.execute(_REQUEST, {"of": project, "id": request_id}).one_or_none()
    if row is not None:
        if row.content != content:
            raise AlreadyExists(
                "this request_id was used for another request; use a new one", reason="REQUEST_ID_REUSED"
            )
        return bytes(row.response)
    response = run()
    if content.startswith("0"):  # one in sixteen, since it looks through the ids of the project
        _forget_requests(connection, project, now - _REPEAT_SECONDS)
    connection.execute(
        _ADD_REQUEST,
        {"project": project, "request_id": request_id, "content": content, "response": response, "time": now},
    )
    return response


def _forget_requests(connection: sa.Connection, project: str, before: float) -> None:
    """Delete some old ids of a project: more than come meanwhile, so that they end; few, so that none waits long."""
    old = (
        sa.select(request_ids.c.request_id)
        .where(request_ids.c.project == project)
        .where(request_ids.c.time < before)
        .limit(_FORGOTTEN_AT_ONCE)
    )
    theirs = request_ids.c.project == project
    connection.execute(request_ids.delete().where(theirs & request_ids.c.request_id.in_(old)))
