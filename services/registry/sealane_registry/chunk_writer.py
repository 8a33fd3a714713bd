"""Writes what a stream brings behind it: whatever came in while the disk was busy goes to it in one piece of work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

#: Offset of a chunk, and its bytes.
Piece = tuple[int, bytes | memoryview]
#: Pieces that wait, beside those that are being written.
MOST_WAITING = 4


class ChunkWriter:
    """The pieces of one stream, in order.

    Args:
        write: writes some pieces; returns the offset behind them.
    """

    def __init__(self, write: Callable[[list[Piece]], Awaitable[int]]) -> None:
        self._write = write
        self._waiting: list[Piece] = []
        self._task: asyncio.Task[None] | None = None
        self._offset = 0

    async def add(self, piece: Piece) -> None:
        """Take a piece; waits while too many wait. Raises what writing earlier ones ended in."""
        if len(self._waiting) >= MOST_WAITING or (self._task is not None and self._task.done()):
            await self.flush()
        self._waiting.append(piece)
        if self._task is None:
            self._task = asyncio.create_task(self._drain())

    async def flush(self) -> int:
        """Wait until all is written; the offset behind it. Raises what writing ended in."""
        task = self._task
        if task is not None:
            await asyncio.wait([task])  # not the task itself: who is cancelled would cancel it, and it runs on a thread
            self._task = None
            task.result()
        return self._offset

    async def settle(self) -> None:
        """Finish what was begun, however the stream ends; a failure is told elsewhere, or nobody waits for it."""
        if self._task is not None:
            await asyncio.wait([self._task])
            self._task.exception()

    async def _drain(self) -> None:
        while self._waiting:
            pieces, self._waiting = self._waiting, []
            self._offset = await self._write(pieces)
