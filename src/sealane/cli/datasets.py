"""``sealane datasets``."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict, Unpack

import click

from sealane.cli.context import Cli, common, note, progress_bar
from sealane.cli.model_reviews import labels_of


@click.group()
def datasets() -> None:
    """Immutable sets of rows that training, evaluation and batch jobs point at."""


class _Push(TypedDict):
    description: str
    format: str
    rows: tuple[int, ...]
    origin: str
    license: str
    label: tuple[str, ...]


@datasets.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.argument("name")
@click.option("--description", default="", help="What it is.")
@click.option("--format", default="", help="Format of the files; default: their suffix.")
@click.option("--rows", multiple=True, type=int, help="Rows of each file, in order; default: counted in npz and csv.")
@click.option("--origin", default="", help="Where it comes from.")
@click.option("--license", default="", help="Licence, an SPDX expression.")
@click.option("--label", multiple=True, metavar="NAME=VALUE", help="Label; may be repeated.")
@common
def push(cli: Cli, path: Path, name: str, **options: Unpack[_Push]) -> None:
    """Upload PATH, a file or a folder, as dataset NAME. It can never be changed."""
    with cli.client() as client, progress_bar() as progress:
        found = client.datasets.push(
            path,
            name,
            description=options["description"],
            format=options["format"],
            rows=options["rows"],
            origin=options["origin"],
            license=options["license"],
            labels=labels_of(options["label"]),
            progress=progress,
        )
    cli.facts((("dataset", found.name), ("rows", found.rows), ("digest", found.digest)), found)


@datasets.command(name="list")
@click.option("--filter", "filter_", default="", help="Such as 'labels.team = vision AND rows > 1000'.")
@common
def list_datasets(cli: Cli, filter_: str) -> None:
    """List the datasets of the project."""
    with cli.client() as client:
        found = list(client.datasets.list(filter_))
    rows = [(item.name.rpartition("/")[2], item.format, item.rows, item.size_bytes, item.digest[:19]) for item in found]
    cli.table(("DATASET", "FORMAT", "ROWS", "BYTES", "DIGEST"), rows, found)


@datasets.command()
@click.argument("name")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@common
def pull(cli: Cli, name: str, directory: Path) -> None:
    """Fetch the files of dataset NAME into DIRECTORY; digests are checked."""
    with cli.client() as client, progress_bar() as progress:
        found = client.datasets.pull(name, directory, progress=progress)
    cli.facts((("dataset", found.name), ("rows", found.rows), ("digest", found.digest)), found)


@datasets.command()
@click.argument("name")
@click.confirmation_option(prompt="Delete the dataset? Its name is never given out again")
@common
def delete(cli: Cli, name: str) -> None:
    """Delete dataset NAME; its name is never given out again."""
    with cli.client() as client:
        client.datasets.delete(name)
    note(f"{name} is deleted")
