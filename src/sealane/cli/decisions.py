"""``sealane explain``, ``plan`` and ``optimize``: why something runs where it does, and where else it could."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import click

from sealane.cli.context import Cli, common
from sealane.cli.demands import Demand, demands, fields

if TYPE_CHECKING:
    from sealane.scheduler.v1 import deployment_service_pb2 as pb


@click.command()
@click.argument("deployment")
@common
def explain(cli: Cli, deployment: str) -> None:
    """Why DEPLOYMENT runs where it does, newest decision last.

    Lines begin with + for reasons, = for candidates with their scores, ~ for who else there was on the front of latency
    and price, x for filters, - for rejected candidates, and > for what would make it run.
    """
    with cli.client() as client:
        decisions = list(client.deployments.explain(deployment))
    if cli.output == "json":
        cli.table((), (), decisions)
        return
    for decision in reversed(decisions):
        show(decision)


@click.command()
@click.argument("version", default="")
@click.option("--task", metavar="RUNTIME", help="Plan a task of a job that needs RUNTIME, in the place of a VERSION.")
@demands
@common
def plan(cli: Cli, version: str, task: str | None, **options: Unpack[Demand]) -> None:
    """What creating a deployment of VERSION would choose now, without doing it.

    Example: sealane plan digits@production --latency-ms 20 --max-price 0.5
    """
    if bool(version) == (task is not None):
        raise click.UsageError("give a VERSION, such as digits@3, or --task RUNTIME")
    with cli.client() as client:
        wanted = fields(options)
        planned = client.deployments.plan_task(task, **wanted) if task is not None else None
        decision = planned or client.deployments.plan(version, **wanted)
    if cli.output == "json":
        cli.facts((), decision)
        return
    show(decision)


@click.command()
@click.option("--moves", type=int, default=0, metavar="N", help="Most copies that may move; 10 if not given.")
@click.option("--apply", is_flag=True, help="Move them. Else it is only said what would be moved.")
@common
def optimize(cli: Cli, moves: int, apply: bool) -> None:
    """Look for better places for all serving copies at once.

    Nothing moves without --apply; a copy that moves stops once its successor serves.
    """
    with cli.client() as client:
        found = client.deployments.optimize(moves, apply=apply)
    if cli.output == "json":
        cli.facts((), found)
        return
    saved = found.cost - found.planned_cost
    click.echo(
        f"{found.copies} copies cost {found.cost:.4g} an hour, {saved:.4g} less after {len(found.moves)} moves; "
        f"at most {found.gap:.1%} above the least possible"
    )
    for move in found.moves:
        how = " (begun)" if move.applied else " (fits no more)" if apply else ""
        where = f"{_last(move.source)} to {_last(move.target)} as {move.variant}"
        click.echo(f"  {_last(move.deployment)} from {where} saves {move.saves:.3g}{how}")
    if found.moves and not apply:
        click.echo("run it with --apply to move them")


def show(decision: pb.Decision) -> None:
    """Print a decision for people."""
    where = f"{_last(decision.node)} with {decision.variant}" if decision.node else "nowhere"
    held = f", held back by {decision.binding_constraint}" if decision.binding_constraint else ""
    click.echo(f"{decision.decide_time.ToJsonString()}  epoch {decision.epoch}: {where}{held}")
    for reason in decision.reasons:
        click.echo(f"  + {reason}")
    for change in decision.changes:
        click.echo(f"  > {change.text}")
    for candidate in decision.candidates:
        click.echo(f"  = {_candidate(candidate)}")
    for neighbour in decision.neighbours:
        click.echo(f"  ~ {neighbour.text}")
    for count in decision.filters:
        click.echo(f"  x {_count(count)}")
    for item in decision.rejections:
        click.echo(f"  - {_last(item.node)} {item.variant}: {item.filter}: {item.detail}")
    seen = decision.snapshot
    if seen.digest:
        looked = f"{seen.looked_at} of {seen.nodes} nodes looked at, snapshot {seen.version} {seen.digest[:12]}"
        click.echo(f"    {looked}")


def _candidate(candidate: pb.Candidate) -> str:
    terms = ", ".join(f"{name} {value:.3g}" for name, value in sorted(candidate.terms.items()) if value)
    given = f"{candidate.latency_ms:.3g} ms, {candidate.price:.3g} per 1,000 calls"
    return f"{_last(candidate.node)} {candidate.variant}: {candidate.score:.3g} ({terms}); {given}"


def _count(count: pb.FilterCount) -> str:
    alone = f", {count.alone} of them by nothing else" if count.alone else ""
    nearest = f"{_last(count.nearest.node)} {count.nearest.variant}: {count.nearest.detail}"
    return f"{count.filter} rejects {count.rejected}{alone}; nearest {nearest}"


def _last(name: str) -> str:
    return name.rpartition("/")[2]
