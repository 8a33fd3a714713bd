"""What the demo found out: printed as it goes, kept in ``report.json``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path


class Report:
    """Collects figures under dotted names."""

    def __init__(self) -> None:
        self._values: dict[str, object] = {}
        self._started = time.monotonic()
        self._failures: list[str] = []

    def step(self, number: int, title: str) -> None:
        """Print a heading."""
        print(f"\n{number}. {title}  [{time.monotonic() - self._started:.0f} s]")

    def say(self, line: str) -> None:
        """Print a line."""
        print(f"   {line}")

    def put(self, name: str, value: object) -> None:
        """Keep a value under a dotted name."""
        *path, last = name.split(".")
        place = self._values
        for part in path:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise TypeError(f"{name}: {part} holds a value")
            place = inner
        place[last] = value

    def expect(self, holds: bool, sentence: str) -> None:
        """Say whether something that must hold does; a failure makes the demo fail."""
        print(f"   {'ok  ' if holds else 'FAIL'} {sentence}")
        if not holds:
            self._failures.append(sentence)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table."""
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
        for row in [head, *rows]:
            print("   " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    @property
    def ok(self) -> bool:
        """Whether everything held."""
        return not self._failures

    def write(self, path: Path) -> None:
        """Write ``report.json``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = round(time.monotonic() - self._started, 1)
        content = {"ok": self.ok, "failures": self._failures, "seconds": seconds, **self._values}
        path.write_text(json.dumps(content, indent=2) + "\n")
