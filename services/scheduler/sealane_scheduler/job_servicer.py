"""JobService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sealane.errors import InvalidArgument, NotFound
from sealane.names import parse
from sealane.records.paging import page_of, read_token, write_token
from sealane.records.transactions import Transactions, actor
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.rpc.authorisation import absent, check_model, model_id
from sealane.rpc.call import Call
from sealane.scheduler.v1 import job_service_pb2 as pb
from sealane_scheduler import present
from sealane_scheduler.changes import NOBODY, Changes
from sealane_scheduler.jobs import CHECK, ENDED, OPTIMISE, JobRules
from sealane_scheduler.registry_port import RegistryPort, version_of
from sealane_scheduler.store import JobRow, Store
from sealane_scheduler.task_loop import TaskLoop
from sealane_scheduler.task_servicer import NewTasks, TaskServicer
from sealane_scheduler.tasks import KINDS, TaskRules

_NAME = "projects/*/jobs/*"
_WAIT_SECONDS = 10.0


class JobServicer(TaskServicer):
    """JobService."""

    def __init__(
        self,
        records: Transactions[Store],
        rules: JobRules,
        registry: RegistryPort,
        changes: Changes,
        *,
        tasks: TaskRules,
        task_loop: TaskLoop,
    ) -> None:
        self._records = records
        self._rules = rules
        self._registry = registry
        self._changes = changes
        self._tasks = tasks
        self._task_loop = task_loop

    async def CreateJob(self, request: pb.CreateJobRequest, call: Call) -> bytes:
        (project,) = parse(request.parent, "projects/*", "parent")
        kind = request.job.WhichOneof("spec")
        if kind == OPTIMISE:
            await self._check_optimise(request.job.optimise, project, call)
            spec = request.job.optimise.SerializeToString()
        elif kind == CHECK:
            spec = (await self._resolved(request.job.check, project, call)).SerializeToString()
        elif kind in KINDS:
            return await self._create_tasks(request, await self._new_tasks(kind, request.job, project, call), call)
        else:
            raise InvalidArgument(
                "a job needs what it is to do; set one of optimise, check, batch, evaluate, benchmark",
                field="job.spec",
            )
        who = actor(call, project)
        return await self._records.once(
            call,
            request,
            request.request_id,
            lambda store: present.job(self._rules.create(store, who, spec, kind)),
        )

    async def _create_tasks(self, request: pb.CreateJobRequest, new: NewTasks, call: Call) -> bytes:
        who = actor(call, new.row.project)

        def create(store: Store) -> pb.Job:
            row = self._tasks.create(store, who, new.row, new.tasks)
            # An empty dataset has no task to wait for.
            return present.job(row if new.tasks else self._tasks.settle(store, row))

        made = await self._records.once(call, request, request.request_id, create)
        self._task_loop.wake()
        return made

    async def GetJob(self, request: pb.GetJobRequest, call: Call) -> pb.Job:
        return present.job(await self._get(call, request.name), self._tasks.now())

    async def ListJobs(self, request: pb.ListJobsRequest, call: Call) -> pb.ListJobsResponse:
        (project,) = parse(request.parent, "projects/*", "parent")
        size, after = page_of(request.page_size), read_token(request.page_token)
        rows = await self._records.read(lambda store: store.jobs(project, after, size + 1))
        more = write_token(rows[size - 1].job) if len(rows) > size else ""
        return pb.ListJobsResponse(
            jobs=[present.job(row) for row in rows[:size] if _may_see(call, row)], next_page_token=more
        )

    async def CancelJob(self, request: pb.CancelJobRequest, call: Call) -> pb.Job:
        project, job = parse(request.name, _NAME)
        who = actor(call, project)
        found = await self._get(call, request.name)
        if found.kind in KINDS:
            row = await self._records.write(lambda store: self._tasks.cancel(store, who, found))
            await self._task_loop.stopped()
        else:
            row = await self._records.write(lambda store: self._rules.cancel(store, who, job))
        self._changes.announce(NOBODY)  # its worker is told by the loop, which sees the job gone
        return present.job(row)

    async def WatchJob(self, request: pb.WatchJobRequest, call: Call) -> AsyncIterator[pb.Job]:
        last = ""
        while call.remaining > 0:
            revision = self._changes.revision
            row = await self._get(call, request.name)
            if row.etag != last:
                last = row.etag
                yield present.job(row, self._tasks.now())
            if row.state in ENDED:
                return
            await self._changes.after(revision, _WAIT_SECONDS)

    async def _get(self, call: Call, name: str) -> JobRow:
        project, job = parse(name, _NAME)
        row = await self._records.read(lambda store: self._rules.get(store, project, job))
        if not _may_see(call, row):
            raise absent(name)
        return row

    async def _resolved(self, spec: pb.CheckSpec, project: str, call: Call) -> pb.CheckSpec:
        """A load check with the variants that it is about by their ids."""
        owner, _, number = parse(spec.version, "projects/*/models/*/versions/*", "job.check.version")
        if not (number.isascii() and number.isdigit()):
            raise InvalidArgument("name the version by its number, an alias may move", field="job.check.version")
        if owner != project:
            raise absent(spec.version)
        check_model(call.caller, call.method.access.permission, model_id(spec.version), spec.version)
        version = await asyncio.to_thread(self._registry.version, spec.version)
        known = [item.name.rpartition("/")[2] for item in version.variants]
        if unknown := sorted(set(spec.variants) - set(known)):
            raise NotFound(f"{spec.version} has no variant {unknown[0]!r}; it has {known}")
        wanted = set(spec.variants) or set(known)
        return pb.CheckSpec(version=version.name, variants=[name for name in known if name in wanted])

    async def _check_optimise(self, spec: pb.OptimiseSpec, project: str, call: Call) -> None:
        for field in ("source_variant", "calibration_sha256", "test_sha256"):
            if not getattr(spec, field):
                raise InvalidArgument(f"an optimise job needs {field}", field=f"job.optimise.{field}")
        if not 0 <= spec.max_accuracy_drop <= 1:
            raise InvalidArgument("max_accuracy_drop is a share, 0 to 1", field="job.optimise.max_accuracy_drop")
        if not spec.source_variant.startswith(f"projects/{project}/"):
            raise NotFound(f"{spec.source_variant} does not exist, or is not yours to see; check the name")
        check_model(call.caller, call.method.access.permission, model_id(spec.source_variant), spec.source_variant)
        version = await asyncio.to_thread(self._registry.version, version_of(spec.source_variant))
        source = next((item for item in version.variants if item.name == spec.source_variant), None)
        if source is None:
            raise NotFound(f"{spec.source_variant} does not exist; list the version's variants")
        if source.format != variant_pb.FORMAT_SAVED_MODEL:
            raise InvalidArgument(
                "only a SavedModel can be optimised; name that variant", field="job.optimise.source_variant"
            )


def _may_see(call: Call, row: JobRow) -> bool:
    """Whether the caller's token, if it is limited to some models, is for the job's."""
    permission = call.method.access.permission
    return call.caller.may_use(permission, model_id(present.subject(present.job(row))))
