"""Tells the registry what is in use: at start, soon after every change, and now and then."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from sealane.clock import Clock
from sealane.errors import SealaneError
from sealane.records.transactions import Transactions
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane_scheduler import uses
from sealane_scheduler.jobs import ENDED
from sealane_scheduler.registry_port import RegistryPort
from sealane_scheduler.store import DeploymentRow, EnsembleRow, JobRow, Store

log = logging.getLogger("sealane.uses")

#: Changes within this time are told together.
GATHER_SECONDS = 0.2
RETRY_SECONDS = 2.0
#: Told again although nothing has changed: the registry may be one that was restored.
AGAIN_SECONDS = 60.0


class UseReports:
    """The loop that tells. Of a scheduler it runs in the process that decides, and in no other.

    Args:
        records: the scheduler's; every change that it commits may change what is in use.
        registry: is told.
        clock: tells the time.
    """

    def __init__(self, records: Transactions[Store], registry: RegistryPort, clock: Clock) -> None:
        self._records = records
        self._registry = registry
        self._clock = clock
        self._changed = asyncio.Event()
        self._told: list[model_pb.Use] | None = None
        self._due = 0.0
        records.after_write(self._changed.set)

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            self._changed.clear()
            if not await self.step():
                await asyncio.sleep(RETRY_SECONDS)
                continue
            try:
                async with asyncio.timeout(max(self._due - self._clock.monotonic(), 0.0)):
                    await self._changed.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(GATHER_SECONDS)

    async def step(self) -> bool:
        """Tell once, unless the registry was told just that lately; whether it knows."""
        since = self._clock.now() - uses.KEPT_SECONDS
        try:
            found = uses.collect(*await self._records.read(partial(_rows, since=since)), since=since)
            if found == self._told and self._clock.monotonic() < self._due:
                return True
            await asyncio.to_thread(self._registry.report_uses, found)
        except SealaneError as error:
            self._told = None
            log.warning("the registry is not told what is in use, trying again", extra={"reason": error.reason})
            return False
        self._told, self._due = found, self._clock.monotonic() + AGAIN_SECONDS
        return True


def _rows(store: Store, since: float) -> tuple[list[DeploymentRow], list[EnsembleRow], list[JobRow]]:
    return store.deployments(), store.ensembles(), store.jobs_since(ENDED, since)
