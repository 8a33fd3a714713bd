"""From a servicer on the event loop to rules on the database thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

import sqlalchemy as sa
from google.protobuf.message import Message

from sealane.clock import Clock
from sealane.records.database import Database
from sealane.records.tables import Actor, once
from sealane.rpc.call import Call

S = TypeVar("S")
T = TypeVar("T")


class Transactions(Generic[S]):
    """Runs functions of a service's store, each in a transaction of its own."""

    def __init__(self, database: Database, make_store: Callable[[sa.Connection], S], clock: Clock) -> None:
        self._database = database
        self._make_store = make_store
        self._clock = clock

    async def write(self, function: Callable[[S], T]) -> T:
        """Change something; returns after the commit."""
        return await asyncio.wrap_future(
            self._database.write(lambda connection: function(self._make_store(connection)))
        )

    async def read(self, function: Callable[[S], T]) -> T:
        """Read something."""
        return await asyncio.wrap_future(self._database.read(lambda connection: function(self._make_store(connection))))

    async def once(
        self, call: Call, request: Message, request_id: str, function: Callable[[S], Message], project: str = ""
    ) -> bytes:
        """Change something once per request id; returns the serialized answer."""

        def run(connection: sa.Connection) -> bytes:
            return once(
                connection,
                project=project or call.caller.project or call.caller.subject,
                request_id=request_id,
                request=request,
                now=self._clock.now(),
                run=lambda: function(self._make_store(connection)).SerializeToString(),
            )

        return await asyncio.wrap_future(self._database.write(run))


def actor(call: Call, project: str = "") -> Actor:
    """Who changes something, for the audit trail."""
    return Actor(call.caller.subject, project or call.caller.project, call.request_id)
