"""``sealane issuers``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from sealane.cli.accounts import ROLES
from sealane.cli.context import Cli, common, print_json

if TYPE_CHECKING:
    from sealane.client import Rule


class _Trust(TypedDict):
    audience: str
    claim: tuple[str, ...]
    role: tuple[str, ...]
    model_prefix: str
    jwks_uri: str
    jwks: Path | None


@click.group()
def issuers() -> None:
    """External issuers whose tokens the project takes."""


@issuers.command()
@click.argument("name")
@click.argument("issuer")
@click.option("--audience", required=True, help="Audience that its tokens must name.")
@click.option(
    "--claim",
    multiple=True,
    required=True,
    metavar="NAME=PATTERN",
    help="Claim that must fit: * stands for anything but /, a final ** for any rest; may be repeated, all must fit.",
)
@click.option(
    "--role",
    multiple=True,
    required=True,
    type=click.Choice([role for role in ROLES if role != "admin"]),
    help="Role that such tokens get; may be repeated.",
)
@click.option("--model-prefix", default="", help="Only for models whose ids begin so.")
@click.option("--jwks-uri", default="", help="Where its keys are; default: its discovery document tells.")
@click.option(
    "--jwks",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with its key set, for an issuer that auth cannot reach.",
)
@common
def trust(cli: Cli, name: str, issuer: str, **options: Unpack[_Trust]) -> None:
    """Trust ISSUER, an https URL, under the id NAME. The SDK can give more than one rule.

    Example: sealane issuers trust github https://token.actions.githubusercontent.com --audience sealane
    --claim 'sub=repo:acme/digits:ref:refs/heads/main' --role publisher --model-prefix digits-
    """
    with cli.client() as client:
        made = client.issuers.trust(
            name,
            issuer,
            audience=options["audience"],
            rules=[_rule(options)],
            keys=options["jwks"].read_text() if options["jwks"] is not None else options["jwks_uri"],
        )
    cli.facts((("trusted", made.name), ("issuer", made.issuer), ("audience", made.audience)), made)


@issuers.command(name="list")
@common
def list_issuers(cli: Cli) -> None:
    """List the trusted issuers of the project."""
    with cli.client() as client:
        found = list(client.issuers.list())
    rows = [
        (
            each.name.rpartition("/")[2],
            each.issuer,
            each.audience,
            "; ".join(
                f"{' and '.join(f'{name}={text}' for name, text in rule.claims.items())} -> {' '.join(rule.roles)}"
                for rule in each.rules
            ),
        )
        for each in found
    ]
    cli.table(("NAME", "ISSUER", "AUDIENCE", "RULES"), rows, found)


@issuers.command()
@click.argument("name")
@common
def distrust(cli: Cli, name: str) -> None:
    """End the trust NAME; tokens that were exchanged are revoked."""
    with cli.client() as client:
        client.issuers.distrust(name)
    if cli.output == "json":
        print_json({"distrusted": name})
    else:
        click.echo(f"distrusted {name}")


def _rule(options: _Trust) -> Rule:
    from sealane.client import Rule

    claims = {}
    for text in options["claim"]:
        name, equals, pattern = text.partition("=")
        if not (name and equals and pattern):
            raise click.BadParameter(f"{text!r} is no NAME=PATTERN", param_hint="--claim")
        if name in claims:
            raise click.BadParameter(f"claim {name} is named twice", param_hint="--claim")
        claims[name] = pattern
    return Rule(claims, options["role"], options["model_prefix"])
