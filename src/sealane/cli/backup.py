"""``sealane backup`` and ``sealane restore``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from sealane.cli.context import Cli, common, note, progress_bar


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@common
def backup(cli: Cli, folder: Path) -> None:
    """Copy everything that the registry keeps, of all projects, to FOLDER. For operators of the platform.

    It works on meanwhile. A folder with an older backup becomes the new one; artifacts that it has are not sent again.
    """
    with cli.client() as client, progress_bar() as progress:
        rows = client.backups.take(folder, progress=progress)
    note(f"{rows['models']} models, {rows['versions']} versions, {rows['artifacts']} artifacts are in {folder}")


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def restore(arguments: tuple[str, ...]) -> None:
    """Make a registry of a backup: sealane restore FOLDER --data DIR."""
    os.execv(sys.executable, [sys.executable, "-m", "sealane_registry.restore", *arguments])  # noqa: S606  # our own module
