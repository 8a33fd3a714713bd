"""Moves jobs along: gives waiting tasks to nodes, takes back what expired, registers what was made."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable

from sealane.errors import SealaneError
from sealane.records.transactions import Transactions
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.rpc.times import duration_of
from sealane.scheduler.v1 import fleet_service_pb2 as fleet_pb
from sealane.scheduler.v1 import job_service_pb2 as job_pb
from sealane_scheduler import present
from sealane_scheduler.changes import NOBODY
from sealane_scheduler.check_jobs import CheckJobs
from sealane_scheduler.controller import Controller
from sealane_scheduler.fleet import READY
from sealane_scheduler.jobs import CHECK, PENDING, REGISTERING, RUNNING, SINGLE, JobRules, Outcome
from sealane_scheduler.registry_port import PERMANENT, RegistryPort, version_of
from sealane_scheduler.store import JobRow, Store

log = logging.getLogger("sealane.jobs")

TICK_SECONDS = 0.3
_RUNTIME = "tensorflow"


class JobLoop:
    """The loop over jobs, and the ends of tasks as workers tell them."""

    def __init__(
        self, records: Transactions[Store], rules: JobRules, controller: Controller, registry: RegistryPort
    ) -> None:
        self._records = records
        self._rules = rules
        self._controller = controller
        self._registry = registry
        self._checks = CheckJobs(records, rules, controller, registry)
        self._tasks: dict[str, tuple[str, fleet_pb.TaskAssignment]] = {}

    @property
    def lease_seconds(self) -> float:
        """Length of a task's lease."""
        return self._rules.lease_seconds

    async def prepare(self) -> None:
        """Know the running tasks before any worker asks: a task it does not hear of it would stop."""
        await self._records.write(self._rules.extend_all)
        await self._sync()

    async def run(self) -> None:
        """Move jobs until cancelled."""
        while True:
            try:
                await self.step()
            except SealaneError as error:
                log.warning("jobs did not move, trying again", extra={"reason": error.reason})
            await asyncio.sleep(TICK_SECONDS)

    async def step(self) -> None:
        """One round."""
        if await self._records.write(self._rules.expire):
            self._changed(NOBODY)  # those whose tasks are gone are told below
        await self._sync()
        waiting = await self._records.read(lambda store: store.jobs_of(SINGLE, (PENDING,)))
        self._checks.forget(row.name for row in waiting)
        for row in waiting:
            busy = {holder for holder, _ in self._tasks.values()}
            node = await self._checks.choose(row, busy) if row.kind == CHECK else self._choose(busy)
            if node:
                await self._bind(row, node)
        for row in await self._records.read(lambda store: store.jobs_of(SINGLE, (REGISTERING,))):
            await self._register(row)

    async def tasks_of(self, node: str) -> list[fleet_pb.TaskAssignment]:
        """What a node is to work on."""
        return [task for holder, task in self._tasks.values() if holder == node]

    def held_by(self, node: str) -> int:
        """How many tasks a node has."""
        return sum(holder == node for holder, _ in self._tasks.values())

    async def take_back(self, nodes: Collection[str]) -> None:
        """Give what these nodes work on to others, as if it had never been begun."""
        if any(holder in nodes for holder, _ in self._tasks.values()):
            await self._records.write(lambda store: self._rules.take_back(store, nodes))
            await self._sync()

    async def renew(self, row: JobRow, progress: float, message: str) -> None:
        """Extend a lease; raises Aborted where the task is another attempt's."""
        await self._records.write(lambda store: self._rules.renew(store, row, progress, message))
        self._changed(NOBODY)

    async def finish(self, row: JobRow, request: fleet_pb.FinishTaskRequest) -> None:
        """End an attempt; raises Aborted where the task is another attempt's. A repeat is no error."""
        stored = await self._records.read(lambda store: self._rules.get(store, row.project, row.job))
        repeated = (stored.attempt, stored.node) == (row.attempt, row.node) and stored.state not in (PENDING, RUNNING)
        if repeated and stored.state != "CANCELLED":
            return
        job = present.job(stored)
        check = stored.kind == CHECK
        outcome = self._checks.outcome(job, request, row.node) if check else _outcome(job, request)
        await self._records.write(lambda store: self._rules.finish(store, row, outcome))
        self._changed(NOBODY)
        await self._sync()

    async def _sync(self) -> None:
        """Tasks in memory are those that run by the records."""
        running = {row.name: row for row in await self._records.read(lambda store: store.jobs_of(SINGLE, (RUNNING,)))}
        gone = [name for name in self._tasks if name not in running]
        nodes = [self._tasks.pop(name)[0] for name in gone]
        for name, row in running.items():
            if name not in self._tasks or self._tasks[name][1].attempt != row.attempt:
                await self._remember(row)
        if gone:
            self._changed(nodes)

    def _choose(self, busy: set[str]) -> str:
        """A node that is there, has the runtime and no task; rather a cloud node. Empty where there is none."""
        fit = [
            state
            for state in self._controller.fleet
            if state.state == READY
            and _RUNTIME in state.facts.runtimes
            and state.node not in busy
            and not self._controller.holds.closed(state.node)
        ]
        best = min(fit, key=lambda state: (state.tier != "cloud", state.node), default=None)
        return "" if best is None else best.node

    async def _bind(self, row: JobRow, node: str) -> None:
        claimed = await self._records.write(lambda store: self._rules.claim(store, row, node))
        if claimed is not None:
            self._changed(NOBODY)
            await self._remember(claimed)

    async def _remember(self, row: JobRow) -> None:
        assignment = fleet_pb.TaskAssignment(task=row.task, attempt=row.attempt, lease=duration_of(self.lease_seconds))
        try:
            if row.kind == CHECK:
                assignment.check.CopyFrom(await self._checks.task(row))
            else:
                assignment.optimise.CopyFrom(await self._optimise_task(row))
        except SealaneError as error:
            log.warning("a task waits for the registry", extra={"job": row.name, "reason": error.reason})
            return
        before = self._tasks.get(row.name)
        self._tasks[row.name] = (row.node, assignment)
        self._changed([row.node] if before is None else [row.node, before[0]])

    async def _optimise_task(self, row: JobRow) -> fleet_pb.OptimiseTask:
        spec = job_pb.OptimiseSpec.FromString(row.spec)
        version = await asyncio.to_thread(self._registry.version, version_of(spec.source_variant))
        source = next((item for item in version.variants if item.name == spec.source_variant), None)
        return fleet_pb.OptimiseTask(spec=spec, source=source, signatures=version.signatures)

    async def _register(self, row: JobRow) -> None:
        try:
            await (self._checks.record(row) if row.kind == CHECK else self._register_variants(row))
        except PERMANENT as error:
            why = error.message
            await self._records.write(lambda store: self._rules.not_registered(store, row, why))
        except SealaneError as error:
            # A slow or busy registry costs no job its work: registering is safe to repeat.
            log.warning("results wait for the registry", extra={"job": row.name, "reason": error.reason})
            return
        self._changed(NOBODY)

    async def _register_variants(self, row: JobRow) -> None:
        job = present.job(row)
        made = await asyncio.to_thread(self._registry.register, job)
        version: model_pb.Version = await asyncio.to_thread(
            self._registry.version, version_of(job.optimise.source_variant)
        )
        await self._controller.refresh(version)
        results = job_pb.Job(results=job.results, variants=made).SerializeToString()
        await self._records.write(lambda store: self._rules.registered(store, row, results))

    def _changed(self, nodes: Iterable[str]) -> None:
        self._controller.changes.announce(nodes)


def _outcome(job: job_pb.Job, request: fleet_pb.FinishTaskRequest) -> Outcome:
    source = job.optimise.source_variant.rsplit("/", 1)[1]
    measured = {item.variant_id: item.measurement.accuracy for item in request.results}
    return Outcome(
        error=request.error,
        retryable=request.retryable,
        results=job_pb.Job(results=request.results).SerializeToString(),
        source_accuracy=measured.get(source),
        accuracies=[(name, accuracy) for name, accuracy in measured.items() if name != source],
        max_drop=job.optimise.max_accuracy_drop,
    )
