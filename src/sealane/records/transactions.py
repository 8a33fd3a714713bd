"""From a servicer on the event loop to rules on the database thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import sqlalchemy as sa
from google.protobuf.message import Message

from sealane.clock import Clock
from sealane.records.database import Database
from sealane.records.once import Answer, Asked, once, once_each
from sealane.records.tables import Actor
from sealane.rpc.call import Call

S = TypeVar("S")
T = TypeVar("T")


class Transactions(Generic[S]):
    """Runs functions of a service's store, each in a transaction of its own."""

    def __init__(self, database: Database, make_store: Callable[[sa.Connection], S], clock: Clock) -> None:
        self._database = database
        self._make_store = make_store
        self._clock = clock
        self._listeners: list[Callable[[], None]] = []

    def after_write(self, listener: Callable[[], None]) -> None:
        """Have a function called on the event loop after each change that was committed."""
        self._listeners.append(listener)

    async def write(self, function: Callable[[S], T]) -> T:
        """Change something; returns after the commit."""
        return await self._committed(lambda connection: function(self._make_store(connection)))

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

        return await self._committed(run)

    async def once_each(
        self, asked: Sequence[Asked], function: Callable[[S, Sequence[int]], Sequence[Answer]]
    ) -> list[Answer]:
        """Change something for several requests in one transaction; see :func:`once.once_each`."""
        return await self._committed(
            lambda connection: once_each(
                connection, asked, self._clock.now(), lambda new: function(self._make_store(connection), new)
            )
        )

    async def _committed(self, function: Callable[[sa.Connection], T]) -> T:
        future = self._database.write(function)
        if self._listeners:
            # By the future, not by whoever waits: a caller may be gone when it is committed.
            loop = asyncio.get_running_loop()
            future.add_done_callback(lambda done: self._tell(loop) if done.exception() is None else None)
        return await asyncio.wrap_future(future)

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        for listener in self._listeners:
            try:
                loop.call_soon_threadsafe(listener)
            except RuntimeError:  # the loop has ended, and with it who listens
                return


def asked(call: Call, request: Message, request_id: str) -> Asked:
    """A request as it came.

    Raises:
        InvalidArgument: its id is too long.
    """
    return Asked.of(call.caller.project or call.caller.subject, request_id, request)


def actor(call: Call, project: str = "") -> Actor:
    """Who changes something, for the audit trail."""
    return Actor(call.caller.subject, project or call.caller.project, call.request_id)
