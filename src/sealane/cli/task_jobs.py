"""``sealane jobs batch|evaluate|benchmark|pause|resume|tasks|task|results``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

import click

from sealane.cli.context import Cli, common, note
from sealane.cli.job_view import last, show, state_of

if TYPE_CHECKING:
    from sealane.client import Client
    from sealane.scheduler.v1 import job_service_pb2 as pb


class _Execution(TypedDict):
    priority: int
    data_class: str
    residency: tuple[str, ...]
    max_parallel: int
    gang: int
    max_attempts: int
    speculative: bool


class _Batch(_Execution):
    variant: str
    inputs: dict[str, str]
    outputs: tuple[str, ...]
    rows_per_task: int
    batch_size: int


class _Evaluate(_Execution):
    variants: tuple[str, ...]
    inputs: dict[str, str]
    label: str
    output: str


class _Benchmark(_Execution):
    variants: tuple[str, ...]
    seconds: float
    dataset: str


def _pairs(context: click.Context, option: click.Parameter, items: tuple[str, ...]) -> dict[str, str]:
    for item in items:
        if "=" not in item:
            raise click.BadParameter(f"{item!r} must be INPUT=ARRAY, such as image=x")
    return dict(item.split("=", 1) for item in items)


_INPUTS = click.option(
    "--input", "inputs", multiple=True, metavar="INPUT=ARRAY", callback=_pairs, help="Which array is which input."
)
F = TypeVar("F", bound=Callable[..., Any])


def executed(command: F) -> F:
    """The options of every job of many tasks."""
    for option in (
        click.option("--wait", is_flag=True, help="Wait until it has ended."),
        click.option("--speculative", is_flag=True, help="Begin slow tasks a second time elsewhere."),
        click.option("--max-attempts", type=int, default=0, help="Failures after which a task is given up; 3."),
        click.option("--gang", type=int, default=0, help="So many tasks begin together, or none."),
        click.option("--max-parallel", type=int, default=0, help="Most tasks at the same time."),
        click.option("--residency", multiple=True, metavar="ZONE", help="Where the data may be; repeat for several."),
        click.option("--data-class", type=click.Choice(["public", "internal", "restricted"]), default="internal"),
        click.option("--priority", type=int, default=0, help="The higher goes first, -100 to 100."),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("version")
@click.argument("dataset")
@click.option("--variant", default="", help="Id of the variant; the first that a worker can load.")
@_INPUTS
@click.option("--take", "outputs", multiple=True, metavar="NAME", help="An output wanted; all.")
@click.option("--rows-per-task", type=int, default=0, help="1024.")
@click.option("--batch-size", type=int, default=0, help="Rows of one run; 64.")
@executed
@common
def batch(cli: Cli, version: str, dataset: str, wait: bool, **options: Unpack[_Batch]) -> None:
    """Run VERSION (MODEL@NUMBER or MODEL@ALIAS) over all rows of DATASET.

    Example: sealane jobs batch digits@production digits-test --wait
    """
    with cli.client() as client:
        job = client.jobs.batch(version, dataset, **options)
        _end(cli, client, job, wait)


@click.command()
@click.argument("version")
@click.argument("dataset")
@click.option("--variant", "variants", multiple=True, metavar="ID", help="A variant to measure; all.")
@_INPUTS
@click.option("--label", default="", help="Array with the right answers; the dataset's label.")
@click.option("--compare", "output", default="", metavar="NAME", help="Output that is compared; the only one.")
@executed
@common
def evaluate(cli: Cli, version: str, dataset: str, wait: bool, **options: Unpack[_Evaluate]) -> None:
    """Measure how right the variants of VERSION are over labelled DATASET; the registry keeps it.

    Example: sealane jobs evaluate digits@3 digits-test --wait
    """
    with cli.client() as client:
        job = client.jobs.evaluate(version, dataset, **options)
        _end(cli, client, job, wait)


@click.command()
@click.argument("version")
@click.option("--variant", "variants", multiple=True, metavar="ID", help="A variant to measure; all.")
@click.option("--seconds", type=float, default=0.0, help="Of each setting; 1.")
@click.option("--dataset", default="", help="Dataset whose rows are run; zeros.")
@executed
@common
def benchmark(cli: Cli, version: str, wait: bool, **options: Unpack[_Benchmark]) -> None:
    """Measure how the variants of VERSION run best on a worker; the registry keeps it.

    Example: sealane jobs benchmark digits@3 --variant litert-int8 --wait
    """
    with cli.client() as client:
        job = client.jobs.benchmark(version, **options)
        _end(cli, client, job, wait)


@click.command()
@click.argument("job")
@common
def pause(cli: Cli, job: str) -> None:
    """Give out no more tasks of JOB; those that run go on."""
    with cli.client() as client:
        show(cli, client.jobs.pause(job))


@click.command()
@click.argument("job")
@common
def resume(cli: Cli, job: str) -> None:
    """Go on with JOB."""
    with cli.client() as client:
        show(cli, client.jobs.resume(job))


@click.command()
@click.argument("job")
@common
def tasks(cli: Cli, job: str) -> None:
    """List the tasks of JOB."""
    with cli.client() as client:
        found = list(client.jobs.tasks(job))
    rows = [
        (last(item.name), state_of(item), _span(item), item.variant_id, str(item.attempt), item.error) for item in found
    ]
    cli.table(("TASK", "STATE", "ROWS", "VARIANT", "ATTEMPTS", "ERROR"), rows, found)


@click.command()
@click.argument("job")
@click.argument("number", type=int)
@common
def task(cli: Cli, job: str, number: int) -> None:
    """Show the attempts at task NUMBER of JOB, and what they said."""
    with cli.client() as client:
        found = client.jobs.task(job, number)
    rows = [
        (str(item.attempt), last(item.node), state_of(item), item.error or item.log.strip()) for item in found.attempts
    ]
    cli.table(("ATTEMPT", "NODE", "STATE", "SAID"), rows, [found])


@click.command()
@click.argument("job")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@common
def results(cli: Cli, job: str, file: Path) -> None:
    """Write what batch JOB made to FILE, a .npz with an array for each output, a row for each row of the dataset.

    Example: sealane jobs results j-0123 predictions.npz
    """
    import numpy as np

    with cli.client() as client:
        parts = list(client.jobs.results(job))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    np.savez(file, **joined)  # type: ignore[arg-type]  # arrays by name
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in joined.items())
    note(f"{file}: {shapes or 'the dataset has no row'}")


def _end(cli: Cli, client: Client, job: pb.Job, wait: bool) -> None:
    if wait:
        note(f"{last(job.name)} created, {job.tasks.total} tasks")
        job = client.jobs.wait(job.name)
    show(cli, job)


def _span(item: pb.Task) -> str:
    return f"{item.first_row}-{item.first_row + item.rows - 1}" if item.rows else ""


#: Put below ``sealane jobs``.
COMMANDS = (batch, evaluate, benchmark, pause, resume, tasks, task, results)
