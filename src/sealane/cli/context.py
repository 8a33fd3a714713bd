"""What every command has: which installation, which form of output, the client."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import click

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from sealane.client import Client
    from sealane.client.artifacts import Progress

P = ParamSpec("P")
R = TypeVar("R")

_TIMEOUT_SECONDS = 10.0
Row = Sequence[object]

#: What is read by other programs is not folded.
_PIPED_WIDTH = 2000


@dataclass(frozen=True, slots=True)
class Cli:
    """The common options of one command.

    Args:
        data: data directory; empty takes the environment's.
        output: ``table`` or ``json``.
    """

    data: str
    output: str

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client, closed at the end."""
        from sealane.client import connect

        with connect(self.data or None, timeout=_TIMEOUT_SECONDS) as client:
            yield client

    def table(self, columns: Sequence[str], rows: Sequence[Row], messages: Sequence[Message]) -> None:
        """Print a list: rows for people, or the messages themselves as a JSON array."""
        if self.output == "json":
            print_json([as_dict(message) for message in messages])
            return
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")  # never cut: an id is of use only whole
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        console = Console()
        if not console.is_terminal:
            console = Console(width=_PIPED_WIDTH)
        console.print(table, soft_wrap=True)

    def facts(self, facts: Sequence[tuple[str, object]], message: Message) -> None:
        """Print one thing: a line per fact for people, or the message itself as JSON."""
        if self.output == "json":
            print_json(as_dict(message))
            return
        width = max((len(name) for name, _ in facts), default=0)
        for name, value in facts:
            if str(value):
                click.echo(f"{name:<{width}}  {value}")


def common(command: Callable[Concatenate[Cli, P], R]) -> Callable[..., R]:
    """Adds the options that every command has; the command gets them as a :class:`Cli` in front."""

    @click.option("--data", default="", metavar="DIR", help="Data directory of the installation [env: SEALANE_HOME].")
    @click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="Form of output.",
    )
    @functools.wraps(command)
    def wrapper(data: str, output: str, *args: P.args, **kwargs: P.kwargs) -> R:
        return command(Cli(data, output), *args, **kwargs)

    return wrapper


def note(text: str) -> None:
    """Say how it goes, on standard error: standard output is for results."""
    click.echo(text, err=True)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Shows transfers on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda name, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        tasks = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total or None)
            bars.update(tasks[name], completed=done)

        yield show


def as_dict(message: Message) -> dict[str, object]:
    """A message as JSON says it, with the names of the contract."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True)


def print_json(value: object) -> None:
    """JSON on standard output."""
    import json

    click.echo(json.dumps(value, indent=2))


def enum_word(name: str, prefix: str) -> str:
    """``STATE_SERVING`` as ``serving``."""
    return name.removeprefix(prefix).lower().replace("_", "-")
