"""What the bench found: JSON, docs/peers.md with tables, and plots as SVG. Numbers are medians of the rounds."""

from __future__ import annotations

import datetime
import html
import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.peers.models import MODELS
from bench.peers.rounds import Cell, Plan, Row

#: Measured for the design on another run of two Zen 5 cores (plaintext, no authentication): Triton with its C++ ONNX
#: Runtime backend, which no package index has. Model -> (callers -> requests a second, p50 of one caller in us).
TRITON_CPP = {"mlp": ({8: 23320, 32: 27545}, 149), "image": ({8: 4560}, 226), "mobilenetv2": ({8: 254}, None)}
#: Share of the processors in other hands above which a run says little.
BUSY = 0.05
SEALANE, TRITON = "sealane", "triton"
#: Peers and the least ratio of our throughput to theirs, on the small models.
BOUNDS = {
    "mlserver": {"mlp": 1.5, "image": 1.5},
    "litserve": {"mlp": 1.5, "image": 1.5},
    "bentoml": {"mlp": 1.5, "image": 1.5},
    "ray": {"mlp": 1.5, "image": 1.5},
    "pytriton": {"mlp": 1.5, "image": 1.5},
    "kserve": {"mlp": 1.2, "image": 0.9},
}


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise and what was found."""

    id: str
    figure: str
    holds: bool


class Findings:
    """All cells, asked by server, model and callers."""

    def __init__(self, rows: list[Row], cells: list[Cell], plan: Plan, others: float) -> None:
        self.rows, self.cells, self.plan, self.others = rows, cells, plan, others

    def median(self, server: str, model: str, concurrency: int, what: str) -> float | None:
        """Median over the rounds; None where it was not measured."""
        found = [
            float(getattr(cell, what))
            for cell in self.cells
            if (cell.server, cell.model, cell.concurrency) == (server, model, concurrency) and cell.rps > 0
        ]
        return statistics.median(found) if found else None

    def ratio(self, ours: str, theirs: str, model: str, concurrency: int, what: str = "rps") -> float | None:
        """Ours by theirs."""
        above, below = (self.median(each, model, concurrency, what) for each in (ours, theirs))
        return above / below if above and below else None


def promises(found: Findings) -> list[Promise]:
    """WORK-2 and WORK-4, as far as they were measured; WORK-3 wants cores that the client has no part of."""
    kept = []
    laps = {model: found.ratio(SEALANE, "floor", model, 1, "p50_us") for model in ("mean-1k", "mean-150k")}
    cpu = found.ratio(SEALANE, "floor", "mean-1k", 1, "cpu_us")
    if all(laps.values()) and cpu:
        text = ", ".join(f"p50 {ratio:.2f} times the floor at {model[5:]}" for model, ratio in laps.items())
        holds = all((ratio or 9) <= 1.5 for ratio in laps.values()) and cpu <= 1.8
        kept.append(Promise("WORK-2", f"{text}, CPU {cpu:.2f} times", holds))
    ratios = [
        (peer, model, found.ratio(SEALANE, peer, model, 8), bound)
        for peer, bounds in BOUNDS.items()
        for model, bound in bounds.items()
    ]
    measured = [(peer, model, ratio, bound) for peer, model, ratio, bound in ratios if ratio]
    if measured:
        text = ", ".join(f"{peer} {model} {ratio:.2f}" for peer, model, ratio, _ in measured)
        missing = [f"{peer} {model}" for peer, model, ratio, _ in ratios if not ratio]
        text += f"; not measured: {', '.join(missing)}" if missing else ""
        holds = not missing and all(ratio >= bound for _, _, ratio, bound in measured)
        kept.append(Promise("WORK-4", f"throughput by theirs, 8 callers: {text}", holds))
    return kept


def triton(found: Findings) -> str:
    """The ratio to Triton, and to what its C++ backend did elsewhere."""
    parts = []
    for model in ("mlp", "image", "mobilenetv2", "mobilenetv2-int8"):
        ratio = found.ratio(SEALANE, TRITON, model, 8)
        if ratio:
            parts.append(f"{MODELS[model].title} {ratio:.2f}")
    return f"requests a second by those of Triton's Python backend, 8 callers: {', '.join(parts) or 'not measured'}"


def save(found: Findings, folder: Path) -> Path:
    """All cells as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.date.today().isoformat()}.json"
    content = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "others": round(found.others, 3),
        "rounds": found.plan.rounds,
        "seconds": found.plan.seconds,
        "servers": [asdict(row) for row in found.rows],
        "cells": [asdict(cell) for cell in found.cells],
        "promises": [asdict(each) for each in promises(found)],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def machine() -> str:
    """Of this run, in words."""
    named = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = named[0].partition(":")[2].strip() if named else platform.machine()
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores shared by client and server, Python {platform.python_version()}"
    )


HEAD = """# Peers

What a prediction costs here and elsewhere: one machine, one run, one client for all (`make bench-peers` rewrites this
page). Times and rates hold for the machine below; read the ratios.

* Servers take turns; rounds: {rounds}, a cell: {seconds:g} s; every number is the median of the rounds.
* The client is `bench/peers/grpcload.cc` (C++, closed loop) for gRPC and `wrk` (C) where a server has only HTTP. Client
  and server share the processors.
* All serve the same files with one thread a run. gRPC requests are the same bytes: Open Inference with raw contents.
* CPU is what the server's processes and all that they started used per answer, from `/proc`. PSS counts shared pages
  once; both are of the server with all models loaded and after the runs.
* **Sealane has everything on**: TLS 1.3, a verified token, 1 % of calls traced, the model in a sandboxed process of its
  own. A worker cannot be started without these. "Direct" has the native front; a worker without Rust's extension has
  the one in Python. The row "bare parts" is that one and the model processes put together without TLS, token and trace,
  only to tell what these cost. The peers run bare: plaintext, nobody asks who calls, the model inside or beside the
  server without a sandbox.

Machine: {machine}, {date}. Other work used {others:.0%} of its processors during the run{warning}.
"""


