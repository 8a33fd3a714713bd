"""``sealane nodes``."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from sealane.cli.context import Cli, common, enum_word
from sealane.cli.durations import Duration

if TYPE_CHECKING:
    from sealane.scheduler.v1 import node_service_pb2 as pb


@click.group()
def nodes() -> None:
    """The workers."""


@nodes.command(name="list")
@common
def list_nodes(cli: Cli) -> None:
    """List the workers."""
    with cli.client() as client:
        found = list(client.nodes.list())
    rows = [
        (
            node.name.rpartition("/")[2],
            enum_word(type(node).State.Name(node.state), "STATE_"),
            _admission(node),
            node.held_copies,
            node.held_tasks,
            node.attributes.tier,
            node.attributes.zone,
            node.attributes.clearance,
            " ".join(runtime.name for runtime in node.runtimes),
            node.labels.get("sandbox", "none"),
            f"{node.price_per_hour:g}",
            f"{node.rtt_ms:.1f}",
            _speed(node.link.down_bytes_per_second),
            _speed(node.link.up_bytes_per_second),
        )
        for node in found
    ]
    columns = ("NODE", "STATE", "ADMISSION", "COPIES", "TASKS", "TIER", "ZONE", "CLEARANCE", "RUNTIMES", "SANDBOX")
    cli.table((*columns, "PRICE/H", "RTT MS", "DOWN", "UP"), rows, found)


def _speed(bytes_per_second: float) -> str:
    """Megabytes a second; a dash where it was not measured."""
    return f"{bytes_per_second / 1e6:.1f} MB/s" if bytes_per_second else "-"


@nodes.command()
@click.argument("node")
@common
def get(cli: Cli, node: str) -> None:
    """Show worker NODE and what it holds."""
    with cli.client() as client:
        _show(cli, client.nodes.get(node))


@nodes.command()
@click.argument("node")
@common
def cordon(cli: Cli, node: str) -> None:
    """Have worker NODE take nothing new; what is there stays. Ends a drain."""
    with cli.client() as client:
        _show(cli, client.nodes.cordon(node))


@nodes.command()
@click.argument("node")
@common
def uncordon(cli: Cli, node: str) -> None:
    """Have worker NODE take new work again."""
    with cli.client() as client:
        _show(cli, client.nodes.uncordon(node))


@nodes.command()
@click.argument("node")
@click.option("--deadline", type=Duration(), default=None, help="What is left then goes anyway, such as 5m.")
@click.option("--wait", is_flag=True, help="Return once nothing is left.")
@click.option("--timeout", type=Duration(), default="10m", show_default=True, help="How long to wait.")
@common
def drain(cli: Cli, node: str, deadline: float | None, wait: bool, timeout: float) -> None:
    """Empty worker NODE: copies are placed elsewhere first and go once the others serve, tasks may end."""
    with cli.client() as client:
        found = client.nodes.drain(node, deadline)
        if wait:
            found = client.nodes.wait_drained(node, timeout)
        _show(cli, found)


def _show(cli: Cli, node: pb.Node) -> None:
    waits = [f"{copy.deployment or 'of another project'}: {copy.message}" for copy in node.copies if copy.message]
    until = node.drain_deadline_time.ToJsonString() if node.HasField("drain_deadline_time") else ""
    cli.facts(
        (
            ("node", node.name),
            ("state", enum_word(type(node).State.Name(node.state), "STATE_")),
            ("admission", _admission(node)),
            ("until", until),
            ("copies", node.held_copies),
            ("tasks", node.held_tasks),
            ("tier", node.attributes.tier),
            ("zone", node.attributes.zone),
            ("because", node.message),
            *(("waits", text) for text in waits),
        ),
        node,
    )


def _admission(node: pb.Node) -> str:
    return enum_word(type(node).Admission.Name(node.admission), "ADMISSION_")


class _Place(TypedDict):
    tier: str
    zone: str
    region: str
    pool: str
    clearance: str
    relay: str


@nodes.command(name="join-token")
@click.argument("node")
@click.option("--tier", type=click.Choice(["cloud", "edge"]), required=True, help="Where it stands.")
@click.option("--zone", default="", help="Failure and residency zone.")
@click.option("--region", default="", help="Region.")
@click.option("--pool", default="", help="Pool.")
@click.option(
    "--clearance",
    type=click.Choice(["public", "internal", "restricted"]),
    default="internal",
    show_default=True,
    help="Highest data class it may see.",
)
@click.option("--relay", default="", help="Relay that may carry its stream to the scheduler.")
@click.option("--host", multiple=True, help="Further name or address in its certificate; may be repeated.")
@click.option("--offline-days", type=float, default=0.0, help="Days for which it may serve its site without auth.")
@click.option("--site-account", multiple=True, help="Account that may call it then, by resource name; may be repeated.")
@common
def join_token(
    cli: Cli,
    node: str,
    host: tuple[str, ...],
    offline_days: float,
    site_account: tuple[str, ...],
    **place: Unpack[_Place],
) -> None:
    """Print a secret with which worker NODE enrolls, once, within an hour."""
    from sealane.client import NodePlace
    from sealane.client.operations import OfflineTime

    offline = OfflineTime(offline_days * 86_400.0, site_account) if offline_days or site_account else None
    with cli.client() as client:
        made = client.join_tokens.create(node=node, place=NodePlace(**place), hosts=host, offline=offline)
    if cli.output == "json":
        cli.facts((), made)
        return
    click.echo(made.token)
