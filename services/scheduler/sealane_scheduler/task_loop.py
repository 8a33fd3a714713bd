"""Moves jobs with many tasks along: gives tasks to free places, takes back what expired, has the registry told."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import partial

from sealane.errors import NotFound, SealaneError
from sealane.failpoint import failpoint
from sealane.records.transactions import Transactions
from sealane.rpc.times import duration_of
from sealane.scheduler.v1 import fleet_service_pb2 as fleet_pb
from sealane.scheduler.v1 import job_service_pb2 as job_pb
from sealane_scheduler import present, task_kinds, task_queue, task_specs
from sealane_scheduler.controller import Controller
from sealane_scheduler.filters import NodeView
from sealane_scheduler.fleet import READY
from sealane_scheduler.jobs import PENDING, REGISTERING, RUNNING, JobRules
from sealane_scheduler.recovery import RECONNECT_SECONDS
from sealane_scheduler.registry_port import PERMANENT, RegistryPort
from sealane_scheduler.store import JobRow, Store
from sealane_scheduler.task_queue import Given, Queued
from sealane_scheduler.task_specs import Subject
from sealane_scheduler.task_store import AttemptRow, TaskRow
from sealane_scheduler.tasks import BATCH, KINDS, PAUSED, TaskRules

log = logging.getLogger("sealane.tasks")

TICK_SECONDS = 0.25
#: Tasks that a node has at the same time: while one runs, the next one is there.
PLACES = 2
#: Most tasks of a job that are looked at in one round, and how many beyond twice the places that are free.
_LOOK, _SPARE = 256, 16
#: What a job is about is read again after so long: policies change.
SUBJECT_SECONDS = 30.0
#: A node that is away for so long may have died: its tasks are begun elsewhere too, and the first to end counts.
AWAY_SECONDS = 1.0

Key = tuple[str, str, int, int]


class TaskLoop:
    """The loop, and the ends of tasks as workers tell them."""

    def __init__(
        self,
        records: Transactions[Store],
        rules: tuple[TaskRules, JobRules],
        controller: Controller,
        registry: RegistryPort,
    ) -> None:
        self._records = records
        self._rules, self._jobs = rules
        self._controller = controller
        self._registry = registry
        self._under_way: dict[Key, tuple[AttemptRow, fleet_pb.TaskAssignment | None]] = {}
        self._subjects: dict[str, tuple[float, Subject]] = {}
        self._wake = asyncio.Event()
        self._dirty = False
        self._told: set[str] = set()
        """Nodes whose tasks are others by now."""
        self._expire_due = 0.0
        self._only = ""
        """The one open job, where there is but one."""

    async def prepare(self, grace: float = RECONNECT_SECONDS) -> None:
        """Know the attempts under way before any worker asks: a task that it does not hear of it would stop.

        Nodes get `grace` seconds to come to this process.
        """
        for attempt in await self._records.write(self._rules.extend_all):
            self._under_way[attempt.key] = (attempt, None)
            self._controller.fleet.expect(attempt.node, grace)
        await self._fill_in()

    async def run(self) -> None:
        """Move tasks until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self.step()
            except SealaneError as error:
                log.warning("tasks did not move, trying again", extra={"reason": error.reason})
            try:
                async with asyncio.timeout(TICK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def wake(self) -> None:
        """Look now, not at the next tick."""
        self._wake.set()

    async def step(self) -> None:
        """One round; nodes and watchers hear of all that it changed at once."""
        try:
            await self._step()
        finally:
            if self._dirty:
                told, self._dirty, self._told = self._told, False, set()
                self._controller.changes.announce(told)

    async def _step(self) -> None:
        if self._rules.now() >= self._expire_due:
            self._expire_due = self._rules.now() + TICK_SECONDS
            if await self._records.write(self._rules.expire):
                await self._sync()
        jobs = await self._records.read(lambda store: store.jobs_of(KINDS, (PENDING, RUNNING, PAUSED, REGISTERING)))
        self._subjects = {row.name: self._subjects[row.name] for row in jobs if row.name in self._subjects}
        await self._fill_in()
        for row in jobs:
            if row.state == REGISTERING:
                await self._register(row)
        await self._give_out([row for row in jobs if row.state in (PENDING, RUNNING)])

    def tasks_of(self, node: str) -> list[fleet_pb.TaskAssignment]:
        """What a node is to work on."""
        return [task for attempt, task in self._under_way.values() if attempt.node == node and task is not None]

    def held_by(self, node: str) -> int:
        """How many tasks a node has."""
        return sum(attempt.node == node for attempt, _ in self._under_way.values())

    async def take_back(self, nodes: Collection[str]) -> None:
        """Give what these nodes work on to others, as if it had never been begun."""
        if any(attempt.node in nodes for attempt, _ in self._under_way.values()):
            await self._records.write(lambda store: self._rules.take_back(store, nodes))
            await self._sync()

    async def renew(self, held: AttemptRow, request: fleet_pb.RenewTaskRequest) -> None:
        """Extend a lease; raises Aborted where the task is another attempt's."""
        await self._records.write(lambda store: self._rules.renew(store, held, request.progress, request.log))
        failpoint("scheduler.renew.committed")

    async def finish(self, held: AttemptRow, request: fleet_pb.FinishTaskRequest) -> None:
        """End an attempt; raises Aborted where the task is another attempt's. A repeat is no error."""

        def finish(store: Store) -> tuple[JobRow, tuple[AttemptRow, TaskRow] | None, list[AttemptRow]] | None:
            told = partial(task_kinds.outcome, request=request)
            ended = self._rules.finish(store, held, told)
            return None if ended is None else (ended, self._next(store, ended, held.node), store.running())

        done = await self._records.write(finish)
        if done is None:
            return
        row, begun, running = done
        if begun is not None:  # before anything else runs: the place is taken
            self._remember(*begun, row)
        self._forget_but(running)
        self._changed()

    def _next(self, store: Store, job: JobRow, node: str) -> tuple[AttemptRow, TaskRow] | None:
        """The next task for the place that one leaves, in the same transaction, where no queue has to be asked.

        That is so while one job alone is open, and its tasks are about one variant: the node has just run it.
        """
        if (
            self._controller.holds.closed(node)
            or self._only != job.name
            or job.kind != BATCH
            or job.state != RUNNING
            or job.name not in self._subjects
        ):
            return None
        waiting = [task for task in store.waiting(job.project, job.job, self._rules.now(), 1) if not task.failures]
        given = self._rules.give_out(store, job, [(task, node) for task in waiting])
        return (given[0], waiting[0]) if given else None

    async def owns(self, held: AttemptRow) -> bool:
        """Whether an attempt is at a task of this loop's jobs, rather than at the one task of another kind."""
        if held.key in self._under_way:
            return True
        found = await self._records.read(lambda store: store.jobs(held.project, "", 1, only=held.job))
        return bool(found) and found[0].kind in KINDS

    def nodes(self) -> list[NodeView]:
        """The nodes as they are now."""
        return self._controller.nodes()

    async def stopped(self) -> None:
        """A job was cancelled or paused: its nodes are told."""
        await self._sync()
        self._changed()

    async def _sync(self) -> None:
        """Forget attempts that are not under way any more by the records."""
        self._forget_but(await self._records.read(lambda store: store.running()))

    def _forget_but(self, running: Iterable[AttemptRow]) -> None:
        keys = {item.key for item in running}
        gone = [key for key in self._under_way if key not in keys]
        for key in gone:
            self._told.add(self._under_way.pop(key)[0].node)
        if gone:
            self._changed()

    async def _fill_in(self) -> None:
        """Make the assignments that are missing, after a start or while the registry was away."""
        missing = [attempt for attempt, task in self._under_way.values() if task is None]
        for attempt in missing:
            found = await self._records.read(partial(_task_and_job, attempt=attempt))
            known = found is not None and await self._subject(found[1]) is not None
            if found is not None and known and attempt.key in self._under_way:  # it may have ended meanwhile
                self._remember(attempt, *found)
                self._dirty = True

    def _remember(self, attempt: AttemptRow, task: TaskRow, job: JobRow) -> None:
        made = task_kinds.assignment(job, task, self._subjects[job.name][1])
        if made is not None:
            made.attempt = attempt.attempt
            made.lease.CopyFrom(duration_of(self._rules.lease_seconds))
        self._under_way[attempt.key] = (attempt, made)
        self._told.add(attempt.node)

    async def _subject(self, job: JobRow) -> Subject | None:
        """What a job is about; None while the registry is away."""
        known = self._subjects.get(job.name)
        if known is None or self._rules.now() - known[0] > SUBJECT_SECONDS:
            try:
                spec = task_specs.read_spec(job.kind, job.spec)
                found = await asyncio.to_thread(task_specs.subject_in, self._registry, spec)
                self._subjects[job.name] = (self._rules.now(), found)
            except NotFound as error:
                why = error.message
                await self._records.write(lambda store: self._rules.hopeless(store, job, why))
                return None
            except SealaneError as error:
                log.warning("a job waits for the registry", extra={"job": job.name, "reason": error.reason})
                return known[1] if known is not None else None
        return self._subjects[job.name][1]

    async def _give_out(self, jobs: Sequence[JobRow]) -> None:
        self._only = jobs[0].name if len(jobs) == 1 else ""
        if not jobs:
            return
        busy = Counter(attempt.node for attempt, _ in self._under_way.values())
        open_ = (state.node for state in self._controller.fleet if state.state == READY)
        places = {node: PLACES - busy[node] for node in open_ if not self._controller.holds.closed(node)}
        if not any(count > 0 for count in places.values()):
            return
        nodes = self._controller.nodes()
        look = min(sum(max(count, 0) for count in places.values()) * 2 + _SPARE, _LOOK)
        queue = [queued for job in jobs if (queued := await self._queued(job, look)) is not None]
        for item in queue:
            await self._explain(item, nodes)
        by_job: dict[str, list[Given]] = {}
        for given in task_queue.assign(queue, nodes, places):
            by_job.setdefault(given.row.name, []).append(given)
        for items in by_job.values():
            await self._begin(items)

    async def _explain(self, item: Queued, nodes: Sequence[NodeView]) -> None:
        """Have a job say what it lacks, where waiting alone will not do."""
        why = task_queue.why_waiting(item, nodes, PLACES)
        if why and why != item.row.message:
            await self._records.write(lambda store: self._rules.waits(store, item.row, why))
            self._dirty = True  # its watchers hear of it; there is nothing to look at again

    async def _queued(self, job: JobRow, look_at: int) -> Queued | None:
        subject = await self._subject(job)
        if subject is None:
            return None
        mine = [attempt for attempt, _ in self._under_way.values() if (attempt.project, attempt.job) == job.key]
        execution = task_specs.execution_of(job_pb.Execution.FromString(job.execution))
        now = self._rules.now()
        away = {item.node for item in mine if self._is_away(item.node)}

        def look(store: Store) -> tuple[list[TaskRow], list[TaskRow], dict[int, frozenset[str]]]:
            most = max(look_at, execution.gang)
            waiting = store.waiting(job.project, job.job, now, most)
            late = self._rules.slow(store, job, mine) if execution.speculative and len(waiting) < most else []
            late += [item for item in mine if item.node in away and item not in late and _alone(item, mine)]
            slow = [store.task(*item.key[:3]) for item in late]
            tried = {item.task for item in waiting if item.failures} | {item.task for item in late}
            failed_on = {
                task: frozenset(item.node for item in store.attempts(job.project, job.job, task)) for task in tried
            }
            return waiting, [item for item in slow if item is not None and item.state == "RUNNING"], failed_on

        waiting, slow, failed_on = await self._records.read(look)
        variants = {view.variant: view for view in present.variants(subject.version)}
        running = Counter(item.node for item in mine)
        return Queued(job, execution, variants, waiting, slow, running, failed_on)

    def _is_away(self, node: str) -> bool:
        if self._controller.recovery.is_held(node):
            return False  # with much of its zone: most likely it works on
        return self._controller.fleet.absent_for(node) > AWAY_SECONDS

    async def _begin(self, items: Sequence[Given]) -> None:
        job = items[0].row
        wanted = [(item.task, item.node) for item in items]

        def give_out(store: Store) -> list[AttemptRow]:
            begun = self._rules.give_out(store, job, wanted)
            failpoint("scheduler.lease.recorded")
            return begun

        begun = await self._records.write(give_out)
        failpoint("scheduler.lease.committed")
        tasks = {item.task.task: item.task for item in items}
        for attempt in begun:
            self._remember(attempt, tasks[attempt.task], job)
        if begun:
            self._changed()

    async def _register(self, row: JobRow) -> None:
        """Have the registry keep what was measured; safe to repeat."""
        try:
            subject = task_specs.read_spec(row.kind, row.spec).version
            version = await asyncio.to_thread(self._registry.record_measurements, present.job(row), subject)
            await self._controller.refresh(version)
            await self._records.write(lambda store: self._jobs.registered(store, row, row.results))
        except PERMANENT as error:
            why = error.message
            await self._records.write(lambda store: self._jobs.not_registered(store, row, why))
        except SealaneError as error:
            log.warning("results wait for the registry", extra={"job": row.name, "reason": error.reason})
            return
        self._changed()

    def _changed(self) -> None:
        self._dirty = True
        self.wake()


def _task_and_job(store: Store, attempt: AttemptRow) -> tuple[TaskRow, JobRow] | None:
    task = store.task(attempt.project, attempt.job, attempt.task)
    rows = store.jobs(attempt.project, "", 1, only=attempt.job)
    return (task, rows[0]) if task is not None and rows else None


def _alone(attempt: AttemptRow, others: Sequence[AttemptRow]) -> bool:
    return sum(item.task == attempt.task for item in others) == 1
