"""Tells the registry what is in use: at start, soon after every change, and now and then."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection, Iterable, Mapping
from functools import partial

from sealane.clock import Clock
from sealane.errors import SealaneError
from sealane.records.transactions import Transactions
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane_scheduler import task_kinds, uses
from sealane_scheduler.jobs import ENDED
from sealane_scheduler.registry_port import RegistryPort
from sealane_scheduler.store import DeployedRow, EnsembleRow, JobRow, Store
from sealane_scheduler.tasks import BATCH, KINDS, MAX_TASKS

log = logging.getLogger("sealane.uses")

#: Changes within this time are told together; within twenty times as long as telling takes where that is longer.
GATHER_SECONDS, GATHER_TIMES = 0.2, 20.0
RETRY_SECONDS = 2.0
#: Told again although nothing has changed: the registry may be one that was restored.
AGAIN_SECONDS = 60.0
#: Files of a job that goes on are read again after so long, and those it made are told from this age of it on: the
#: registry collects nothing that is younger than a day.
FILES_SECONDS, OLD_SECONDS = 3600.0, 12 * 3600.0


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
        self._job_files: dict[str, tuple[float, frozenset[str]]] = {}
        records.after_write(self._changed.set)

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            self._changed.clear()
            begun = self._clock.monotonic()
            if not await self.step():
                await asyncio.sleep(RETRY_SECONDS)
                continue
            took = self._clock.monotonic() - begun
            try:
                async with asyncio.timeout(max(self._due - self._clock.monotonic(), 0.0)):
                    await self._changed.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(max(GATHER_SECONDS, GATHER_TIMES * took))

    async def step(self) -> bool:
        """Tell once, unless the registry was told just that lately; whether it knows."""
        since = self._clock.now() - uses.KEPT_SECONDS
        try:
            deployments, chains, jobs = await self._records.read(partial(_rows, since=since))
            files = await self._files(jobs)
            found = uses.collect(deployments, chains, jobs, since, files)
            if found == self._told and self._clock.monotonic() < self._due:
                return True
            await asyncio.to_thread(self._registry.report_uses, found)
        except SealaneError as error:
            self._told = None
            log.warning("the registry is not told what is in use, trying again", extra={"reason": error.reason})
            return False
        self._told, self._due = found, self._clock.monotonic() + AGAIN_SECONDS
        return True

    async def _files(self, jobs: Iterable[JobRow]) -> Mapping[str, Collection[str]]:
        """What jobs with many tasks read and made, by name.

        What is read never changes. What is made is told once the job has ended, or is old enough to be collected.
        """
        kept: dict[str, tuple[float, frozenset[str]]] = {}
        now = self._clock.now()
        for row in (item for item in jobs if item.kind in KINDS):
            known, ended = self._job_files.get(row.name), row.state in ENDED
            if known is None or now >= known[0] or (ended and known[0] < math.inf):
                made = ended or now - row.create_time > OLD_SECONDS
                files = await self._records.read(partial(_files, row=row, made=made))
                known = (math.inf if ended else now + FILES_SECONDS, files)
            kept[row.name] = known
        self._job_files = kept
        return {name: files for name, (_, files) in kept.items()}


def _files(store: Store, row: JobRow, *, made: bool) -> frozenset[str]:
    found = set[str]()
    if row.state not in ENDED:  # what it has read is its dataset's to keep
        found |= task_kinds.shards_of(store.tasks(row.project, row.job, -1, MAX_TASKS))
    if made and row.kind == BATCH:
        found |= task_kinds.made_by(store.outputs(row.project, row.job))
    return frozenset(found)


def _rows(store: Store, since: float) -> tuple[list[DeployedRow], list[EnsembleRow], list[JobRow]]:
    return store.deployed(), store.ensembles(), store.jobs_since(ENDED, since)
