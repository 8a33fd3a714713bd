"""How the command shows a job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sealane.cli.context import Cli, enum_word

if TYPE_CHECKING:
    from sealane.scheduler.v1 import job_service_pb2 as pb


def show(cli: Cli, job: pb.Job) -> None:
    """Show all of a job."""
    measured = [
        f"{result.variant_id}: accuracy {result.measurement.accuracy:.4f}, "
        f"{f'{result.variant.size_bytes} bytes, ' if result.variant.size_bytes else ''}"
        f"p50 {result.measurement.latency_p50_us:.0f} us, p99 {result.measurement.latency_p99_us:.0f} us"
        for result in job.results
    ]
    checked = [
        f"{item.variant_id}: {'loadable' if item.load_check.loadable else item.load_check.message}"
        for item in job.checks
    ]
    cli.facts(
        (
            ("job", job.name),
            ("state", state_of(job)),
            ("done", f"{job.progress:.0%}"),
            ("node", job.node),
            ("tasks", _counts(job)),
            ("ends", _time(job)),
            ("message", job.message),
            ("error", job.error),
            ("variants", ", ".join(job.variants)),
            ("measured", "; ".join(measured)),
            ("checked", "; ".join(checked)),
        ),
        job,
    )


def state_of(item: pb.Job | pb.Task | pb.Attempt) -> str:
    """A state as a word."""
    return enum_word(type(item).State.Name(item.state), "STATE_")  # type: ignore[arg-type]  # each has its own State


def last(name: str) -> str:
    """The last part of a resource name."""
    return name.rpartition("/")[2]


def _counts(job: pb.Job) -> str:
    counts = job.tasks
    if not counts.total:
        return ""
    return (
        f"{counts.succeeded} of {counts.total} done, {counts.running} run, {counts.pending} wait, "
        f"{counts.failed} failed"
    )


def _time(job: pb.Job) -> str:
    if not job.HasField("estimated_end_time"):
        return ""
    return f"about {job.estimated_end_time.ToDatetime():%Y-%m-%d %H:%M:%S} UTC"
