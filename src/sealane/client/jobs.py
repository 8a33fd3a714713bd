"""Jobs: work that ends."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sealane.client import references
from sealane.client.artifacts import Artifacts
from sealane.client.paging import pages
from sealane.client.session import Session
from sealane.client.task_jobs import TaskJobs
from sealane.errors import DeadlineExceeded, FailedPrecondition, Unauthenticated, Unavailable
from sealane.scheduler.v1 import job_service_pb2 as pb

ENDED = frozenset(
    {
        pb.Job.STATE_SUCCEEDED,
        pb.Job.STATE_FAILED,
        pb.Job.STATE_CANCELLED,
        pb.Job.STATE_ABANDONED,
    }
)
_AWAY_SECONDS = 60.0
#: A new token that is refused again within this time is no token that has ended.
_RENEW_SECONDS = 5.0
_SHA256_DIGITS = 64


class Jobs(TaskJobs):
    """The jobs of the project."""

    def __init__(self, session: Session, artifacts: Artifacts) -> None:
        self._session = session
        self._artifacts = artifacts

    def optimise(
        self,
        source_variant: str,
        calibration: Path | str,
        test: Path | str,
        *,
        max_accuracy_drop: float = 0.02,
        request_id: str = "",
    ) -> pb.Job:
        """Quantise a SavedModel to LiteRT int8 and prove it against a test set.

        Args:
            source_variant: ``digits@3/savedmodel`` or the full name.
            calibration: a ``.npz`` with `x`, or the SHA-256 of one that was uploaded.
            test: a ``.npz`` with `x` and `y`, or the SHA-256 of one that was uploaded.
            max_accuracy_drop: largest fall of accuracy that is accepted, 0 to 1.
            request_id: UUID that makes a repeat safe across processes; default: a new one.
        """
        optimise = pb.OptimiseSpec(
            source_variant=references.variant(self._session.project, source_variant),
            calibration_sha256=self._digest(calibration),
            test_sha256=self._digest(test),
            max_accuracy_drop=max_accuracy_drop,
        )
        return self._create(pb.Job(optimise=optimise), request_id)

    def check(self, version: str, *, variants: Sequence[str] = (), request_id: str = "") -> pb.Job:
        """Load each variant of a version once in a worker's box; the registry keeps what came of it.

        The job succeeds whatever is found: its `checks` say which variants can be loaded, and why the others cannot.

        Args:
            version: ``digits@3``, ``digits@production`` or the full name.
            variants: ids of variants; empty for all.
            request_id: UUID that makes a repeat safe across processes; default: a new one.
        """
        check = pb.CheckSpec(version=self._version(version), variants=variants)
        return self._create(pb.Job(check=check), request_id)

    def get(self, job: str) -> pb.Job:
        """A job by its id or full name."""
        return self._stub().GetJob(pb.GetJobRequest(name=self._name(job)), timeout=self._session.timeout)

    def list(self) -> Iterator[pb.Job]:
        """All jobs, by name."""

        def fetch(token: str) -> pb.ListJobsResponse:
            request = pb.ListJobsRequest(parent=self._session.parent, page_token=token)
            return self._stub().ListJobs(request, timeout=self._session.timeout)

        return pages(fetch, lambda page: page.jobs)

    def cancel(self, job: str) -> pb.Job:
        """Cancel a job; one that has ended is returned as it is."""
        return self._stub().CancelJob(pb.CancelJobRequest(name=self._name(job)), timeout=self._session.timeout)

    def watch(self, job: str, timeout: float | None = None) -> Iterator[pb.Job]:
        """The job now and after every change, until it has ended; survives a restart of the scheduler.

        Args:
            job: its id or full name.
            timeout: seconds after which to give up; None never does.

        Raises:
            DeadlineExceeded: the job has not ended in `timeout`.
            Unavailable: the scheduler stayed out of reach for a minute.
        """
        name, etag = self._name(job), ""
        deadline = None if timeout is None else time.monotonic() + timeout
        alive, renewed = time.monotonic(), float("-inf")
        while True:
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                raise DeadlineExceeded(f"{name} has not ended in {timeout:g} s; watch it again", reason="STILL_RUNNING")
            try:
                for state in self._stub().WatchJob(pb.WatchJobRequest(name=name), timeout=remaining):
                    alive = time.monotonic()
                    if state.etag != etag:
                        etag = state.etag
                        yield state
                    if state.state in ENDED:
                        return
            except Unavailable:
                if time.monotonic() - alive > _AWAY_SECONDS:
                    raise
            except Unauthenticated as error:  # a stream ends with its token
                if not self._session.tokens.refused(error) or time.monotonic() - renewed < _RENEW_SECONDS:
                    raise
                renewed = time.monotonic()
            except DeadlineExceeded:
                if deadline is None:
                    raise
            time.sleep(random.uniform(0.05, 0.5))  # noqa: S311  # jitter is no secret

    def wait(self, job: str, timeout: float | None = None) -> pb.Job:
        """Wait until a job has succeeded.

        Raises:
            FailedPrecondition: it failed, was cancelled or was given up; the message is the job's error.
            DeadlineExceeded: it has not ended in `timeout` seconds.
        """
        ended = pb.Job()
        for state in self.watch(job, timeout):
            ended = state
        if ended.state != pb.Job.STATE_SUCCEEDED:
            word = pb.Job.State.Name(ended.state).removeprefix("STATE_")
            cause = ended.error or ended.message or "see its history"
            raise FailedPrecondition(f"{ended.name} ended {word}: {cause}", reason=f"JOB_{word}", job=ended.name)
        return ended

    def _digest(self, content: Path | str) -> str:
        text = str(content)
        if len(text) == _SHA256_DIGITS and not set(text) - set("0123456789abcdef"):
            return text
        return self._artifacts.upload(content)
