"""``sealane audit``: who changed what, and whether anybody touched the logs themselves."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from sealane.cli.context import Cli, common, enum_word

if TYPE_CHECKING:
    from sealane.auth.v1 import audit_service_pb2 as pb

_SERVICES = ["auth", "registry", "scheduler"]
_DAMAGED = 1

_service = click.option(
    "--service",
    type=click.Choice([*_SERVICES, "all"]),
    default="all",
    show_default=True,
    help="Whose log; each of these services keeps its own.",
)


@click.group()
def audit() -> None:
    """Who changed what, in logs that show every later edit."""


class _Wanted(TypedDict):
    action: str
    actor: str
    resource_prefix: str
    start: datetime | None
    end: datetime | None


@audit.command(name="list")
@_service
@click.option("--action", default="", help="Exact action, such as MoveAlias.")
@click.option("--actor", default="", help="Exact account or SPIFFE id.")
@click.option("--resource", "resource_prefix", default="", help="Beginning of the resource name.")
@click.option("--since", "start", type=click.DateTime(), help="At or after this time, UTC.")
@click.option("--until", "end", type=click.DateTime(), help="Before this time, UTC.")
@common
def list_events(cli: Cli, service: str, **wanted: Unpack[_Wanted]) -> None:
    """List the changes in the project, newest last."""
    from sealane.client.audit import AuditFilter

    with cli.client() as client:
        events = [event for name in _chosen(service) for event in client.audit.list(name, AuditFilter(**wanted))]
    events.sort(key=lambda event: event.create_time.ToNanoseconds())
    rows = [
        (
            datetime.fromtimestamp(event.create_time.seconds, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            event.service,
            event.sequence or "-",
            event.actor,
            event.action,
            event.resource,
            event.details if event.details != "{}" else "",
        )
        for event in events
    ]
    cli.table(("TIME (UTC)", "SERVICE", "SEQ", "ACTOR", "ACTION", "RESOURCE", "DETAILS"), rows, events)


@audit.command()
@_service
@click.option(
    "--file", "files", multiple=True, type=click.Path(path_type=Path), help="Export to check; may be repeated."
)
@click.option("--checkpoints", multiple=True, type=click.Path(path_type=Path), help="Checkpoints kept elsewhere.")
@click.option("--trust", type=click.Path(path_type=Path), help="Root certificates, PEM; needed with --file.")
@common
def verify(cli: Cli, service: str, files: tuple[Path, ...], checkpoints: tuple[Path, ...], trust: Path | None) -> None:
    """Check that no row was altered, deleted, reordered or cut off; names the first that was.

    Without --file each service is asked. With --file nothing is asked: neither the services nor their machines need
    be trusted, only the root certificates and the checkpoints that were kept elsewhere. The exit code is 1 where a
    log is damaged.
    """
    if files:
        if trust is None:
            raise click.UsageError("say which root certificates to trust with --trust ca.pem")
        reports = [item for item in _offline(files, checkpoints, trust) if service in ("all", item.service)]
    else:
        if checkpoints or trust:
            raise click.UsageError("--checkpoints and --trust go with --file; export the log first")
        with cli.client() as client:
            reports = [client.audit.verify(name) for name in _chosen(service)]
    rows = [
        (item.service, item.rows, item.last_sequence, item.unsealed, item.checkpoints, *_finding(item))
        for item in reports
    ]
    cli.table(("SERVICE", "ROWS", "LAST", "UNSEALED", "CHECKPOINTS", "FOUND", "FIRST BAD ROW"), rows, reports)
    if not reports or any(item.HasField("fault") for item in reports):
        click.get_current_context().exit(_DAMAGED)


@audit.command()
@_service
@click.option("--out", type=click.Path(path_type=Path), help="File to write; default: standard output.")
@click.option("--checkpoints-only", is_flag=True, help="Only the signed checkpoints, to be kept elsewhere.")
@common
def export(cli: Cli, service: str, out: Path | None, checkpoints_only: bool) -> None:
    """Write whole logs of all projects as JSON lines, with their signed checkpoints."""
    from sealane.security.audit_messages import to_line

    with ExitStack() as stack:
        client = stack.enter_context(cli.client())
        file = stack.enter_context(out.open("w", encoding="utf-8")) if out else sys.stdout
        for name in _chosen(service):
            for entry in client.audit.export(name):
                if not checkpoints_only or entry.HasField("audit_checkpoint"):
                    file.write(to_line(entry))


def _chosen(service: str) -> list[str]:
    return _SERVICES if service == "all" else [service]


def _offline(files: tuple[Path, ...], checkpoints: tuple[Path, ...], trust: Path) -> list[pb.VerifyAuditLogResponse]:
    from sealane.client.audit import verify_exported
    from sealane.security.audit_messages import from_lines, verification

    with ExitStack() as stack:
        lines = [from_lines(stack.enter_context(path.open(encoding="utf-8"))) for path in (*files, *checkpoints)]
        entries = (entry for part in lines[: len(files)] for entry in part)
        kept = (entry for part in lines[len(files) :] for entry in part)
        return [verification(report) for report in verify_exported(entries, trust.read_bytes(), kept)]


def _finding(report: pb.VerifyAuditLogResponse) -> tuple[str, str]:
    if not report.HasField("fault"):
        return "well", ""
    fault = report.fault
    return enum_word(type(fault).Kind.Name(fault.kind), "KIND_"), f"{fault.sequence}: {fault.description}"
