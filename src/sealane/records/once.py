"""Requests that are answered once per id (AIP-155): a repeat gets the first answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from google.protobuf.message import Message

from sealane.errors import AlreadyExists, InvalidArgument, SealaneError
from sealane.records.tables import by_project, request_ids

#: For so long a repeat gets the first answer; clients give up within minutes.
_REPEAT_SECONDS = 7 * 86_400.0
_MAX_REQUEST_ID = 128
_FORGOTTEN_AT_ONCE = 1000
# Made once, because making them takes longer than running them.
_ADD_REQUEST = request_ids.insert()
_REQUESTS = sa.select(request_ids).where(
    (request_ids.c.project == sa.bindparam("of")) & request_ids.c.request_id.in_(sa.bindparam("names", expanding=True))
)


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
        if not request_id:
            return UNPROTECTED
        if len(request_id) > _MAX_REQUEST_ID:
            raise InvalidArgument(
                f"a request_id has at most {_MAX_REQUEST_ID} characters; use a UUID", field="request_id"
            )
        name, body = request.DESCRIPTOR.full_name.encode(), request.SerializeToString(deterministic=True)
        return cls(project, request_id, hashlib.sha256(name + b"\0" + body).hexdigest())

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
