"""``sealane jobs``."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from sealane.cli.context import Cli, common, enum_word, note

if TYPE_CHECKING:
    from sealane.registry.v1 import variant_service_pb2 as variant_pb
    from sealane.scheduler.v1 import job_service_pb2 as pb


@click.group()
def jobs() -> None:
    """Work that ends, such as optimising a model."""


class _Optimise(TypedDict):
    calibration: str
    test: str
    max_accuracy_drop: float


@jobs.command()
@click.argument("variant")
@click.option("--calibration", required=True, metavar="FILE|SHA256", help="A .npz with x.")
@click.option("--test", required=True, metavar="FILE|SHA256", help="A .npz with x and y.")
@click.option("--max-accuracy-drop", type=float, default=0.02, show_default=True, help="Largest fall accepted.")
@click.option("--wait", is_flag=True, help="Wait until it has ended.")
@common
def optimise(cli: Cli, variant: str, wait: bool, **options: Unpack[_Optimise]) -> None:
    """Quantise VARIANT (MODEL@NUMBER/VARIANT, a SavedModel) to LiteRT int8 and prove it.

    Example: sealane jobs optimise digits@1/savedmodel --calibration train.npz --test test.npz --wait
    """
    with cli.client() as client:
        job = client.jobs.optimise(
            variant, options["calibration"], options["test"], max_accuracy_drop=options["max_accuracy_drop"]
        )
        if wait:
            note(f"{_last(job.name)} created")
            job = client.jobs.wait(job.name)
    _show(cli, job)


@jobs.command()
@click.argument("version")
@click.option("--wait", is_flag=True, help="Wait until it has ended, and show what came of each variant.")
@common
def check(cli: Cli, version: str, wait: bool) -> None:
    """Load each variant of VERSION (MODEL@NUMBER or MODEL@ALIAS) once in a worker's box.

    A variant that cannot be loaded is a result: the registry keeps it, and the job has succeeded.

    Example: sealane jobs check digits@3 --wait
    """
    with cli.client() as client:
        job = client.jobs.check(version)
        if wait:
            note(f"{_last(job.name)} created")
            job = client.jobs.wait(job.name)
    if not wait:
        _show(cli, job)
        return
    rows = [
        (item.variant_id, "loadable" if item.load_check.loadable else item.load_check.reason, _finding(item.load_check))
        for item in job.checks
    ]
    cli.table(("VARIANT", "RESULT", "DETAILS"), rows, [job])


@jobs.command()
@click.argument("job")
@common
def watch(cli: Cli, job: str) -> None:
    """Show how JOB goes until it has ended; fails if the job did."""
    with cli.client() as client:
        for seen in client.jobs.watch(job):
            note(f"{_state(seen):<11} {seen.progress:4.0%} {seen.message}")
        _show(cli, client.jobs.wait(job))


@jobs.command(name="list")
@common
def list_jobs(cli: Cli) -> None:
    """List the jobs of the project."""
    with cli.client() as client:
        found = list(client.jobs.list())
    rows = [(_last(job.name), _state(job), f"{job.progress:.0%}", _last(job.node), job.message) for job in found]
    cli.table(("JOB", "STATE", "DONE", "NODE", "MESSAGE"), rows, found)


@jobs.command()
@click.argument("job")
@common
def get(cli: Cli, job: str) -> None:
    """Show JOB."""
    with cli.client() as client:
        _show(cli, client.jobs.get(job))


@jobs.command()
@click.argument("job")
@common
def cancel(cli: Cli, job: str) -> None:
    """Cancel JOB; one that has ended stays as it is."""
    with cli.client() as client:
        _show(cli, client.jobs.cancel(job))


def _show(cli: Cli, job: pb.Job) -> None:
    measured = [
        f"{result.variant_id}: accuracy {result.measurement.accuracy:.4f}, {result.variant.size_bytes} bytes, "
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
            ("state", _state(job)),
            ("done", f"{job.progress:.0%}"),
            ("node", job.node),
            ("message", job.message),
            ("error", job.error),
            ("variants", ", ".join(job.variants)),
            ("measured", "; ".join(measured)),
            ("checked", "; ".join(checked)),
        ),
        job,
    )


def _finding(check: variant_pb.LoadCheck) -> str:
    if not check.loadable:
        return check.message
    return (
        f"{check.runtime} on {_last(check.node)}, {check.load_seconds:.2f} s, {check.memory_bytes >> 20} MiB, "
        f"sandbox {check.sandbox}"
    )


def _state(job: pb.Job) -> str:
    return enum_word(type(job).State.Name(job.state), "STATE_")


def _last(name: str) -> str:
    return name.rpartition("/")[2]
