"""``sealane up``: hands over to the process that runs every service on this machine."""

from __future__ import annotations

import os
import sys

import click


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def up(arguments: tuple[str, ...]) -> None:
    """Run every service on this machine: sealane up --data DIR."""
    os.execv(sys.executable, [sys.executable, "-m", "sealane_local", *arguments])  # noqa: S606  # our own module
