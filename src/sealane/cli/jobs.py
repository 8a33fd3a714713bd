"""``sealane jobs``."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from sealane.cli.context import Cli, common, note
from sealane.cli.job_view import last, show, state_of
from sealane.cli.task_jobs import COMMANDS

if TYPE_CHECKING:
    from sealane.registry.v1 import variant_service_pb2 as variant_pb


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
            note(f"{last(job.name)} created")
            job = client.jobs.wait(job.name)
    show(cli, job)


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
            note(f"{last(job.name)} created")
            job = client.jobs.wait(job.name)
    if not wait:
        show(cli, job)
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
            note(f"{state_of(seen):<11} {seen.progress:4.0%} {seen.message}")
        show(cli, client.jobs.wait(job))


@jobs.command(name="list")
@common
def list_jobs(cli: Cli) -> None:
    """List the jobs of the project."""
    with cli.client() as client:
        found = list(client.jobs.list())
    rows = [(last(job.name), state_of(job), f"{job.progress:.0%}", last(job.node), job.message) for job in found]
    cli.table(("JOB", "STATE", "DONE", "NODE", "MESSAGE"), rows, found)


@jobs.command()
@click.argument("job")
@common
def get(cli: Cli, job: str) -> None:
    """Show JOB."""
    with cli.client() as client:
        show(cli, client.jobs.get(job))


@jobs.command()
@click.argument("job")
@common
def cancel(cli: Cli, job: str) -> None:
    """Cancel JOB; one that has ended stays as it is."""
    with cli.client() as client:
        show(cli, client.jobs.cancel(job))


def _finding(check: variant_pb.LoadCheck) -> str:
    if not check.loadable:
        return check.message
    return (
        f"{check.runtime} on {last(check.node)}, {check.load_seconds:.2f} s, {check.memory_bytes >> 20} MiB, "
        f"sandbox {check.sandbox}"
    )


for _command in COMMANDS:
    jobs.add_command(_command)
