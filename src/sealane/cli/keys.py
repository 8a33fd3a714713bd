"""``sealane keys`` and ``sealane peers``: what everything rests on, and who is let in."""

from __future__ import annotations

from pathlib import Path

import click

from sealane.cli.context import Cli, common, enum_word, print_json


@click.group()
def keys() -> None:
    """Signing keys and the intermediate certificate."""


@keys.command(name="list")
@common
def list_keys(cli: Cli) -> None:
    """List the signing keys, newest first."""
    with cli.client() as client:
        found = list(client.keys.list())
    rows = [
        (
            key.kid,
            enum_word(type(key).State.Name(key.state), "STATE_"),
            key.sign_time.ToJsonString(),
            key.withdraw_time.ToJsonString() if key.HasField("withdraw_time") else "",
        )
        for key in found
    ]
    cli.table(("KEY", "STATE", "SIGNS FROM", "WITHDRAWN"), rows, found)


@keys.command()
@common
def rotate(cli: Cli) -> None:
    """Begin a planned rotation of the signing key; no call fails."""
    with cli.client() as client:
        key = client.keys.rotate()
    cli.facts((("key", key.kid), ("signs_from", key.sign_time.ToJsonString())), key)


@keys.command()
@click.argument("kid")
@click.confirmation_option(prompt="Everything this key has signed will be refused. Go on?")
@common
def retire(cli: Cli, kid: str) -> None:
    """Revoke signing key KID at once: for an emergency."""
    with cli.client() as client:
        key = client.keys.retire(kid)
    cli.facts((("key", key.kid), ("state", enum_word(type(key).State.Name(key.state), "STATE_"))), key)


@keys.command()
@common
def sealing(cli: Cli) -> None:
    """List who could open sealed payloads now, and where auth says that they stand."""
    from sealane.security.suites import NAMES

    with cli.client() as client:
        found = list(client.keys.sealing())
    columns = ("tier", "region", "zone", "pool", "clearance")
    if cli.output == "json":
        named = [
            {"node": item.node, "key_id": item.key_id, "suite": NAMES[item.suite], **item.attributes} for item in found
        ]
        print_json(named)
        return
    rows = [(item.node, NAMES[item.suite], item.key_id, *(item.attributes[name] for name in columns)) for item in found]
    cli.table(("NODE", "SUITE", "KEY", *(name.upper() for name in columns)), rows, [])


@keys.command(name="rotate-intermediate")
@click.option("--distrust", is_flag=True, help="Refuse what the one before has signed: for an emergency.")
@common
def rotate_intermediate(cli: Cli, distrust: bool) -> None:
    """Change the certificate that signs certificates; the root's key must be in auth's folder."""
    with cli.client() as client:
        made = client.keys.rotate_intermediate(distrust=distrust)
    cli.facts((("key_id", made.key_id), ("expires", made.expire_time.ToJsonString())), made)


@click.group()
def peers() -> None:
    """Services, nodes, relays and accounts that have a certificate."""


@peers.command(name="list")
@common
def list_peers(cli: Cli) -> None:
    """List who has joined, evicted ones included."""
    with cli.client() as client:
        found = list(client.peers.list())
    rows = [
        (
            peer.spiffe_id,
            enum_word(type(peer).State.Name(peer.state), "STATE_"),
            peer.attributes.tier,
            peer.join_time.ToJsonString(),
        )
        for peer in found
    ]
    cli.table(("PEER", "STATE", "TIER", "JOINED"), rows, found)


@peers.command()
@click.argument("account")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for key and certificate.")
@common
def certificate(cli: Cli, account: str, out: Path) -> None:
    """Get a certificate for ACCOUNT, for tools that cannot send a token; again to renew it."""
    from sealane.auth.v1.enrollment_service_pb2 import Peer

    with cli.client() as client:
        made = client.peers.certificate(account, out)
    cli.facts((("peer", made.spiffe_id), ("folder", str(out))), Peer(spiffe_id=made.spiffe_id))


@peers.command()
@click.argument("relay")
@click.option("--host", multiple=True, help="Further name or address in its certificate; may be repeated.")
@common
def relay(cli: Cli, relay: str, host: tuple[str, ...]) -> None:
    """Print a secret with which RELAY enrolls, once, within an hour; nodes name it in theirs."""
    with cli.client() as client:
        made = client.join_tokens.create(relay=relay, hosts=host)
    if cli.output == "json":
        cli.facts((), made)
        return
    click.echo(made.token)


@peers.command()
@click.argument("peer")
@click.option("--cause", default="", help="Why, for the audit log.")
@common
def evict(cli: Cli, peer: str, cause: str) -> None:
    """Refuse PEER, a node or a SPIFFE id, from now on; a new join token lets it back."""
    with cli.client() as client:
        evicted = client.peers.evict(peer, cause)
    cli.facts((("peer", evicted.spiffe_id), ("evicted", evicted.evict_time.ToJsonString())), evicted)
