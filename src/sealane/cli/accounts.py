"""``sealane accounts``, ``sealane roles`` and ``sealane projects``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from sealane.cli.context import Cli, common, print_json

if TYPE_CHECKING:
    from sealane.auth.v1 import identity_service_pb2 as pb
    from sealane.client import NewCredential

ROLES = ["viewer", "invoker", "publisher", "deployer", "operator", "auditor", "admin"]
#: Asks for a passphrase twice, without showing it.
ASK = click.option("--passphrase", is_flag=True, help="A person's: asks for a passphrase instead of making a secret.")
KEY = click.option(
    "--public-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the public JWK of a client that signs, instead of a secret.",
)


class _Create(TypedDict):
    role: tuple[str, ...]
    scope: tuple[str, ...]
    passphrase: bool
    public_key: Path | None


@click.group()
def accounts() -> None:
    """Who may call."""


@accounts.command()
@click.argument("account")
@click.option("--role", multiple=True, type=click.Choice(ROLES), help="Role in the whole project; may be repeated.")
@click.option("--scope", multiple=True, help="Scope given directly, such as infer; may be repeated.")
@ASK
@KEY
@common
def create(cli: Cli, account: str, **options: Unpack[_Create]) -> None:
    """Create ACCOUNT; its secret, if it gets one, is printed once, here.

    Example: sealane accounts create camera --role invoker
    """
    credential = _credential(options["passphrase"], options["public_key"])
    with cli.client() as client:
        made = client.accounts.create(account, options["scope"], roles=options["role"], credential=credential)
    _show(cli, made)


@accounts.command(name="list")
@common
def list_accounts(cli: Cli) -> None:
    """List the accounts of the project, without secrets."""
    with cli.client() as client:
        found = list(client.accounts.list())
    rows = [(_last(each.name), each.client_id, " ".join(each.roles), " ".join(each.scopes)) for each in found]
    cli.table(("ACCOUNT", "CLIENT ID", "ROLES", "SCOPES"), rows, found)


@accounts.command()
@click.argument("account")
@common
def get(cli: Cli, account: str) -> None:
    """Show ACCOUNT, without secrets."""
    with cli.client() as client:
        found = client.accounts.get(account)
    _show(cli, found)


@accounts.command()
@click.argument("account")
@common
def delete(cli: Cli, account: str) -> None:
    """Delete ACCOUNT and revoke its tokens; its id is not given out again."""
    with cli.client() as client:
        client.accounts.delete(account)
    _done(cli, "deleted", account)


@accounts.group()
def credentials() -> None:
    """What an account proves itself with."""


@credentials.command(name="add")
@click.argument("account")
@ASK
@KEY
@common
def add_credential(cli: Cli, account: str, passphrase: bool, public_key: Path | None) -> None:
    """Add a credential to ACCOUNT, so that the one before can be replaced without a gap.

    A secret is printed once, here.
    """
    credential = _credential(passphrase, public_key)
    with cli.client() as client:
        made = client.accounts.add_credential(account, credential)
    cli.facts((("credential", _last(made.name)), ("secret", made.secret)), made)


@credentials.command(name="list")
@click.argument("account")
@common
def list_credentials(cli: Cli, account: str) -> None:
    """List the credentials of ACCOUNT, without secrets."""
    with cli.client() as client:
        found = client.accounts.credentials(account)
    rows = [
        (
            _last(each.name),
            str(each.WhichOneof("kind")).replace("_", "-"),
            each.create_time.ToJsonString(),
            each.expire_time.ToJsonString() if each.HasField("expire_time") else "never",
        )
        for each in found
    ]
    cli.table(("CREDENTIAL", "KIND", "CREATED", "EXPIRES"), rows, found)


@credentials.command(name="delete")
@click.argument("account")
@click.argument("credential")
@common
def delete_credential(cli: Cli, account: str, credential: str) -> None:
    """Delete CREDENTIAL of ACCOUNT and revoke the account's tokens."""
    with cli.client() as client:
        client.accounts.delete_credential(account, credential)
    _done(cli, "deleted", credential)


