"""``sealane login``, ``sealane logout``, ``sealane token`` and ``sealane revoke``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

import click

from sealane.cli.context import Cli, as_dict, common, note, print_json

_AUDIENCES = ["sealane-auth", "sealane-registry", "sealane-scheduler", "sealane-inference"]


@click.command()
@click.argument("client_id")
@click.option("--passphrase-file", type=click.File(), help="Reads the passphrase from a file, - for standard input.")
@common
def login(cli: Cli, client_id: str, passphrase_file: IO[str] | None) -> None:
    """Log in as CLIENT_ID (account@project) with a passphrase; later commands act as that person.

    The passphrase is not kept. A refresh token is, in login.json of the data directory, readable by you alone; it
    lasts 30 days from its last use, 90 at most.
    """
    from sealane.client import StaticToken, connect

    if passphrase_file is not None:
        passphrase = passphrase_file.read().rstrip("\r\n")
    else:
        passphrase = click.prompt("Passphrase", hide_input=True, err=True)
    with connect(cli.data or None, credentials=StaticToken({})) as client:
        client.log_in(_file(cli), client_id, passphrase)
    _tell(cli, {"client_id": client_id, "project": client_id.rpartition("@")[2]}, f"logged in as {client_id}")


@click.command()
@common
def logout(cli: Cli) -> None:
    """End the session of sealane login: its refresh token and its access tokens are revoked."""
    from sealane.client import StaticToken, connect

    with connect(cli.data or None, credentials=StaticToken({})) as client:
        client.log_out(_file(cli))
    _tell(cli, {"logged_out": True}, "logged out")


@click.command()
@click.option("--audience", type=click.Choice(_AUDIENCES), default="sealane-inference", show_default=True)
@click.option("--scope", multiple=True, help="Only this scope of those that are held; may be repeated.")
@click.option("--model-prefix", multiple=True, help="Only for models whose ids begin so; may be repeated.")
@click.option("--lifetime", type=int, default=0, help="Seconds that it lives; default: as long as is allowed.")
@common
def token(cli: Cli, audience: str, scope: tuple[str, ...], model_prefix: tuple[str, ...], lifetime: int) -> None:
    """Print a bearer token for other tools; it lives five minutes.

    Example: grpcurl -H "authorization: Bearer $(sealane token --scope infer)" ...
    """
    with cli.client() as client:
        if scope or model_prefix or lifetime:
            issued = client.access_tokens.narrow(
                audience, scope=" ".join(scope), model_prefixes=model_prefix, lifetime_seconds=lifetime
            )
            text, granted = issued.access_token, {"scope": issued.scope, "expires_in": issued.expires_in}
        else:
            text, granted = client.token(audience), {}
    if cli.output == "json":
        print_json({"access_token": text, "audience": audience, "token_type": "Bearer", **granted})
        return
    click.echo(text)


@click.command()
@click.option("--account", default="", help="Every token, access and refresh, that this account has now.")
@click.option("--subject", default="", help="The same for a subject by its resource name, such as a federated one.")
@click.option("--token-id", default="", help="One token, by the id (jti) that stands in logs.")
@common
def revoke(cli: Cli, account: str, subject: str, token_id: str) -> None:
    """Take tokens back; connected services refuse them within a minute."""
    if sum(map(bool, (account, subject, token_id))) != 1:
        raise click.UsageError("name one of --account, --subject and --token-id")
    with cli.client() as client:
        if token_id:
            client.access_tokens.revoke_id(token_id)
            _tell(cli, {"revoked": token_id}, f"revoked token {token_id}")
            return
        epoch = client.access_tokens.revoke_subject(account or subject)
    _tell(cli, {"revoked": account or subject, "epoch": epoch}, f"revoked every token of {account or subject}")


@click.command()
@click.argument("text", metavar="TOKEN")
@common
def introspect(cli: Cli, text: str) -> None:
    """Say whether TOKEN of the project is good now, and what it says."""
    with cli.client() as client:
        found = client.access_tokens.introspect(text)
    if not found.active:
        note("the token is not good: expired, revoked, malformed or another project's")
    cli.facts([(name, value) for name, value in as_dict(found).items()], found)


def _file(cli: Cli) -> Path:
    from sealane.client.logins import LOGIN

    return Path(cli.data or os.environ.get("SEALANE_HOME", "")) / LOGIN


def _tell(cli: Cli, facts: dict[str, object], sentence: str) -> None:
    if cli.output == "json":
        print_json(facts)
    else:
        click.echo(sentence)
