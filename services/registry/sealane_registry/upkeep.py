"""What the registry does by itself: scrub its artifacts, encrypt those of before, collect what nothing refers to."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

from sealane.clock import Clock
from sealane.errors import SealaneError
from sealane.records.tables import Actor
from sealane.records.transactions import Transactions
from sealane_registry.blobs import Blobs
from sealane_registry.collection import BATCH, CHANGES_SECONDS, drop_artifacts, drop_blobs
from sealane_registry.scrub import Scrub
from sealane_registry.store import Store

log = logging.getLogger("sealane.registry.upkeep")
AGAIN_SECONDS = 60.0
_ACTOR = "spiffe://sealane/service/registry"


class Scrubbing:
    """Runs the scrub beside the service.

    Args:
        blobs: what is scrubbed.
        records: where what was set aside is recorded, for each project that has it.
        clock: tells the time.
        rate: most bytes per second.
    """

    def __init__(self, blobs: Blobs, records: Transactions[Store], clock: Clock, rate: float) -> None:
        self._records, self._clock = records, clock
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.scrub = Scrub(blobs, self._found, lambda seconds: not self._stopping.wait(seconds), rate, clock)

    async def run(self, interval: float) -> None:
        """A round at once and one after each interval, in seconds, until it is stopped; none where it is 0."""
        self._loop = asyncio.get_running_loop()
        while interval and not self._stopping.is_set():
            try:
                await asyncio.to_thread(self.scrub.round)
            except SealaneError as error:  # the store is out of reach
                log.warning("the round of the scrub was cut short", extra={"reason": error.reason})
            log.info("scrubbed", extra={"blobs": self.scrub.counts.blobs, "corrupt": self.scrub.counts.corrupt})
            await asyncio.sleep(interval)

    def stop(self) -> None:
        """End the round that runs."""
        self._stopping.set()

    def _found(self, sha256: str) -> None:
        def record(store: Store) -> None:
            for project in store.projects_with_artifact(sha256):
                name = f"projects/{project}/artifacts/{sha256}"
                store.record(Actor(_ACTOR, project, ""), "SetArtifactAside", name, self._clock.now())

        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self._records.write(record), self._loop).result(timeout=30)


class Encrypting:
    """Encrypts what lies in the clear from before the registry had a master key, or came back from a backup.

    Args:
        blobs: the artifacts.
        rate: most bytes per second.
    """

    def __init__(self, blobs: Blobs, rate: float) -> None:
        self._blobs, self._rate = blobs, rate
        self._stopping = threading.Event()

    async def run(self, again: float = AGAIN_SECONDS) -> None:
        """Encrypt until nothing is left, trying again after `again` seconds where the store is out of reach."""
        while not self._stopping.is_set() and not await asyncio.to_thread(self.round):
            await asyncio.sleep(again)

    def stop(self) -> None:
        """End the round that runs."""
        self._stopping.set()

    def round(self) -> bool:
        """Encrypt everything once; whether nothing is left."""
        count = failed = 0
        try:
            self._blobs.drop_left_overs()
            found = list(self._blobs.in_the_clear())
        except SealaneError as error:
            log.warning("what lies in the clear is not known, trying again", extra={"reason": error.reason})
            return False
        for blob in found:
            try:
                self._blobs.encrypt(blob.sha256, self._pace)
                count += 1
            except _Stopped:
                return True
            except (SealaneError, OSError) as error:
                failed += 1
                log.warning("an artifact was not encrypted", extra={"sha256": blob.sha256, "reason": str(error)})
        if count:
            log.info("encrypted", extra={"artifacts": count, "left": failed})
        return not failed

    def _pace(self, size: int) -> None:
        if self._stopping.wait(size / self._rate):
            raise _Stopped


class _Stopped(Exception):
    """The service ends."""


class Collecting:
    """Runs the collection beside the service.

    Args:
        blobs: where what nobody has is removed.
        records: who has what.
        clock: tells the time.
        held: whether a backup still fetches what may be collected.
    """

    def __init__(
        self, blobs: Blobs, records: Transactions[Store], clock: Clock, held: Callable[[], bool] = lambda: False
    ) -> None:
        self._blobs, self._records, self._clock = blobs, records, clock
        self._held = held

    async def run(self, interval: float) -> None:
        """A round after each interval, in seconds, until it is cancelled; none where it is 0."""
        try:
            await asyncio.to_thread(self._blobs.empty_trash, self._free())
        except SealaneError as error:
            log.warning("removals that were cut short wait for the next start", extra={"reason": error.reason})
        while interval:
            await asyncio.sleep(interval)
            if self._held():
                continue
            try:
                await self.round()
            except SealaneError as error:
                log.warning("nothing was collected, trying again later", extra={"reason": error.reason})

    async def round(self) -> tuple[int, int]:
        """Collect once; returns the artifacts and the blobs that went."""
        count, found = 0, BATCH
        while found == BATCH:
            found, _ = await self._records.write(lambda store: drop_artifacts(store, self._clock))
            count += found

        blobs = await asyncio.to_thread(drop_blobs, self._blobs, self._clock, self._free())
        await self._records.write(lambda store: store.drop_changes(self._clock.now() - CHANGES_SECONDS))
        if count or blobs:
            log.info("collected", extra={"artifacts": count, "blobs": blobs})
        return count, blobs

    def _free(self) -> Callable[[str], bool]:
        """Whether no project has a digest, asked from another thread."""
        loop = asyncio.get_running_loop()

        def free(sha256: str) -> bool:
            asked = asyncio.run_coroutine_threadsafe(
                self._records.read(lambda store: not store.has_content(sha256)), loop
            )
            return asked.result(timeout=30)

        return free
