"""Options that say what a deployment needs and wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict, TypeVar, cast

import click

if TYPE_CHECKING:
    from sealane.client.demand import DemandFields

C = TypeVar("C", bound=Callable[..., None])
_MIB = 1 << 20


class Demand(TypedDict):
    """The options as click hands them over; None where one was not given."""

    data_class: str | None
    residency: tuple[str, ...]
    tier: str | None
    objective: str | None
    latency_ms: float | None
    min_accuracy: float | None
    max_price: float | None
    replicas: int | None
    pinned: bool
    fmt: tuple[str, ...]
    precision: tuple[str, ...]
    memory_mib: float | None
    cpu_milli: int | None
    accelerator: str | None
    request_bytes: int | None
    response_bytes: int | None
    origin: str | None
    rate: float | None
    priority: int | None
    spread: str | None
    near: tuple[str, ...]
    preemptible: bool
    gang: bool
    weight: tuple[str, ...]


def demands(command: C) -> C:
    """Adds the options to a command."""
    for option in (
        click.option("--format", "fmt", multiple=True, help="Format allowed, such as litert or onnx; may be repeated."),
        click.option("--precision", multiple=True, help="Precision allowed, such as int8; may be repeated."),
        click.option("--pinned", is_flag=True, help="Keep it in memory however long nobody calls it."),
        click.option("--weight", multiple=True, metavar="TERM=FACTOR", help="Factor of a term of the score."),
        click.option("--gang", is_flag=True, help="Place its copies all at once or not at all."),
        click.option("--near", multiple=True, metavar="DEPLOYMENT", help="Rather beside this one; may be repeated."),
        click.option("--preemptible", is_flag=True, help="May give its place to a deployment of higher priority."),
        click.option("--spread", type=click.Choice(["node", "zone"]), help="What its copies may not share."),
        click.option("--priority", type=int, help="Who is placed first where several wait: the higher."),
        click.option("--replicas", type=int, help="Copies."),
        click.option("--response-bytes", type=int, help="Bytes of one answer."),
        click.option("--request-bytes", type=int, help="Bytes of one request."),
        click.option("--rate", type=float, help="Expected calls per second."),
        click.option("--origin", metavar="ZONE", help="Zone that its callers are in."),
        click.option("--accelerator", help="Accelerator class needed."),
        click.option("--cpu-milli", type=int, help="Thousandths of a core."),
        click.option("--memory-mib", type=float, help="Memory in MiB on top of the model's own size."),
        click.option("--max-price", type=float, help="Highest price of a node per hour."),
        click.option("--min-accuracy", type=float, help="Least measured accuracy, 0 to 1."),
        click.option("--latency-ms", type=float, help="99th percentile as the caller sees it."),
        click.option(
            "--objective",
            type=click.Choice(["balanced", "latency", "cost", "green", "accuracy"]),
            help="What weighs most.",
        ),
        click.option("--tier", type=click.Choice(["cloud", "edge"]), help="Where it would rather run."),
        click.option("--residency", multiple=True, metavar="ZONE", help="Zone the data must stay in; may be repeated."),
        click.option(
            "--data-class", type=click.Choice(["public", "internal", "restricted"]), help="Class of its data."
        ),
    ):
        command = option(command)
    return command


def fields(options: Demand) -> DemandFields:
    """The options as the client takes them."""
    found: DemandFields = {
        "residency": options["residency"],
        "formats": options["fmt"],
        "precisions": options["precision"],
        "pinned": options["pinned"],
        "preemptible": options["preemptible"],
        "affinity": options["near"],
        "gang": options["gang"],
        "weights": dict(map(_weight, options["weight"])),
    }
    given = {name: value for name, value in options.items() if value is not None and name in _SAME}
    if options["max_price"] is not None:
        found["max_price_per_hour"] = options["max_price"]
    if options["memory_mib"] is not None:
        found["memory_bytes"] = round(options["memory_mib"] * _MIB)
    return cast("DemandFields", {**found, **given})


#: Options that are called as the client calls them.
_SAME = frozenset(
    ("data_class", "tier", "objective", "latency_ms", "min_accuracy", "replicas", "cpu_milli", "accelerator")
) | frozenset(("request_bytes", "response_bytes", "origin", "rate", "priority", "spread"))


def _weight(text: str) -> tuple[str, float]:
    name, _, factor = text.partition("=")
    try:
        return name, float(factor)
    except ValueError as error:
        raise click.ClickException(f"--weight {text!r} is not TERM=FACTOR, such as energy=100") from error
