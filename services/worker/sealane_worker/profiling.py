"""Finds out how a model runs best on this machine: threads, instances, batch. ``python -m sealane_worker.profiling``.

Measured through the box that serves it, so that what is stored with the variant is what callers get. Threads are
chosen for the latency of one row, instances for the throughput of all processors, then every batch size is timed.
Prints one JSON object a line: progress, then the profile.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from sealane.errors import FailedPrecondition, SealaneError
from sealane.tensors import Array, Signature
from sealane_worker import machine
from sealane_worker.box import Box
from sealane_worker.load_check import spec_of
from sealane_worker.model.loading import zeros_for
from sealane_worker.model.queueing import Batching
from sealane_worker.signatures import pick_signature
from sealane_worker.spec import HostPolicy, ModelSpec, Run, size_on_disk
from sealane_worker.statistics import percentile

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
#: A setting that is better by less is noise.
BETTER = 1.05
_WARM_UP = 5
_DEADLINE = 120.0
_ENERGY = Path("/sys/class/powercap/intel-rapl:0/energy_uj")

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class BatchLap:
    """One batch size: microseconds of a run, percentiles 50 and 99."""

    batch_size: int
    p50_us: float
    p99_us: float


@dataclass(frozen=True, slots=True)
class Profile:
    """How a model runs on this machine; see ``sealane.registry.v1.Measurement``.

    Attributes:
        runtime: what it ran with.
        device_class: of this machine.
        threads: processor threads for one run that gave the lowest latency of one row.
        instances: runs at the same time that gave the most rows a second.
        batches: latency by rows a run.
        rows_per_second: at the best batch size with all instances busy.
        best_batch_size: the one behind `rows_per_second`.
        memory_bytes: of the model process.
        utilisation: processor seconds over wall seconds at batch 1, one run after another.
        joules_per_row: 0 where the machine does not tell.
        size_bytes: of the files.
    """

    runtime: str
    device_class: str
    threads: int
    instances: int
    batches: tuple[BatchLap, ...]
    rows_per_second: float
    best_batch_size: int
    memory_bytes: int
    utilisation: float
    joules_per_row: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Bench:
    """How long to measure.

    Attributes:
        seconds: of each setting.
        processors: most threads and most instances to try.
    """

    seconds: float = 1.0
    processors: int = 0

    @property
    def most(self) -> int:
        """Most threads and instances."""
        return self.processors or len(os.sched_getaffinity(0))


def profile(spec: ModelSpec, inputs: dict[str, Array], bench: Bench, progress: Progress, policy: HostPolicy) -> Profile:
    """Measure a model.

    Args:
        spec: what to load; its own threads, instances and batching are what is being looked for.
        inputs: rows of real input by name; empty for zeros.
        bench: how long.
        progress: told the share done and what is being done.
        policy: what models may do here.

    Raises:
        FailedPrecondition: the model takes no zeros and no rows were given.
        SealaneError: see :meth:`sealane_worker.box.Box.start`.
    """
    settings = sorted({1, 2, bench.most} & set(range(1, bench.most + 1)))
    best, one_row, lap = spec, float("inf"), BatchLap(1, 0.0, 0.0)
    utilisation, memory = 0.0, 0
    for index, threads in enumerate(settings):
        progress(0.4 * index / len(settings), f"{threads} threads")
        tried = _with(spec, threads=threads)
        box = Box.start(tried, policy=policy)
        try:
            run = _runner(box, inputs)
            found, used = _laps(box, run(1), bench.seconds)
            if found.p50_us * BETTER < one_row:
                best, one_row, lap, utilisation = tried, found.p50_us, found, used
                memory = box.footprint_bytes()
        finally:
            box.close()
    return _with_instances(best, inputs, bench, progress, (policy, lap, utilisation, memory))


def _with_instances(
    spec: ModelSpec,
    inputs: dict[str, Array],
    bench: Bench,
    progress: Progress,
    known: tuple[HostPolicy, BatchLap, float, int],
) -> Profile:
    policy, lap, utilisation, memory = known
    threads = spec.serving.threads
    most, rate, size, joules = 1, 0.0, 1, 0.0
    laps: tuple[BatchLap, ...] = (lap,)
    counts = sorted({1, max(bench.most // threads, 1)})
    for index, instances in enumerate(counts):
        progress(0.4 + 0.6 * index / len(counts), f"{instances} instances")
        box = Box.start(_with(spec, threads=threads, instances=instances), policy=policy)
        try:
            run = _runner(box, inputs)
            sizes = BATCH_SIZES if _batchable(box) else (1,)
            if instances == 1:
                laps = (lap, *(_laps(box, run(rows), bench.seconds / 2)[0] for rows in sizes[1:]))
            for rows in (1, min(laps, key=lambda item: item.p50_us / item.batch_size).batch_size):
                found, energy = _throughput(box, run(rows), rows, instances, bench.seconds)
                if found > rate * BETTER:
                    most, rate, size, joules = instances, found, rows, energy
        finally:
            box.close()
    return Profile(
        runtime=spec.runtime,
        device_class=machine.device_class(),
        threads=threads,
        instances=most,
        batches=laps,
        rows_per_second=rate,
        best_batch_size=size,
        memory_bytes=memory,
        utilisation=utilisation,
        joules_per_row=joules,
        size_bytes=size_on_disk(spec.path),
    )


def _with(spec: ModelSpec, *, threads: int, instances: int = 1) -> ModelSpec:
    alone = Batching(max_batch_size=1)  # the caller makes the batches here
    return replace(spec, serving=replace(spec.serving, threads=threads, instances=instances, batching=alone))


def _runner(box: Box, inputs: dict[str, Array]) -> Callable[[int], Callable[[], Run]]:
    """Makes makers of requests of so many rows."""
    signature = pick_signature(box.signatures, "")

    def of(rows: int) -> Callable[[], Run]:
        arrays = _rows(signature, inputs, rows)
        return lambda: Run(arrays, signature.name, time.monotonic() + _DEADLINE)

    return of


def _rows(signature: Signature, inputs: dict[str, Array], rows: int) -> dict[str, Array]:
    if inputs:
        given = {name: np.resize(array, (rows, *array.shape[1:])) for name, array in inputs.items()}
        signature.check_inputs(given)
        return given
    zeros = zeros_for(signature, rows)
    if zeros is None:
        raise FailedPrecondition(
            "this model cannot be measured on zeros; give rows of its input with --data", reason="PROFILE_INPUT"
        )
    return zeros


def _batchable(box: Box) -> bool:
    signature = pick_signature(box.signatures, "")
    return all(spec.shape[:1] == (-1,) for spec in (*signature.inputs, *signature.outputs))


def _laps(box: Box, request: Callable[[], Run], seconds: float) -> tuple[BatchLap, float]:
    """Runs one after another: their times as the model takes them, and the processors used."""
    for _ in range(_WARM_UP):
        ran = box.run(request())
    times: list[float] = []
    cpu, wall, until = box.cpu_seconds(), time.monotonic(), time.monotonic() + seconds
    while time.monotonic() < until or len(times) < _WARM_UP:
        ran = box.run(request())
        times.append(ran.seconds)
    used = (box.cpu_seconds() - cpu) / (time.monotonic() - wall)
    times.sort()
    rows = next(iter(request().inputs.values())).shape[0]
    return BatchLap(rows, percentile(times, 0.5) * 1e6, percentile(times, 0.99) * 1e6), used


def _throughput(box: Box, request: Callable[[], Run], rows: int, callers: int, seconds: float) -> tuple[float, float]:
    """Rows a second and joules a row with so many callers, two for each instance so that none waits for a caller."""
    done: list[int] = []
    failures: list[SealaneError] = []
    until = time.monotonic() + seconds

    def call() -> None:
        count = 0
        try:
            while time.monotonic() < until:
                box.run(request())
                count += 1
        except SealaneError as error:
            failures.append(error)
        done.append(count)

    energy, started = _energy_uj(), time.monotonic()
    threads = [threading.Thread(target=call) for _ in range(callers * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, spent = time.monotonic() - started, _energy_uj() - energy
    if failures:
        raise failures[0]
    total = sum(done) * rows
    return total / took, max(spent, 0) / 1e6 / max(total, 1)


def _energy_uj() -> int:
    """The package's energy counter; 0 where the machine has none or keeps it for its administrator."""
    try:
        return int(_ENERGY.read_text())
    except (OSError, ValueError):
        return 0


def _read(path: Path | None) -> dict[str, Array]:
    if path is None:
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m sealane_worker.profiling", description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--format", required=True, help="such as ONNX or SAVED_MODEL")
    parser.add_argument("--runtime", default="")
    parser.add_argument("--data", type=Path, help=".npz with rows of input by name; default zeros")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each setting")
    parser.add_argument("--executable", action="store_true", help="allow formats and steps that hold code")
    wanted = parser.parse_args()

    def tell(line: dict[str, object]) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    try:
        spec = spec_of(wanted.path, wanted.format, wanted.runtime)
        policy = HostPolicy(executable=wanted.executable)
        bench = Bench(wanted.seconds)
        found = profile(
            spec, _read(wanted.data), bench, lambda share, what: tell({"progress": share, "message": what}), policy
        )
    except SealaneError as error:
        tell({"error": {"kind": error.kind, "reason": error.reason, "message": error.message}})
        return 1
    tell({"profile": asdict(found)})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
