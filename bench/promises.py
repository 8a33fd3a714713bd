"""Runs the promises of bench/promises.toml and rewrites docs/promises.md with what they print."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "promises.md"
HEAD = """# Promises

What the suite promises, each with the command that shows it. `make promises [AREA=...] [LONG=1]` runs them and
rewrites this table; times are of the machine and day named in the row.

| id | promise | bound | figure | holds | command | machine, date |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise."""

    id: str
    area: str
    sentence: str
    bound: str
    command: str
    long: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What its command showed."""

    holds: str
    figure: str


def run(promise: Promise) -> Outcome:
    """Run one command: exit status 0 holds, but not where every test was skipped."""
    done = subprocess.run(
        [sys.executable, *shlex.split(promise.command)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    lines = done.stdout.strip().splitlines()
    # pytest's dots may stand before what a test prints.
    figures = [line.partition("figure: ")[2] for line in lines if "figure: " in line]
    figure = "; ".join(figures) if figures else (lines[-1] if lines else "printed nothing").strip("= ")
    if done.returncode == 0 and "skipped" in figure and " passed" not in figure:
        return Outcome("not shown here", figure)
    if done.returncode != 0:
        print("\n".join(lines[-30:]), done.stderr[-3000:], sep="\n", file=sys.stderr)
    return Outcome("holds" if done.returncode == 0 else "falls short", figure)


def rewrite(outcomes: dict[str, Outcome], promises: list[Promise]) -> None:
    """Put new rows into the table and keep the rows of what was not run."""
    old = {line.split("|")[1].strip(): line for line in _rows()}
    where = f"{platform.machine()}, {os.cpu_count()} cores, {datetime.date.today().isoformat()}"
    for promise in promises:
        outcome = outcomes.get(promise.id)
        if outcome is None:
            old.setdefault(promise.id, _row(promise, Outcome("not run yet", "-"), "-"))
        else:
            old[promise.id] = _row(promise, outcome, where)
    known = [promise.id for promise in promises]
    TABLE.write_text(HEAD + "\n".join(old[name] for name in known) + "\n")


def _rows() -> list[str]:
    if not TABLE.exists():
        return []
    return [line for line in TABLE.read_text().splitlines() if re.match(r"\| [A-Z]+-\d+ ", line)]


def _row(promise: Promise, outcome: Outcome, where: str) -> str:
    cells = (
        promise.id,
        promise.sentence,
        promise.bound,
        outcome.figure,
        outcome.holds,
        f"`python {promise.command}`",
        where,
    )
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def main() -> int:
    """Run an area; 1 where a promise falls short."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--area", default="")
    parser.add_argument("--only", nargs="*", default=[], metavar="ID", help="these promises alone, long ones too")
    parser.add_argument("--long", action="store_true")
    arguments = parser.parse_args()
    entries = tomllib.loads((ROOT / "bench" / "promises.toml").read_text())["promise"]
    promises = [Promise(**entry) for entry in entries]
    outcomes: dict[str, Outcome] = {}
    for promise in promises:
        wanted = arguments.area in ("", promise.area) and (arguments.long or not promise.long)
        if promise.id not in arguments.only and (arguments.only or not wanted):
            continue
        outcomes[promise.id] = outcome = run(promise)
        print(f"{promise.id:<8} {outcome.holds:<14} {outcome.figure}   (bound: {promise.bound})", flush=True)
    rewrite(outcomes, promises)
    return 1 if any(outcome.holds == "falls short" for outcome in outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
