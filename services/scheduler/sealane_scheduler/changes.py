"""Lets streams hear of the next change of the cluster: those that watch all of it, and those of one node each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

#: For changes that no worker is to hear of: they change what others see alone.
NOBODY: tuple[str, ...] = ()


class Changes:
    """A revision that grows, and ways to wait for it. Lives on the event loop."""

    def __init__(self, first: int) -> None:
        self.revision = first
        self._changed = asyncio.Event()
        self._listeners: dict[str, Callable[[], None]] = {}

    def announce(self, nodes: Iterable[str] | None = None) -> None:
        """Something changed.

        Args:
            nodes: those that are to do something else now; None for all. The others are not woken: with ten thousand
                workers, what one of them is to do would keep all of them busy.
        """
        self.revision += 1
        self._changed.set()
        self._changed = asyncio.Event()
        for node in tuple(self._listeners) if nodes is None else frozenset(nodes):
            listener = self._listeners.get(node)
            if listener is not None:
                listener()

    def listen(self, node: str, listener: Callable[[], None]) -> None:
        """Call `listener`, in the place of an earlier one, whenever a node is to do something else."""
        before, self._listeners[node] = self._listeners.get(node), listener
        if before is not None:
            before()  # its stream sees that it was superseded

    def unlisten(self, node: str, listener: Callable[[], None]) -> None:
        """Stop, unless somebody else listens by now."""
        if self._listeners.get(node) == listener:
            del self._listeners[node]

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
