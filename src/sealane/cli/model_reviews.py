"""The commands of ``sealane models`` about aliases, their history, and what people say of versions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sealane.cli.context import Cli, common, enum_word, note

if TYPE_CHECKING:
    from datetime import datetime

    from sealane.registry.v1 import model_service_pb2 as pb
    from sealane.registry.v1 import promotion_pb2


@click.command()
@click.argument("model")
@click.option("--description", default=None, help="What it is for.")
@click.option("--label", multiple=True, metavar="NAME=VALUE", help="Labels, all that it is to have; may be repeated.")
@common
def update(cli: Cli, model: str, description: str | None, label: tuple[str, ...]) -> None:
    """Change the description or the labels of MODEL."""
    with cli.client() as client:
        found = client.models.update(model, description=description, labels=labels_of(label) if label else None)
    cli.facts((("model", found.name), ("description", found.description), ("labels", _words(found.labels))), found)


@click.command()
@click.argument("model")
@click.confirmation_option(prompt="Delete the model with all its versions? Its name is never given out again")
@common
def delete(cli: Cli, model: str) -> None:
    """Delete MODEL with its versions; its name is never given out again."""
    with cli.client() as client:
        client.models.delete(model)
    note(f"{model} is deleted")


@click.command(name="load-check")
@click.argument("version")
@common
def load_check(cli: Cli, version: str) -> None:
    """Have workers load every variant of VERSION once, in a box, and say what came of it."""
    with cli.client() as client:
        found = client.models.load_check(version)
    rows = [
        (
            _last(item.name),
            "loadable" if item.load_check.loadable else item.load_check.reason or "not checked",
            item.load_check.message or f"{item.load_check.runtime} in {item.load_check.load_seconds:.2f} s",
        )
        for item in found.variants
    ]
    cli.table(("VARIANT", "FOUND", "MESSAGE"), rows, list(found.variants))


@click.command()
@click.argument("version")
@click.option("--comment", default="", help="What you have to say of it.")
@common
def approve(cli: Cli, version: str, comment: str) -> None:
    """Approve VERSION; it is loaded once in a worker's box before, where nobody did that."""
    with cli.client() as client:
        found = client.models.approve(version, comment)
    show_state(cli, found)


@click.command()
@click.argument("version")
@click.option("--reason", required=True, help="Why.")
@common
def reject(cli: Cli, version: str, reason: str) -> None:
    """Refuse VERSION for good: no alias may point at it any more."""
    with cli.client() as client:
        found = client.models.reject(version, reason)
    show_state(cli, found)


@click.command()
@click.argument("version")
@click.option("--reason", required=True, help="Why, and what to use instead.")
@common
def deprecate(cli: Cli, version: str, reason: str) -> None:
    """Say that VERSION should not be used any more."""
    with cli.client() as client:
        found = client.models.deprecate(version, reason)
    show_state(cli, found)


@click.command(name="why-not")
@click.argument("version")
@click.argument("alias")
@common
def why_not(cli: Cli, version: str, alias: str) -> None:
    """Say whether VERSION may be ALIAS, condition by condition, and what to do; exits with 1 where it may not."""
    with cli.client() as client:
        found = client.models.explain(version, alias)
    cli.table(("MET", "WANTED", "FOUND", "WHAT TO DO"), [_check(item) for item in found.checks], list(found.checks))
    if not found.promotable:
        sys.exit(1)


@click.command()
@click.argument("model")
@common
def aliases(cli: Cli, model: str) -> None:
    """List the aliases of MODEL."""
    with cli.client() as client:
        found = list(client.models.aliases(model))
    rows = [(_last(item.name), _last(item.version), item.update_time.ToJsonString(), item.move_count) for item in found]
    cli.table(("ALIAS", "VERSION", "SINCE", "MOVES"), rows, found)


@click.command()
@click.argument("model")
@click.argument("alias")
@common
def unalias(cli: Cli, model: str, alias: str) -> None:
    """Take ALIAS of MODEL away; its history stays."""
    with cli.client() as client:
        client.models.delete_alias(model, alias)
    note(f"{alias} of {model} is taken away")


