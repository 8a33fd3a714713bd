"""Jobs of many tasks: batch inference, evaluation, benchmarks. A part of :class:`sealane.client.jobs.Jobs`."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from sealane.client import references
from sealane.client.artifacts import Artifacts
from sealane.client.paging import pages
from sealane.client.session import Session
from sealane.errors import FailedPrecondition
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.registry.v1 import model_service_pb2_grpc
from sealane.scheduler.v1 import deployment_service_pb2 as deployment_pb
from sealane.scheduler.v1 import job_service_pb2 as pb
from sealane.scheduler.v1 import job_service_pb2_grpc


class ExecutionOptions(TypedDict, total=False):
    """How the tasks of a job are run.

    Attributes:
        priority: the higher goes first, -100 to 100.
        data_class: ``public``, ``internal`` or ``restricted``.
        residency: zones where the data may be; empty for all.
        max_parallel: most tasks at the same time.
        gang: so many tasks begin together or none does.
        max_attempts: failures after which a task, and the job, is given up; default 3.
        speculative: whether a task that takes far longer than the others is begun a second time elsewhere.
        request_id: UUID that makes a repeat safe across processes; default: a new one.
    """

    priority: int
    data_class: str
    residency: Sequence[str]
    max_parallel: int
    gang: int
    max_attempts: int
    speculative: bool
    request_id: str


class BatchOptions(ExecutionOptions, total=False):
    """How a batch is run, beside :class:`ExecutionOptions`.

    Attributes:
        variant: id; default: the first that a worker can load.
        inputs: input of the model -> array of the dataset, where names leave a doubt.
        outputs: outputs wanted; default: all.
        signature: default: the default one.
        rows_per_task: default 1024.
        batch_size: rows of one run; default 64.
    """

    variant: str
    inputs: Mapping[str, str]
    outputs: Sequence[str]
    signature: str
    rows_per_task: int
    batch_size: int


class EvaluateOptions(ExecutionOptions, total=False):
    """How an evaluation is run, beside :class:`ExecutionOptions`.

    Attributes:
        variants: ids; default: all.
        inputs: input of the model -> array of the dataset, where names leave a doubt.
        label: array with the right answers; default: the one that the dataset's schema calls a label.
        output: output that is compared; default: the only one.
        signature: default: the default one.
    """

    variants: Sequence[str]
    inputs: Mapping[str, str]
    label: str
    output: str
    signature: str


class TaskJobs:
    """Mixed into :class:`sealane.client.jobs.Jobs`."""

    _session: Session
    _artifacts: Artifacts

    def batch(self, version: str, dataset: str, **options: Unpack[BatchOptions]) -> pb.Job:
        """Run a version over all rows of a dataset; :meth:`results` has what came out.

        Args:
            version: ``digits@3``, ``digits@production`` or the full name.
            dataset: its id or full name; its format is ``npz``.
            options: see :class:`BatchOptions`.
        """
        spec = pb.BatchSpec(
            version=self._version(version),
            variant_id=options.get("variant", ""),
            dataset=references.resource(self._session.project, "datasets", dataset),
            inputs=options.get("inputs", {}),
            outputs=options.get("outputs", ()),
            signature=options.get("signature", ""),
            rows_per_task=options.get("rows_per_task", 0),
            batch_size=options.get("batch_size", 0),
        )
        return self._create_many(pb.Job(batch=spec), options)

    def evaluate(self, version: str, dataset: str, **options: Unpack[EvaluateOptions]) -> pb.Job:
        """Measure how right variants are over a labelled dataset, and how long a row takes; the registry keeps it.

        Args:
            version: ``digits@3``, ``digits@production`` or the full name.
            dataset: its id or full name; its format is ``npz``.
            options: see :class:`EvaluateOptions`.
        """
        spec = pb.EvaluateSpec(
            version=self._version(version),
            variants=options.get("variants", ()),
            dataset=references.resource(self._session.project, "datasets", dataset),
            inputs=options.get("inputs", {}),
            label=options.get("label", ""),
            output=options.get("output", ""),
            signature=options.get("signature", ""),
        )
        return self._create_many(pb.Job(evaluate=spec), options)

    def benchmark(
        self,
        version: str,
        *,
        variants: Sequence[str] = (),
        seconds: float = 0.0,
        dataset: str = "",
        **options: Unpack[ExecutionOptions],
    ) -> pb.Job:
        """Measure how variants run best on a worker: threads, instances, rows per call; the registry keeps it.

        Args:
            version: ``digits@3``, ``digits@production`` or the full name.
            variants: ids; empty for all.
            seconds: of each setting; default 1.
            dataset: its id or full name, whose rows are run; default: zeros.
            options: see :class:`ExecutionOptions`.
        """
        spec = pb.BenchmarkSpec(version=self._version(version), variants=variants, seconds=seconds)
        if dataset:
            spec.dataset = references.resource(self._session.project, "datasets", dataset)
        return self._create_many(pb.Job(benchmark=spec), options)

    def pause(self, job: str) -> pb.Job:
        """Give out no more tasks of a job; those that run go on."""
        return self._stub().PauseJob(pb.PauseJobRequest(name=self._name(job)), timeout=self._session.timeout)

    def resume(self, job: str) -> pb.Job:
        """Go on with a paused job."""
        return self._stub().ResumeJob(pb.ResumeJobRequest(name=self._name(job)), timeout=self._session.timeout)

    def tasks(self, job: str) -> Iterator[pb.Task]:
        """The tasks of a job by number, without their attempts."""

        def fetch(token: str) -> pb.ListTasksResponse:
            request = pb.ListTasksRequest(parent=self._name(job), page_size=1000, page_token=token)
            return self._stub().ListTasks(request, timeout=self._session.timeout)

        return pages(fetch, lambda page: page.tasks)

    def task(self, job: str, number: int) -> pb.Task:
        """A task with its attempts and their logs."""
        request = pb.GetTaskRequest(name=f"{self._name(job)}/tasks/{number}")
        return self._stub().GetTask(request, timeout=self._session.timeout)

    def results(self, job: str) -> Iterator[dict[str, npt.NDArray[np.generic]]]:
        """What a batch made: the outputs of each task by name, in the order of the dataset's rows.

        Raises:
            FailedPrecondition: a task that is not done; every task before it was given.
            DataLoss: what arrived does not match its digest.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "outputs.npz"
            for task in self.tasks(job):
                if task.state != pb.Task.STATE_SUCCEEDED:
                    word = pb.Task.State.Name(task.state).removeprefix("STATE_")
                    raise FailedPrecondition(f"{task.name} is {word}; wait for the job", reason="TASK_NOT_DONE")
                self._artifacts.download(task.output.sha256, path)
                with np.load(path, allow_pickle=False) as archive:
                    yield {name: archive[name] for name in archive.files}

    def _create_many(self, job: pb.Job, options: ExecutionOptions) -> pb.Job:
        execution = pb.Execution(
            priority=options.get("priority", 0),
            residency=options.get("residency", ()),
            max_parallel=options.get("max_parallel", 0),
            gang=options.get("gang", 0),
            max_attempts=options.get("max_attempts", 0),
            speculative=options.get("speculative", False),
        )
        if data_class := options.get("data_class", ""):
            execution.data_class = deployment_pb.DataClass.Value(f"DATA_CLASS_{data_class.upper()}")
        job.execution.CopyFrom(execution)
        return self._create(job, options.get("request_id", ""))

    def _create(self, job: pb.Job, request_id: str) -> pb.Job:
        request = pb.CreateJobRequest(parent=self._session.parent, job=job, request_id=request_id or str(uuid.uuid4()))
        return self._stub().CreateJob(request, timeout=self._session.timeout)

    def _version(self, version: str) -> str:
        """The full name of a version with its number; an alias may move while the job runs."""
        name = references.version(self._session.project, version)
        if references.last(name).isdigit():
            return name
        stub = model_service_pb2_grpc.ModelServiceStub(self._session.channel("registry"))
        return str(stub.GetVersion(model_pb.GetVersionRequest(name=name), timeout=self._session.timeout).name)

    def _name(self, job: str) -> str:
        return references.resource(self._session.project, "jobs", job)

    def _stub(self) -> job_service_pb2_grpc.JobServiceStub:
        return job_service_pb2_grpc.JobServiceStub(self._session.channel("scheduler"))
