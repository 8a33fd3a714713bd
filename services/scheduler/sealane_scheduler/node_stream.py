"""What is due on one worker's stream. There are thousands: each has two tasks and a timer, and wakes for itself."""

from __future__ import annotations

import asyncio

#: A ping goes out with every so many heartbeats; its echo takes the place of one.
PING_EVERY = 3
#: Pings whose echo is still waited for.
_PINGS_KEPT = 10
#: What a node is to do is told again after so long, in seconds: the grants in it end.
REFRESH_SECONDS = 3600.0


class NodeStream:
    """Says what to send next, and waits while there is nothing. Lives on the event loop.

    Args:
        interval: seconds between two heartbeats.
    """

    __slots__ = (
        "_loop",
        "_pings",
        "_revision",
        "_sequence",
        "_stale",
        "_timer",
        "_waiter",
        "changed",
        "ended",
        "interval",
        "ping_due",
    )

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.changed = self.ping_due = True
        self.ended = False
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sequence = self._revision = 0
        self._stale = 0.0
        self._pings: dict[int, float] = {}

    def change(self) -> None:
        """The node is to do something else, or its stream may have been superseded."""
        self.changed = True
        self._wake()

    def end(self) -> None:
        """Nothing more is due."""
        self.ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    async def due(self) -> bool:
        """Wait until something is due; False once the stream has ended."""
        while not (self.changed or self.ping_due or self.ended):
            self._waiter = self._loop.create_future()
            await self._waiter
        return not self.ended

    def tell(self, revision: int, now: float) -> int:
        """The revision of what is told now: that of the cluster, or one more than the last where that has not grown."""
        self.changed, self._stale = False, now + REFRESH_SECONDS
        self._revision = max(revision, self._revision + 1)
        return self._revision

    def ping(self, now: float) -> int:
        """The number of a ping that goes out now; the next one is due after some heartbeats."""
        self._sequence, self.ping_due = self._sequence + 1, False
        self.changed |= now >= self._stale
        self._pings[self._sequence] = now
        self._pings.pop(self._sequence - _PINGS_KEPT, None)
        self._timer = self._loop.call_later(PING_EVERY * self.interval, self._ping)
        return self._sequence

    def echo(self, sequence: int, now: float) -> float | None:
        """Milliseconds since a ping; None where its echo came before, or it is unknown."""
        sent = self._pings.pop(sequence, None)
        return None if sent is None else (now - sent) * 1000

    def _ping(self) -> None:
        self.ping_due = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
