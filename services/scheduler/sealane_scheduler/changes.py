"""Lets streams wait for the next change of the cluster."""

from __future__ import annotations

import asyncio


class Changes:
    """A revision that grows, and a way to wait for it. Lives on the event loop."""

    def __init__(self, first: int) -> None:
        self.revision = first
        self._changed = asyncio.Event()

    def announce(self) -> None:
        """Something changed."""
        self.revision += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def after(self, revision: int, timeout: float) -> bool:
        """Wait until the revision is beyond `revision`; False when the time is over first."""
        if self.revision > revision:
            return True
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True
