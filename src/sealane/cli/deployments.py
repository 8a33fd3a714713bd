"""``sealane deployments``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, BinaryIO, Unpack, cast

import click

from sealane.cli.context import Cli, common, enum_word, note
from sealane.cli.decisions import explain, plan
from sealane.cli.demands import Demand, demands, fields

if TYPE_CHECKING:
    from sealane.client.deployments import Placeable
    from sealane.ensembles import Step
    from sealane.scheduler.v1 import deployment_service_pb2 as pb


@click.group()
def deployments() -> None:
    """Keep models serving, and see why they run where they do."""


@deployments.command()
@click.argument("deployment")
@click.argument("version")
@demands
@click.option("--wait", type=float, default=0.0, metavar="SECONDS", help="Wait until it serves.")
@common
def create(cli: Cli, deployment: str, version: str, wait: float, **options: Unpack[Demand]) -> None:
    """Keep VERSION (MODEL@NUMBER or MODEL@ALIAS) serving as DEPLOYMENT.

    Example: sealane deployments create camera digits@production --tier edge --wait 60
    """
    with cli.client() as client:
        found = client.deployments.create(deployment, version, **fields(options))
        if wait:
            found = client.deployments.wait(found.name, wait, lambda seen: note(f"{deployment}: {_state(seen)}"))
    _show(cli, found)


@deployments.command(name="list")
@common
def list_deployments(cli: Cli) -> None:
    """List the deployments of the project."""
    with cli.client() as client:
        found = list(client.deployments.list())
    rows = [(_last(item.name), _model(item), _state(item), _where(item)) for item in found]
    cli.table(("DEPLOYMENT", "VERSION", "STATE", "RUNS ON"), rows, found)


@deployments.command()
@click.argument("deployment")
@click.argument("file", type=click.File("rb"))
@click.option("--wait", type=float, default=0.0, metavar="SECONDS", help="Wait until it serves.")
@common
def chain(cli: Cli, deployment: str, file: BinaryIO, wait: float) -> None:
    """Chain deployments as DEPLOYMENT, as the JSON FILE says.

    FILE holds {"steps": [{"deployment": ID, "inputs": {INPUT: TENSOR}, "outputs": {OUTPUT: TENSOR}}], "outputs":
    [TENSOR]}: each input of a step's model takes a tensor that another step gives, or that callers send.
    """
    steps, outputs = _chain(file.read())
    with cli.client() as client:
        made = client.deployments.create_chain(deployment, steps, outputs)
        if wait:
            made = client.deployments.wait(deployment, wait)
    _show(cli, made)


@deployments.command()
@click.argument("file", type=click.File("rb"))
@click.option("--gang", is_flag=True, help="Place all of them whole, or create nothing.")
@common
def place(cli: Cli, file: BinaryIO, gang: bool) -> None:
    """Create and place up to 64 deployments at once, as the JSON FILE says.

    FILE holds [{"deployment": ID, "version": MODEL@VERSION, "demand": {"tier": "edge", "replicas": 2}}]: demands are
    named as in the Python SDK, see 'sealane deployments create --help'. Where they want the same room, they are placed
    so that all of them together cost least.
    """
    items = _placeable(file.read())
    with cli.client() as client:
        placed = client.deployments.place(items, gang=gang)
    rows = [
        (
            _last(item.deployment),
            ", ".join(f"{_last(copy.node)} ({copy.variant})" for copy in item.copies),
            item.binding_constraint,
            item.reason,
        )
        for item in placed
    ]
    cli.table(("DEPLOYMENT", "GOES TO", "HELD BACK BY", "BECAUSE"), rows, placed)


@deployments.command()
@click.argument("deployment")
@common
def get(cli: Cli, deployment: str) -> None:
    """Show DEPLOYMENT: state, place, the last decision."""
    with cli.client() as client:
        _show(cli, client.deployments.get(deployment))


@deployments.command()
@click.argument("deployment")
@common
def delete(cli: Cli, deployment: str) -> None:
    """Delete DEPLOYMENT; its copies stop."""
    with cli.client() as client:
        client.deployments.delete(deployment)
    note(f"{deployment} deleted")


deployments.add_command(explain)
deployments.add_command(plan)


def _show(cli: Cli, found: pb.Deployment) -> None:
    cli.facts(
        (
            ("deployment", found.name),
            ("version", found.model_version),
            ("chain of", ", ".join(step.deployment for step in found.ensemble.steps)),
            ("state", _state(found)),
            ("runs on", _where(found)),
            ("in memory", "; ".join(filter(None, map(_memory, found.placements)))),
            ("held back by", found.decision.binding_constraint),
            ("because", "; ".join(found.decision.reasons)),
        ),
        found,
    )


def _chain(content: bytes) -> tuple[list[Step], list[str]]:
    """Steps and outputs of a chain's JSON file."""
    from google.protobuf import json_format

    from sealane import ensemble_messages
    from sealane.scheduler.v1 import deployment_service_pb2 as pb

    try:
        message = json_format.Parse(content, pb.Ensemble())
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise click.ClickException(f"the file is no chain: {str(error).splitlines()[0]}; see --help") from error
    chain = ensemble_messages.chain_of(message)
    return list(chain.steps), list(chain.outputs)


def _placeable(content: bytes) -> list[Placeable]:
    """Deployments of a JSON file."""
    from sealane.client.demand import DemandFields
    from sealane.client.deployments import Placeable

    try:
        found = [
            Placeable(str(item["deployment"]), str(item["version"]), cast("DemandFields", dict(item.get("demand", {}))))
            for item in json.loads(content)
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise click.ClickException(f"the file is no list of deployments: {error!r}; see --help") from error
    known = DemandFields.__annotations__
    if unknown := sorted({name for item in found for name in item.demands if name not in known}):
        raise click.ClickException(f"demand {unknown[0]!r} is unknown; use some of {sorted(known)}")
    return found


def _memory(placement: pb.Placement) -> str:
    if placement.state != type(placement).STATE_SERVING:
        return ""  # before it serves, and after, its node says nothing of memory: zeros would read as facts
    held = f"{placement.memory_bytes / (1 << 20):.0f} MiB" if placement.resident else "loaded by the next call"
    sizes = ", ".join(map(str, placement.warmed_batch_sizes))
    warmed = [f"{placement.warmed_requests} recorded requests"] if placement.warmed_requests else []
    warmed += [f"rows of {sizes}"] if sizes else []
    return f"{held}, warmed by {' and '.join(warmed) or 'nothing'}"


def _state(found: pb.Deployment) -> str:
    return enum_word(type(found).State.Name(found.state), "STATE_")


def _where(found: pb.Deployment) -> str:
    return ", ".join(f"{_last(place.node)} ({_last(place.variant)})" for place in found.placements)


def _model(found: pb.Deployment) -> str:
    if found.HasField("ensemble"):
        return f"chain of {len(found.ensemble.steps)}"
    parts = found.model_version.split("/")
    return f"{parts[3]}@{parts[5]}" if len(parts) > 5 else found.model_version


def _last(name: str) -> str:
    return name.rpartition("/")[2]
