"""Entry point: finds the command, runs it, turns errors into one line and an exit code.

Nothing but click is imported before a command runs, so that help and completion stay quick.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import cast

import click

from sealane.errors import SealaneError

#: Command -> module and attribute that hold it, and its line in the help.
COMMANDS = {
    "up": ("up:up", "Run every service on this machine."),
    "models": ("models:models", "Push, pull, import, export and name models."),
    "datasets": ("datasets:datasets", "Immutable sets of rows that jobs point at."),
    "policy": ("policy:policy", "What the project demands of its models."),
    "storage": ("policy:storage", "What the project stores and may store."),
    "deployments": ("deployments:deployments", "Keep models serving, and see why they run where they do."),
    "predict": ("predict:predict", "Run a model on arrays from a file."),
    "proxy": ("proxy:proxy", "A local plaintext port for unchanged clients, sealed towards the suite."),
    "jobs": ("jobs:jobs", "Work that ends, such as optimising a model."),
    "benchmark": ("benchmark:benchmark", "Tune a variant on this machine and keep the figures."),
    "nodes": ("operations:nodes", "The workers."),
    "peers": ("keys:peers", "Who has joined, and how to put one out."),
    "keys": ("keys:keys", "Signing keys and the intermediate certificate."),
    "accounts": ("accounts:accounts", "Who may call."),
    "roles": ("accounts:roles", "Who may do what."),
    "projects": ("accounts:projects", "The tenants."),
    "issuers": ("issuers:issuers", "External issuers whose tokens the project takes."),
    "backup": ("backup:backup", "Copy everything that the registry keeps."),
    "restore": ("backup:restore", "Make a registry of such a copy."),
    "audit": ("audit:audit", "Who changed what, in logs that show every later edit."),
    "login": ("login:login", "Act as a person, by passphrase."),
    "logout": ("login:logout", "End that, and revoke its tokens."),
    "token": ("login:token", "Print an access token for other tools."),
    "introspect": ("login:introspect", "Whether a token is good, and what it says."),
    "revoke": ("login:revoke", "Take tokens back."),
    "explain": ("decisions:explain", "Why a deployment runs where it does."),
    "optimize": ("decisions:optimize", "Better places for all that serves, found at once."),
    "plan": ("decisions:plan", "Where one would run, without running it."),
}
EXIT_CODES = {
    "INVALID_ARGUMENT": 2,
    "UNAVAILABLE": 3,
    "UNAUTHENTICATED": 4,
    "PERMISSION_DENIED": 4,
    "NOT_FOUND": 5,
    "DEADLINE_EXCEEDED": 124,
}
_INTERRUPTED = 130


class LazyGroup(click.Group):
    """Imports a command only when it is called; the help needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of a first day's work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command, imported now."""
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        return cast(click.Command, getattr(importlib.import_module(f"sealane.cli.{module}"), attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Takes a trained model to cloud and edge machines and keeps it serving there.

    Commands talk to the installation in --data DIR, or in $SEALANE_HOME.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    try:
        code = cli.main(args=arguments, prog_name="sealane", standalone_mode=False)
    except click.exceptions.Abort:
        return _INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SealaneError as error:
        click.echo(describe(error), err=True)
        return EXIT_CODES.get(error.kind, 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `| head` closed it: not worth a word
        return 1
    except OSError as error:
        click.echo(f"error: {error.strerror or error}: {error.filename or ''}".rstrip(": "), err=True)
        return 1
    return code if isinstance(code, int) else 0


def describe(error: SealaneError) -> str:
    """An error in one line: what is wrong and what to do next, and its reason."""
    return f"error: {' '.join(error.message.split())} [{error.reason}]"


def main() -> None:
    """Entry point of the ``sealane`` script."""
    sys.exit(run())