@accounts.command()
@click.argument("account", default="")
@click.option("--requests", type=float, help="Calls a second; 0 is without limit, as for the others.")
@click.option("--bytes", "size", type=int, help="Request bytes a second.")
@click.option("--concurrent", type=int, help="Calls at the same time.")
@common
def quota(cli: Cli, account: str, requests: float | None, size: int | None, concurrent: int | None) -> None:
    """Show or set the quota of ACCOUNT; of the project where none is named.

    What is not named keeps its value.
    """
    with cli.client() as client:
        found = client.accounts.quota(account)
        if (requests, size, concurrent) != (None, None, None):
            found = client.accounts.set_quota(
                account,
                requests_per_second=found.requests_per_second if requests is None else requests,
                bytes_per_second=found.bytes_per_second if size is None else size,
                concurrent_requests=found.concurrent_requests if concurrent is None else concurrent,
            )
    facts = (
        ("name", found.name),
        ("requests/s", f"{found.requests_per_second:g}"),
        ("bytes/s", found.bytes_per_second),
        ("concurrent", found.concurrent_requests),
    )
    cli.facts(facts, found)


@click.group()
def roles() -> None:
    """Who may do what."""


@roles.command()
@click.argument("account")
@click.argument("role", type=click.Choice(ROLES))
@click.option("--model-prefix", default="", help="Only for models whose ids begin so.")
@click.option("--platform", is_flag=True, help="Also for nodes, keys, projects and the whole audit log.")
@common
def bind(cli: Cli, account: str, role: str, model_prefix: str, platform: bool) -> None:
    """Give ROLE to ACCOUNT.

    Example: sealane roles bind camera publisher --model-prefix digits-
    """
    with cli.client() as client:
        made = client.roles.bind(account, role, model_prefix=model_prefix, platform=platform)
    cli.facts((("binding", _last(made.name)), ("account", _last(made.member)), ("role", made.role)), made)


@roles.command(name="list")
@click.argument("account", default="")
@common
def list_roles(cli: Cli, account: str) -> None:
    """List the role bindings of the project, or of ACCOUNT."""
    with cli.client() as client:
        found = list(client.roles.list(account))
    rows = [
        (_last(each.name), _last(each.member), each.role, each.model_prefix or "-", "yes" if each.platform else "-")
        for each in found
    ]
    cli.table(("BINDING", "ACCOUNT", "ROLE", "MODELS", "PLATFORM"), rows, found)


@roles.command()
@click.argument("binding")
@common
def unbind(cli: Cli, binding: str) -> None:
    """Take the role of BINDING away and revoke the account's tokens."""
    with cli.client() as client:
        client.roles.unbind(binding)
    _done(cli, "deleted", binding)


@click.group()
def projects() -> None:
    """The tenants."""


@projects.command(name="create")
@click.argument("project")
@click.option("--admin", default="", help="Account to create in it as its administrator.")
@common
def create_project(cli: Cli, project: str, admin: str) -> None:
    """Create PROJECT; needs an admin of the platform. The secret of its own admin is printed once, here."""
    with cli.client() as client:
        made = client.projects.create(project, admin=admin)
    facts = [("project", made.name)]
    if made.HasField("admin"):
        facts += [("client_id", made.admin.client_id), ("client_secret", made.admin.client_secret)]
    cli.facts(facts, made)


@projects.command(name="list")
@common
def list_projects(cli: Cli) -> None:
    """List the projects; needs an admin of the platform."""
    with cli.client() as client:
        found = list(client.projects.list())
    cli.table(("PROJECT", "CREATED"), [(_last(each.name), each.create_time.ToJsonString()) for each in found], found)


def _credential(passphrase: bool, public_key: Path | None) -> NewCredential | None:
    from sealane.client import NewCredential

    if passphrase and public_key is not None:
        raise click.UsageError("a credential is a passphrase or a key, not both")
    if public_key is not None:
        return NewCredential(public_key_jwk=public_key.read_text())
    if passphrase:
        text = click.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)
        return NewCredential(passphrase=text)
    return None


def _show(cli: Cli, account: pb.ServiceAccount) -> None:
    facts = (
        ("account", account.name),
        ("client_id", account.client_id),
        ("client_secret", account.client_secret),
        ("roles", " ".join(account.roles)),
        ("scopes", " ".join(account.scopes)),
    )
    cli.facts(facts, account)


def _done(cli: Cli, what: str, name: str) -> None:
    if cli.output == "json":
        print_json({what: name})
    else:
        click.echo(f"{what} {name}")


def _last(name: str) -> str:
    return name.rpartition("/")[2]
