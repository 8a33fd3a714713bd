"""``python -m sealane_local``: what ``sealane up`` runs."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import click

from sealane.errors import SealaneError
from sealane_local.plan import Options
from sealane_local.stack import LocalStack


@click.command()
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for all state.")
@click.option("--otlp-endpoint", default="", help="Send spans there (OTLP/gRPC, http://host:port).")
@click.option("--sample-ratio", default=0.01, show_default=True, help="Share of untraced calls to record.")
def main(data: Path, otlp_endpoint: str, sample_ratio: float) -> None:
    """Run every service, a cloud and an edge worker on this machine, until Ctrl-C."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    try:
        options = Options(data=data.resolve(), otlp_endpoint=otlp_endpoint, sample_ratio=sample_ratio)
        with LocalStack(options) as stack:
            click.echo("ready")
            if stack.sandbox != "full":
                click.echo(f"models run at sandbox level {stack.sandbox!r}: this kernel gives no more", err=True)
            stopped.wait()
    except (SealaneError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
