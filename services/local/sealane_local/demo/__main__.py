"""``make demo``: two cameras, one cut cable."""

from __future__ import annotations

import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import click

from sealane import telemetry
from sealane.client import connect
from sealane_local import plan
from sealane_local.demo import failures, finish, place, predict, prepare, refuse
from sealane_local.demo.report import Report
from sealane_local.demo.world import World
from sealane_local.stack import LocalStack


@click.command()
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), default=Path("var/demo"), show_default=True)
@click.option("--light", is_flag=True, help="Use a model made earlier: no training, no TensorFlow.")
def main(data: Path, light: bool) -> None:
    """Train, register, optimise, place, serve; then kill the edge and cut the cable."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that everything started is stopped
    data = data.resolve()
    shutil.rmtree(data, ignore_errors=True)
    report = Report()
    training = None if light else prepare.start_training(data / "model")
    # The edge worker hangs on a cable of its own, and holds for dead what is silent for ten seconds.
    workers = (plan.CLOUD, replace(plan.EDGE, linked=True))
    options = plan.Options(data / "stack", workers=workers, edge_lost_after=10.0)
    print("starting auth, registry, scheduler, gateway, a cloud and an edge worker ...")
    try:
        with LocalStack(options) as stack:
            own = telemetry.configure(
                telemetry.TelemetryConfig("client", str(options.data / "traces" / "client.jsonl"), sample_ratio=0.0)
            )
            with connect(options.data, telemetry=own) as client:
                files = prepare.EXAMPLE / "light" if light else data / "model"
                run(World(stack, client, report, light, files), training)
    finally:
        if training is not None and training.poll() is None:
            training.kill()
    report.write(data / "report.json")
    print(f"\n{'everything held' if report.ok else 'SOMETHING DID NOT HOLD'}; report: {data / 'report.json'}")
    sys.exit(0 if report.ok else 1)


def run(world: World, training: prepare.Training | None) -> None:
    """The seven steps."""
    prepare.push(world, training)
    place.deploy(world)
    predict.predict(world)
    finish.trace(world)
    rates = finish.measure(world)
    refuse.refusals(world)
    failures.kill(world)
    failures.cut(world)
    finish.table(world, rates)


if __name__ == "__main__":
    main()
