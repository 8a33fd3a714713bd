"""Watches: who waits for changes of the catalog, and from which revision on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sealane.errors import FailedPrecondition
from sealane.records.transactions import Transactions
from sealane_registry.rows import ChangeRow
from sealane_registry.store import Store

#: What is committed by another process is seen so late at most.
POLL_SECONDS = 1.0
BOOKMARK_SECONDS = 30.0
_BATCH = 200


@dataclass(frozen=True, slots=True)
class Seen:
    """Where a watch stands, and what it came over there; None where it only stands."""

    revision: int
    change: ChangeRow | None = None

    @property
    def details(self) -> dict[str, str]:
        """What else there is to say of the change."""
        return dict(json.loads(self.change.details)) if self.change is not None else {}


class Watches:
    """Wakes all watches after a change. The table is what they read; nothing is kept for them."""

    def __init__(self, records: Transactions[Store], bookmark: float = BOOKMARK_SECONDS) -> None:
        self._records = records
        self._bookmark = bookmark
        self._changed = asyncio.Event()

    def announce(self) -> None:
        """Something was committed. Call it on the event loop."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, project: str, after: int) -> AsyncIterator[Seen]:
        """Every change of a project after a revision, in order; 0 begins with those from now on.

        Raises:
            FailedPrecondition: that revision is no longer kept, or is not of this registry.
        """
        low, high = await self._records.read(lambda store: store.revisions())
        if after and not low <= after <= high:
            raise FailedPrecondition(
                f"changes after revision {after} are not kept any more; list again, then watch from 0",
                reason="REVISION_COMPACTED",
            )
        place = after or high
        yield Seen(place)
        quiet = 0.0
        while True:
            # Taken before reading: what is committed meanwhile wakes this watch again.
            changed, start = self._changed, place
            high = (await self._records.read(lambda store: store.revisions()))[1]
            rows = await self._records.read(lambda store, start=start: store.changes(project, start, _BATCH))  # type: ignore[misc]
            for row in rows:
                place = row.revision
                yield Seen(place, row)
            if rows:
                quiet = 0.0
                continue
            if quiet >= self._bookmark:
                # Of other projects there may be newer ones: that this one has nothing before is worth remembering.
                place, quiet = max(place, high), 0.0
                yield Seen(place)
            try:
                async with asyncio.timeout(POLL_SECONDS):
                    await changed.wait()
            except TimeoutError:
                quiet += POLL_SECONDS
