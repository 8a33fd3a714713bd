"""``sealane backup`` and ``sealane restore``."""

from __future__ import annotations

import subprocess
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


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", required=True, type=click.Path(file_okay=False, path_type=Path), help="Installation to be.")
@click.option("--database", default="", help="postgresql+psycopg://...; SQLite by default.")
def restore(folder: Path, data: Path, database: str) -> None:
    """Make a registry of the backup in FOLDER, where there is none yet."""
    command = [sys.executable, "-m", "sealane_registry.restore", str(folder), "--data", str(data)]
    more = ["--database", database] if database else []
    sys.exit(subprocess.run([*command, *more], check=False).returncode)  # noqa: S603  # our own module
