"""``sealane policy`` and ``sealane storage``."""

from __future__ import annotations

from pathlib import Path

import click

from sealane.cli.context import Cli, common
from sealane.errors import InvalidArgument


@click.group()
def policy() -> None:
    """What the project demands of its models: formats, signatures, gates."""


@policy.command()
@common
def show(cli: Cli) -> None:
    """Print the policy as JSON, as 'sealane policy apply' takes it."""
    from sealane.cli.context import as_dict, print_json

    with cli.client() as client:
        print_json(as_dict(client.policies.get()))


@policy.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@common
def apply(cli: Cli, file: Path) -> None:
    """Make FILE (JSON, as 'sealane policy show' prints it) the policy; its etag, if any, must be the present one."""
    from google.protobuf import json_format

    from sealane.registry.v1 import policy_service_pb2

    try:
        wanted = json_format.Parse(file.read_text(), policy_service_pb2.Policy())
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{file} is no policy: {' '.join(str(error).split())[:300]}") from error
    with cli.client() as client:
        found = client.policies.update(wanted)
    cli.facts((("policy", found.name), ("gates", len(found.gates)), ("keys", len(found.signer_keys))), found)


@policy.command(name="set")
@click.option(
    "--allow-executable-formats/--refuse-executable-formats", "executable", default=None, help="Formats with code."
)
@click.option(
    "--signing",
    type=click.Choice(["unsigned", "signed", "signed-by"]),
    default=None,
    help="What is demanded of signatures; signed-by wants --signer.",
)
@click.option("--signer", multiple=True, help="Name of a key of which one must have signed; may be repeated.")
@click.option("--add-key", multiple=True, metavar="NAME=FILE", help="Public key, PEM, that may sign; may be repeated.")
@common
def set_policy(
    cli: Cli, executable: bool | None, signing: str | None, signer: tuple[str, ...], add_key: tuple[str, ...]
) -> None:
    """Change parts of the policy; gates are changed with 'sealane policy apply'."""
    from sealane.registry.v1 import policy_service_pb2 as pb

    with cli.client() as client:
        wanted = client.policies.get()
        if executable is not None:
            wanted.allow_executable_formats = executable
        if signing is not None:
            wanted.signing = pb.SigningRequirement.Value(f"SIGNING_REQUIREMENT_{signing.upper().replace('-', '_')}")
        if signer:
            del wanted.required_signers[:]
            wanted.required_signers.extend(signer)
        for text in add_key:
            name, _, path = text.partition("=")
            wanted.signer_keys.add(name=name, public_key=Path(path).read_bytes())
        found = client.policies.update(wanted)
    cli.facts((("policy", found.name), ("executable", found.allow_executable_formats)), found)


@click.group()
def storage() -> None:
    """What the project stores and may store."""


@storage.command(name="show")
@common
def show_storage(cli: Cli) -> None:
    """Print what the project stores and may store; 0 is without limit."""
    with cli.client() as client:
        found = client.policies.storage()
    facts = (
        ("bytes", f"{found.used_bytes} of {found.max_bytes or 'any'}"),
        ("models", f"{found.used_models} of {found.max_models or 'any'}"),
        ("versions", f"{found.max_versions or 'any'} of a model"),
    )
    cli.facts(facts, found)


@storage.command()
@click.argument("project")
@click.option("--bytes", "max_bytes", default=0, help="Most bytes; 0 is what the registry gives everybody.")
@click.option("--models", "max_models", default=0, help="Most models; 0 is what the registry gives everybody.")
@click.option("--versions", "max_versions", default=0, help="Most versions of one model; 0 as above.")
@common
def quota(cli: Cli, project: str, max_bytes: int, max_models: int, max_versions: int) -> None:
    """Set what PROJECT may store. For admins of the platform."""
    with cli.client() as client:
        found = client.policies.set_storage(
            max_bytes=max_bytes, max_models=max_models, max_versions=max_versions, project=project
        )
    cli.facts((("quota", found.name), ("bytes", found.max_bytes), ("models", found.max_models)), found)
