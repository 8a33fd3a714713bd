"""Tables that every service keeps beside its own: outbox, audit trail, request ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from google.protobuf.message import Message

from sealane.errors import AlreadyExists, InvalidArgument, SealaneError, Unavailable
from sealane.failpoint import armed, failpoint

metadata = sa.MetaData()
#: Where a connection keeps the names of what was recorded, for fail points after the commit.
RECORDED = "recorded"
#: For so long a repeat gets the first answer; clients give up within minutes.
_REPEAT_SECONDS = 7 * 86_400.0
_MAX_REQUEST_ID = 128
_FORGOTTEN_AT_ONCE = 1000

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
_REQUESTS = sa.select(request_ids).where(
    (request_ids.c.project == sa.bindparam("of")) & request_ids.c.request_id.in_(sa.bindparam("names", expanding=True))
)


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


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is answered once per id (AIP-155).

    Args:
        project: owner of the id.
        request_id: empty is without protection.
        content: tells an id that is used twice for different things.
    """

    project: str
    request_id: str
    content: str

    @classmethod
    def of(cls, project: str, request_id: str, request: Message) -> Asked:
        """A request as it came.

        Raises:
            InvalidArgument: the id is too long.
        """
        if len(request_id) > _MAX_REQUEST_ID:
            raise InvalidArgument(
                f"a request_id has at most {_MAX_REQUEST_ID} characters; use a UUID", field="request_id"
            )
        name, body = request.DESCRIPTOR.full_name.encode(), request.SerializeToString(deterministic=True)
        return cls(project, request_id, hashlib.sha256(name + b"\0" + body).hexdigest() if request_id else "")

    @property
    def key(self) -> tuple[str, str]:
        """What the id is unique in."""
        return self.project, self.request_id


#: What may be done twice.
UNPROTECTED = Asked("", "", "")
Answer = bytes | SealaneError


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
    (answer,) = once_each(connection, [Asked.of(project, request_id, request)], now, lambda new: [run() for _ in new])
    if isinstance(answer, SealaneError):
        raise answer
    return answer


def once_each(
    connection: sa.Connection,
    asked: Sequence[Asked],
    now: float,
    run: Callable[[Sequence[int]], Sequence[Answer]],
) -> list[Answer]:
    """The same for several requests, in one transaction.

    Args:
        connection: of the mutation's own transaction.
        asked: the requests.
        now: seconds since 1970.
        run: makes the changes of the requests at some places, and returns the serialized answer of each, or why it has
            none; then it must not have changed anything for it.

    Returns:
        The answer to each request, AlreadyExists where its id was used for another one.
    """
    wanted = by_project(item.key for item in asked if item.request_id)
    rows = [row for names in wanted for row in connection.execute(_REQUESTS, names)]
    known = {(row.project, row.request_id): (row.content, bytes(row.response)) for row in rows}
    # Of those that come at once with one id the first is run.
    first = {item.key: place for place, item in reversed(list(enumerate(asked))) if item.request_id}
    new = [
        place
        for place, item in enumerate(asked)
        if not item.request_id or (item.key not in known and first[item.key] == place)
    ]
    answers = dict(zip(new, run(new) if new else (), strict=True))
    kept = [place for place in new if asked[place].request_id and isinstance(answers[place], bytes)]
    for project in {asked[place].project for place in kept if asked[place].content.startswith("00")}:
        # For one request in 256, since it looks through the ids of the project.
        _forget_requests(connection, project, now - _REPEAT_SECONDS)
    if kept:
        connection.execute(
            _ADD_REQUEST,
            [
                {
                    "project": asked[place].project,
                    "request_id": asked[place].request_id,
                    "content": asked[place].content,
                    "response": answers[place],
                    "time": now,
                }
                for place in kept
            ],
        )
    for place, item in enumerate(asked):
        if place not in answers:
            content, answer = known.get(item.key) or (asked[first[item.key]].content, answers[first[item.key]])
            answers[place] = answer if content == item.content else _reused()
    return [answers[place] for place in range(len(asked))]


def _reused() -> AlreadyExists:
    return AlreadyExists("this request_id was used for another request; use a new one", reason="REQUEST_ID_REUSED")


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