def document(found: Findings) -> str:
    """docs/peers.md."""
    head = HEAD.format(
        rounds=found.plan.rounds,
        seconds=found.plan.seconds,
        machine=machine(),
        others=found.others,
        warning=" (**too much for figures to be trusted**)" if found.others > BUSY else "",
        date=datetime.date.today().isoformat(),
    )
    parts = [head, "## Promises\n", *(_promise_line(each) for each in promises(found))]
    parts += ["", *_triton_lines(found)]
    for name in (each for each in found.plan.models if _callers(found, each)):
        parts += [f"\n## {MODELS[name].title}\n", f"![{MODELS[name].title}](peers/{name}.svg)\n", _table(found, name)]
    parts += ["\n## Servers\n", _servers(found)]
    return "\n".join(parts) + "\n"


def _promise_line(promise: Promise) -> str:
    return f"* {promise.id}: {promise.figure}: {'holds' if promise.holds else '**falls short**'}"


def _triton_lines(found: Findings) -> list[str]:
    told = []
    for model, (rates, p50) in TRITON_CPP.items():
        rate = ", ".join(f"{value:,} requests/s with {callers} callers" for callers, value in rates.items())
        told.append(f"  * {MODELS[model].title}: {rate}" + (f", p50 {p50} us with one" if p50 else ""))
    return [
        f"Against Triton: {triton(found)}.",
        "Below 1 Triton is faster. Its C++ backends are in no package index and not part of this run. What its ONNX",
        "Runtime backend did when the design was measured (one instance of one thread, plaintext, two Zen 5 cores,",
        "another run):",
        "",
        *told,
        "",
        "There a bare gRPC echo took 27 us of processor time in C++ and 130 to 135 us in Python. What is left of the",
        "distance is the model process, which is Python with one packet in and one out.",
    ]


def _table(found: Findings, model: str) -> str:
    callers = _callers(found, model)
    columns = ["server", "p50 us, 1 caller", "p99 us, 1 caller", *(f"req/s, {each}" for each in callers), "CPU us/req"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in found.rows:
        cells = [_number(found.median(row.name, model, 1, what)) for what in ("p50_us", "p99_us")]
        cells += [_number(found.median(row.name, model, each, "rps")) for each in callers]
        cells.append(_number(found.median(row.name, model, 8 if 8 in callers else callers[-1], "cpu_us")))
        if any(cell != "-" for cell in cells):
            lines.append(f"| {_strong(row)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _servers(found: Findings) -> str:
    lines = ["| server | configuration | RSS MB | PSS MB |", "|---|---|---|---|"]
    for row in found.rows:
        told = f"**left out: {row.absent}**" if row.absent else "; ".join([row.configuration, *_some(row.notes)])
        told = told.replace("|", "/").replace("\n", " ")
        lines.append(f"| {_strong(row)} | {told} | {_number(row.rss_mb or None)} | {_number(row.pss_mb or None)} |")
    return "\n".join(lines)


def _some(notes: list[str]) -> list[str]:
    return [f"**{note}**" for note in dict.fromkeys(notes)][:4]


def _callers(found: Findings, model: str) -> list[int]:
    measured = {cell.concurrency for cell in found.cells if cell.model == model}
    return [each for each in found.plan.concurrencies if each in measured]


def _strong(row: Row) -> str:
    return f"**{row.title}**" if row.name.startswith(SEALANE) else row.title


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def plot(found: Findings, model: str) -> str:
    """Bars of one model: requests a second with eight callers, and the time of one caller."""
    panels = [
        ("requests a second, 8 callers (more is better)", 8, "rps"),
        ("median time of one caller, microseconds (less is better)", 1, "p50_us"),
    ]
    parts, top = [], 44
    for title, concurrency, what in panels:
        bars = [(row, found.median(row.name, model, concurrency, what)) for row in found.rows]
        drawn, top = _panel(title, [(row, value) for row, value in bars if value], top)
        parts.append(drawn)
    title = html.escape(MODELS[model].title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {top}" width="760" height="{top}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img">'
        f'<title>{title}</title><rect width="760" height="{top}" fill="#ffffff"/>'
        f'<text x="12" y="24" font-size="15" font-weight="600" fill="#1f2933">{title}</text>{"".join(parts)}</svg>\n'
    )


def _panel(title: str, bars: list[tuple[Row, float]], top: int) -> tuple[str, int]:
    most = max((value for _, value in bars), default=1.0)
    parts = [f'<text x="12" y="{top + 10}" fill="#52606d">{html.escape(title)}</text>']
    y = top + 20
    for row, value in bars:
        colour = "#0b69a3" if row.name.startswith(SEALANE) else "#cbd2d9" if "floor" in row.title else "#829ab1"
        length = max(1.0, 380 * value / most)
        parts.append(
            f'<text x="268" y="{y + 12}" text-anchor="end" fill="#1f2933">{html.escape(row.title)}</text>'
            f'<rect x="276" y="{y}" width="{length:.1f}" height="15" fill="{colour}"/>'
            f'<text x="{282 + length:.1f}" y="{y + 12}" fill="#1f2933">{value:,.0f}</text>'
        )
        y += 20
    return "".join(parts), y + 14


def write(found: Findings, docs: Path) -> None:
    """The page and its plots."""
    (docs / "peers").mkdir(parents=True, exist_ok=True)
    for model in (each for each in found.plan.models if _callers(found, each)):
        (docs / "peers" / f"{model}.svg").write_text(plot(found, model))
    (docs / "peers.md").write_text(document(found))
