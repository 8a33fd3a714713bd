"""``sealane nodes``."""

from __future__ import annotations

from typing import TypedDict, Unpack

import click

from sealane.cli.context import Cli, common, enum_word


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
    heads = ("NODE", "STATE", "TIER", "ZONE", "CLEARANCE", "RUNTIMES", "SANDBOX", "PRICE/H", "RTT MS", "DOWN", "UP")
    cli.table(heads, rows, found)


def _speed(bytes_per_second: float) -> str:
    """Megabytes a second; a dash where it was not measured."""
    return f"{bytes_per_second / 1e6:.1f} MB/s" if bytes_per_second else "-"


class _Place(TypedDict):
    tier: str
    zone: str
    region: str
    pool: str
    clearance: str


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
