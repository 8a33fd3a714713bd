"""The part of JobService that is about jobs with many tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sealane.errors import InvalidArgument, NotFound
from sealane.names import parse
from sealane.records.paging import page_of, read_token, write_token
from sealane.records.tables import Actor
from sealane.records.transactions import Transactions, actor
from sealane.rpc.authorisation import absent, check_model, model_id
from sealane.rpc.call import Call
from sealane.scheduler.v1 import job_service_pb2 as pb
from sealane_scheduler import check_placement, present, present_tasks, task_kinds, task_specs
from sealane_scheduler.registry_port import RegistryPort
from sealane_scheduler.store import JobRow, Store
from sealane_scheduler.task_loop import TaskLoop
from sealane_scheduler.task_store import TaskRow
from sealane_scheduler.tasks import TaskRules


@dataclass(frozen=True, slots=True)
class NewTasks:
    """A job of many tasks as it is asked for, checked and with all that was left open.

    Args:
        row: the job to be.
        tasks: its tasks.
    """

    row: JobRow
    tasks: list[TaskRow]


class TaskServicer:
    """Mixed into :class:`sealane_scheduler.job_servicer.JobServicer`."""

    _records: Transactions[Store]
    _registry: RegistryPort
    _tasks: TaskRules
    _task_loop: TaskLoop
    _get: Callable[[Call, str], Awaitable[JobRow]]
    """A job that the caller may see; raises NotFound for every other."""

    async def PauseJob(self, request: pb.PauseJobRequest, call: Call) -> pb.Job:
        row, who = await self._mine(call, request.name)
        turned = await self._records.write(lambda store: self._tasks.pause(store, who, row))
        await self._task_loop.stopped()
        return present.job(turned, self._tasks.now())

    async def ResumeJob(self, request: pb.ResumeJobRequest, call: Call) -> pb.Job:
        row, who = await self._mine(call, request.name)
        turned = await self._records.write(lambda store: self._tasks.resume(store, who, row))
        await self._task_loop.stopped()
        return present.job(turned, self._tasks.now())

    async def ListTasks(self, request: pb.ListTasksRequest, call: Call) -> pb.ListTasksResponse:
        row, _ = await self._mine(call, request.parent)
        size, last = page_of(request.page_size), read_token(request.page_token)
        if last and not _is_number(last):
            raise InvalidArgument("page_token is not one of ours; start without it", field="page_token")
        after = int(last or -1)
        found = await self._records.read(lambda store: store.tasks(row.project, row.job, after, size + 1))
        more = write_token(str(found[size - 1].task)) if len(found) > size else ""
        return pb.ListTasksResponse(
            tasks=[present_tasks.task(row, item) for item in found[:size]], next_page_token=more
        )

    async def GetTask(self, request: pb.GetTaskRequest, call: Call) -> pb.Task:
        project, job, number = parse(request.name, "projects/*/jobs/*/tasks/*")
        row, _ = await self._mine(call, f"projects/{project}/jobs/{job}")
        if not _is_number(number):
            raise NotFound(f"{request.name} does not exist; list the job's tasks")
        found = await self._records.read(lambda store: store.task(project, job, int(number)))
        if found is None:
            raise NotFound(f"{request.name} does not exist; list the job's tasks")
        attempts = await self._records.read(lambda store: store.attempts(project, job, int(number)))
        return present_tasks.task(row, found, attempts)

    async def _new_tasks(self, kind: str, job: pb.Job, project: str, call: Call) -> NewTasks:
        """A job of many tasks.

        Raises:
            InvalidArgument: a field that cannot be.
            NotFound: what it is about does not exist, or is not the caller's to see.
            FailedPrecondition: a dataset that workers cannot read.
        """
        task_specs.check_execution(job.execution)
        spec, execution = task_specs.spec_of(kind, job), task_specs.execution_of(job.execution)
        owner, _, number = parse(spec.version, "projects/*/models/*/versions/*", f"job.{kind}.version")
        if not (number.isascii() and number.isdigit()):
            raise InvalidArgument("name the version by its number, an alias may move", field=f"job.{kind}.version")
        if owner != project:
            raise absent(spec.version)
        check_model(call.caller, call.method.access.permission, model_id(spec.version), spec.version)
        if spec.dataset or not isinstance(spec, pb.BenchmarkSpec):
            (owner, _) = parse(spec.dataset, "projects/*/datasets/*", f"job.{kind}.dataset")
            if owner != project:
                raise absent(spec.dataset)
        subject = await asyncio.to_thread(task_specs.subject_in, self._registry, spec)
        whole = task_specs.resolved(spec, subject, self._loadable(subject))
        row = JobRow(
            project,
            "",
            "",
            whole.SerializeToString(),
            0.0,
            0.0,
            "",
            kind=kind,
            execution=job.execution.SerializeToString(),
            attempts_allowed=execution.max_attempts,
        )
        return NewTasks(row, task_kinds.tasks_of(whole, subject))

    def _loadable(self, subject: task_specs.Subject) -> list[str]:
        """Ids of variants that a worker can load now."""
        nodes = [node for node in self._task_loop.nodes() if node.alive]
        return [
            view.variant
            for view in present.variants(subject.version)
            if check_placement.choose(nodes, [view]) and not view.blocked
        ]

    async def _mine(self, call: Call, name: str) -> tuple[JobRow, Actor]:
        """A job that the caller may see, and who the caller is."""
        project, _ = parse(name, "projects/*/jobs/*")
        return await self._get(call, name), actor(call, project)


def _is_number(text: str) -> bool:
    """Whether it can be the number of a task; a database takes no larger ones."""
    return text.isascii() and text.isdigit() and len(text) < 10
