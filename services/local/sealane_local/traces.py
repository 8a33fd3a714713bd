"""Reads the span files of a stack and draws the tree of one trace."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SpanLine:
    """One recorded span; times in nanoseconds since 1970."""

    service: str
    name: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, str | int | float]


def read_trace(folder: Path, trace_id: str) -> list[SpanLine]:
    """The spans of a trace from all files of `folder`, by start."""
    spans = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            fields = json.loads(line)
            if fields.pop("trace_id") == trace_id:
                spans.append(SpanLine(**fields))
    return sorted(spans, key=lambda span: span.start_ns)


def wait_for_trace(folder: Path, trace_id: str, services: int, seconds: float = 5.0) -> list[SpanLine]:
    """The same, once spans of at least `services` services have been written, or the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        spans = read_trace(folder, trace_id)
        if len({span.service for span in spans}) >= services or time.monotonic() > deadline:
            return spans
        time.sleep(0.1)


def draw(spans: Sequence[SpanLine]) -> list[str]:
    """The tree, a line a span: indent, service, name, milliseconds."""
    known = {span.span_id for span in spans}
    children: dict[str, list[SpanLine]] = {}
    for span in spans:
        children.setdefault(span.parent_id if span.parent_id in known else "", []).append(span)
    lines: list[str] = []

    def add(span: SpanLine, indent: str, last: bool) -> None:
        took = (span.end_ns - span.start_ns) / 1e6
        branch = "" if not indent and not lines else ("└─ " if last else "├─ ")
        label = f"{indent}{branch}{span.name}"
        lines.append(f"{label:<72} {span.service:<10} {took:8.2f} ms")
        below = children.get(span.span_id, [])
        deeper = indent + ("   " if last else "│  ")
        for index, child in enumerate(below):
            add(child, deeper, index == len(below) - 1)

    roots = children.get("", [])
    for index, root in enumerate(roots):
        add(root, "", index == len(roots) - 1)
    return lines