@click.command()
@click.argument("model")
@click.argument("alias")
@click.option("--as-of", default="", metavar="TIME", help="What it was at a time, such as 2026-11-27T12:00:00Z.")
@click.option("--verify", is_flag=True, help="Check that no move was changed, left out or put in.")
@common
def history(cli: Cli, model: str, alias: str, as_of: str, verify: bool) -> None:
    """Say what ALIAS of MODEL was when, who moved it, and what was known then."""
    with cli.client() as client:
        if verify:
            note(f"{client.models.verify_history(model, alias)} moves, each follows the one before it")
        found = (
            [client.models.as_of(model, alias, _time(as_of))] if as_of else list(client.models.history(model, alias))
        )
    rows = [
        (
            _last(item.name),
            item.move_time.ToJsonString(),
            _last(item.version) or "-",
            _last(item.previous_version) or "-",
            _last(item.mover),
            "; ".join(f"{check.requirement}: {check.finding}" for check in item.evidence.checks),
        )
        for item in found
    ]
    cli.table(("MOVE", "TIME", "VERSION", "BEFORE", "WHO", "EVIDENCE"), rows, found)


@click.command()
@click.option("--after", default=0, help="Revision to go on after; default: now.")
@click.option("--model", default="", help="Only this model.")
@common
def watch(cli: Cli, after: int, model: str) -> None:
    """Print every change to models and datasets until interrupted."""
    with cli.client() as client:
        resource = f"projects/{client.project}/models/{model}" if model else ""
        for seen in client.models.watch(after=after, resource=resource):
            event = seen.event
            if event.action and cli.output == "table":
                details = " ".join(f"{name}={value}" for name, value in sorted(event.details.items()))
                click.echo(
                    f"{seen.revision} {event.event_time.ToJsonString()} {event.action} {event.resource} {details}"
                )
            elif event.action:
                cli.facts((), seen)


@click.command()
@click.argument("version")
@click.option(
    "--key", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Private key, PEM."
)
@common
def sign(cli: Cli, version: str, key: Path) -> None:
    """Sign the variants of VERSION, or one of them (MODEL@NUMBER/VARIANT), in the OpenSSF format."""
    with cli.client() as client:
        found = client.models.sign(version, key)
    cli.table(("KEY", "ID"), [(item.key_name, item.key_id) for item in found], found)


@click.command()
@click.argument("variant")
@common
def verify(cli: Cli, variant: str) -> None:
    """Read the files of VARIANT again and verify its signatures; exits with 1 where the policy's demand is not met."""
    with cli.client() as client:
        found = client.models.verify_signatures(variant)
    rows = [(item.key_name or item.key_id[:16], item.valid, item.reason) for item in found.verdicts]
    cli.table(("KEY", "VALID", "WHY NOT"), rows, list(found.verdicts))
    for path in found.corrupt_files:
        note(f"{path} no longer matches its digest")
    if not found.satisfied:
        sys.exit(1)


#: What this module adds to the group.
COMMANDS = (
    *(update, delete, load_check, approve, reject, deprecate, why_not),
    *(aliases, unalias, history, watch, sign, verify),
)


def show_state(cli: Cli, version: pb.Version) -> None:
    """Print a version's state and approvals."""
    from sealane.registry.v1 import model_service_pb2

    state = enum_word(model_service_pb2.Version.State.Name(version.state), "STATE_")
    approvals = ", ".join(f"{_last(item.approver)} ({' '.join(item.roles)})" for item in version.approvals)
    facts = (("version", version.name), ("state", state), ("why", version.state_reason), ("approvals", approvals))
    cli.facts(facts, version)


def labels_of(texts: tuple[str, ...]) -> dict[str, str]:
    """Labels out of NAME=VALUE."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is no NAME=VALUE", param_hint="--label")
        found[name] = value
    return found


def _check(item: promotion_pb2.GateCheck) -> tuple[object, ...]:
    return ("yes" if item.passed else "NO", item.requirement, item.finding, item.remedy)


def _time(text: str) -> datetime:
    from datetime import UTC, datetime

    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no time; write 2026-11-27T12:00:00Z", param_hint="--as-of") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _words(labels: object) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(dict(labels).items()))  # type: ignore[call-overload]


def _last(name: str) -> str:
    return name.rpartition("/")[2]
