"""``sealane nodes``, ``sealane accounts`` and ``sealane token``."""

from __future__ import annotations

from typing import TypedDict, Unpack

import click

from sealane.cli.context import Cli, common, enum_word, print_json

_AUDIENCES = ["sealane-auth", "sealane-registry", "sealane-scheduler", "sealane-inference"]


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
        )
        for node in found
    ]
    cli.table(("NODE", "STATE", "TIER", "ZONE", "CLEARANCE", "RUNTIMES", "SANDBOX", "PRICE/H", "RTT MS"), rows, found)


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
@common
def join_token(cli: Cli, node: str, host: tuple[str, ...], **place: Unpack[_Place]) -> None:
    """Print a secret with which worker NODE enrolls, once, within an hour."""
    from sealane.client import NodePlace

    with cli.client() as client:
        made = client.join_tokens.create(node=node, place=NodePlace(**place), hosts=host)
    if cli.output == "json":
        cli.facts((), made)
        return
    click.echo(made.token)


@click.group()
def accounts() -> None:
    """Who may call."""


@accounts.command()
@click.argument("account")
@click.option("--scope", multiple=True, required=True, help="Scope it may ask for, such as infer; may be repeated.")
@common
def create(cli: Cli, account: str, scope: tuple[str, ...]) -> None:
    """Create ACCOUNT; its secret is printed once, here."""
    with cli.client() as client:
        made = client.accounts.create(account, scope)
    cli.facts(
        (
            ("account", made.name),
            ("client_id", made.client_id),
            ("client_secret", made.client_secret),
            ("scopes", " ".join(made.scopes)),
        ),
        made,
    )


@accounts.command(name="list")
@common
def list_accounts(cli: Cli) -> None:
    """List the accounts of the project, without secrets."""
    with cli.client() as client:
        found = list(client.accounts.list())
    rows = [(account.name.rpartition("/")[2], account.client_id, " ".join(account.scopes)) for account in found]
    cli.table(("ACCOUNT", "CLIENT ID", "SCOPES"), rows, found)


@click.command()
@click.option("--audience", type=click.Choice(_AUDIENCES), default="sealane-inference", show_default=True)
@common
def token(cli: Cli, audience: str) -> None:
    """Print a bearer token for other tools; it lives five minutes.

    Example: grpcurl -H "authorization: Bearer $(sealane token)" ...
    """
    with cli.client() as client:
        text = client.token(audience)
    if cli.output == "json":
        print_json({"access_token": text, "audience": audience, "token_type": "Bearer"})
        return
    click.echo(text)
