"""SCHED-8: how much faster two workers finish a batch job than one, beside two bare processes, and what a task costs.

``python -m bench.batch_jobs``. A worker has one processor here, and so has a bare process: a machine with fewer than
two processors says so and ends.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sealane.client import Client, connect
from sealane_local import plan
from sealane_local.stack import LocalStack

MODEL = Path(__file__).parents[1] / "examples/digits/light/litert-float.tflite"
ROWS, PER_TASK, BATCH = 400_000, 10_000, 64
TINY = 200
SHARE, OVERHEAD_MS = 0.85, 15.0


def bare(rows: npt.NDArray[np.float32], begin: object, done: object) -> None:
    """The same rows through the same model in this process, `BATCH` at a time, once `begin` opens."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(MODEL), num_threads=1)
    (wanted,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(wanted["index"], (BATCH, *rows.shape[1:]))
    interpreter.allocate_tensors()
    begin.wait()  # type: ignore[attr-defined]
    for first in range(0, len(rows) - BATCH + 1, BATCH):
        interpreter.set_tensor(wanted["index"], rows[first : first + BATCH])
        interpreter.invoke()
        interpreter.get_tensor(made["index"])
    done.put(time.monotonic())  # type: ignore[attr-defined]


def bare_seconds(rows: npt.NDArray[np.float32], processes: int) -> float:
    """Wall time of all rows in so many processes."""
    context = multiprocessing.get_context("spawn")
    begin, done = context.Barrier(processes + 1), context.Queue()
    started = [
        context.Process(target=bare, args=(part, begin, done), daemon=True) for part in np.array_split(rows, processes)
    ]
    for process in started:
        process.start()
    begin.wait()
    begun = time.monotonic()
    ended = max(done.get() for _ in started)
    for process in started:
        process.join()
    return ended - begun


def job_seconds(client: Client, dataset: str, per_task: int, residency: tuple[str, ...] = ()) -> float:
    """Wall time of a batch job, from its creation to its last task."""
    begun = time.monotonic()
    job = client.jobs.batch(
        "digits@latest",
        dataset,
        inputs={"image": "image"},
        rows_per_task=per_task,
        batch_size=BATCH,
        residency=residency,
    )
    client.jobs.wait(job.name, 600)
    return time.monotonic() - begun


def main() -> int:
    """Command line; exits with 1 where it falls short."""
    parser = argparse.ArgumentParser(prog="python -m bench.batch_jobs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        sys.stdout.write("figure: this machine has one processor: not measured\n")
        return 1
    rng = np.random.default_rng(7)
    rows = rng.random((ROWS, 8, 8, 1), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "rows.npz", image=rows)
        np.savez(Path(folder) / "tiny.npz", image=rows[:TINY])
        workers = tuple(replace(item, runtimes=("litert",)) for item in (plan.CLOUD, plan.EDGE))
        with (
            LocalStack(plan.Options(Path(folder) / "stack", workers=workers)),
            connect(Path(folder) / "stack") as client,
        ):
            client.models.push(MODEL, "digits", variant="litert-float", alias="latest")
            for name in ("rows", "tiny"):
                client.datasets.push(Path(folder) / f"{name}.npz", name)
                job_seconds(client, name, PER_TASK)  # models loaded, shards read
            return report(client, rows, wanted.rounds)


def report(client: Client, rows: npt.NDArray[np.float32], rounds: int) -> int:
    """Measure in rounds, each of all four, and say the middle one."""
    shares, overheads, speedups = [], [], []
    for _ in range(rounds):
        one, two = job_seconds(client, "rows", PER_TASK, ("site-a",)), job_seconds(client, "rows", PER_TASK)
        alone, both = bare_seconds(rows, 1), bare_seconds(rows, 2)
        tiny = job_seconds(client, "tiny", 1, ("site-a",)) / TINY * 1000
        speedups.append((one / two, alone / both))
        shares.append(one / two / (alone / both))
        overheads.append(tiny)
        sys.stdout.write(
            f"job {one:.2f} s and {two:.2f} s, bare {alone:.2f} s and {both:.2f} s, a task of one row {tiny:.1f} ms\n"
        )
    middle = sorted(range(rounds), key=lambda index: shares[index])[rounds // 2]
    overhead = sorted(overheads)[rounds // 2]
    ours, theirs = speedups[middle]
    sys.stdout.write(
        f"figure: two workers {ours:.2f} x as fast as one, two bare processes {theirs:.2f} x: "
        f"{shares[middle]:.2f} of it; {overhead:.1f} ms a task of one row\n"
    )
    return 0 if shares[middle] >= SHARE and overhead <= OVERHEAD_MS else 1


if __name__ == "__main__":
    sys.exit(main())
