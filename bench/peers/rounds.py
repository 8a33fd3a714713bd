"""The measuring: every server in turn, round after round, one client, the same requests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
from bench.peers import processes
from bench.peers.load import Client, Lap
from bench.peers.models import MODELS, Model
from bench.peers.servers import CORES, HERE, NotStarted, Server, Site

IN_PROCESS = "in-process"
WARM_SECONDS = 0.2
#: Rounding of other kernels, and of int8.
TOLERANCES = {"FP32": 1e-3, "UINT8": 0.3}


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement."""

    server: str
    model: str
    concurrency: int
    rps: float
    p50_us: float
    p99_us: float
    cpu_us: float
    errors: int


@dataclass(slots=True)
class Row:
    """What is known of one server."""

    name: str
    title: str
    configuration: str
    rss_mb: float = 0.0
    pss_mb: float = 0.0
    absent: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure."""

    models: tuple[str, ...]
    concurrencies: tuple[int, ...]
    rounds: int
    seconds: float


def in_process(site: Site, model: Model, concurrency: int, seconds: float) -> Cell:
    """The runtime alone, with as many threads as callers but no more than processors."""
    threads = min(concurrency, CORES)
    script = HERE / "serving" / "floor.py"
    command = [sys.executable, str(script), "run", str(site.models), model.name, str(threads), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    cpu = found["cpu_s"] * 1e6 / max(1, found["ok"])
    return Cell(IN_PROCESS, model.name, concurrency, found["rps"], found["p50_us"], found["p99_us"], cpu, 0)


def expected(site: Site, names: Iterable[str]) -> dict[str, npt.NDArray[np.float32]]:
    """What every server must answer, from the runtimes themselves."""
    sys.path.insert(0, str(HERE / "serving"))
    try:
        import running
    finally:
        sys.path.pop(0)
    return {name: running.load(str(site.models), name)(MODELS[name].sample()).ravel() for name in names}


@dataclass
class Bench:
    """A run of the whole bench; `others` is the share of the processors that other work on the machine used."""

    site: Site
    client: Client
    plan: Plan
    tell: Callable[[str], None]
    rows: dict[str, Row] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    wanted: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    others: float = 0.0

    def run(self, servers: list[Server], absent: dict[str, str], *, alone: bool = True) -> None:
        """All rounds; `alone` measures the runtimes without a server as well."""
        self.wanted = expected(self.site, self.plan.models)
        self.rows = {each.name: Row(each.name, each.title, each.configuration) for each in servers}
        for name, reason in absent.items():
            self.rows[name].absent = reason
        if alone:
            told = "the runtime alone, as many threads as callers but at most the processors"
            self.rows = {IN_PROCESS: Row(IN_PROCESS, "floor: runtime in process, no server", told), **self.rows}
        began, used = time.monotonic(), _foreign_us()
        for number in range(self.plan.rounds):
            if alone:
                self._alone()
            for server in servers:
                if not self.rows[server.name].absent:
                    self.tell(f"round {number + 1} of {self.plan.rounds}: {server.title}")
                    self._measure(server)
        self.others = max(0.0, (_foreign_us() - used) / 1e6 / (time.monotonic() - began) / CORES)

    def _alone(self) -> None:
        for name in self.plan.models:
            for concurrency in self._concurrencies(name):
                if concurrency <= 8:  # more callers than that are more of the same
                    self.cells.append(in_process(self.site, MODELS[name], concurrency, self.plan.seconds))

    def _measure(self, server: Server) -> None:
        row = self.rows[server.name]
        try:
            with _started(server, self.site):
                for name in self.plan.models:
                    if name in server.models:
                        self._model(server, row, MODELS[name])
                used = processes.memory(server.pids())
                row.rss_mb, row.pss_mb = max(row.rss_mb, used.rss), max(row.pss_mb, used.pss)
        except NotStarted as reason:
            row.absent = str(reason)
            self.tell(f"  left out: {reason}")

    def _model(self, server: Server, row: Row, model: Model) -> None:
        endpoint = server.endpoint(model)
        if not self.client.can(endpoint):
            raise NotStarted("its client is not installed here: apt-get install wrk")
        try:
            answer = server.decode(endpoint.ask(20.0))
        except (OSError, grpc.RpcError) as error:
            row.notes.append(f"{model.name}: {error}"[:200])
            return
        if answer.size and not np.allclose(answer, self.wanted[model.name], atol=TOLERANCES[model.datatype], rtol=1e-3):
            row.notes.append(f"{model.name}: answers differ from the runtime's own")
        if not endpoint.content_type:
            self.client.run(endpoint, 2, WARM_SECONDS)
        for concurrency in self._concurrencies(model.name):
            before = processes.cpu_us(server.pids())
            lap = self.client.run(endpoint, concurrency, self.plan.seconds)
            spent = processes.cpu_us(server.pids()) - before
            self.cells.append(_cell(server.name, model.name, concurrency, lap, spent))
            if lap.errors:
                row.notes.append(f"{model.name}, {concurrency} callers: {lap.errors} errors, such as {lap.error!r}")

    def _concurrencies(self, model: str) -> tuple[int, ...]:
        """All for the small models; the networks are busy with eight callers already."""
        small = model in ("mlp", "image")
        return tuple(each for each in self.plan.concurrencies if small or each <= 8)


@contextmanager
def _started(server: Server, site: Site) -> Iterator[None]:
    server.start(site)
    try:
        yield
    finally:
        server.stop()


def _foreign_us() -> float:
    """Processor time of everything that this bench did not start."""
    return processes.machine_us() - processes.cpu_us([os.getpid()])


def _cell(server: str, model: str, concurrency: int, lap: Lap, spent_us: float) -> Cell:
    return Cell(server, model, concurrency, lap.rps, lap.p50_us, lap.p99_us, spent_us / max(1, lap.ok), lap.errors)


def site(environments: Path, work: Path) -> Site:
    """The folders of a run."""
    return Site(environments, environments / "models", work)
