"""The optimise job on a worker: starts its process, passes progress on, cancels, reads the result.

The work itself is in :mod:`sealane_worker.optimise_process`, which alone imports TensorFlow.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from sealane.errors import BY_KIND, Aborted, Internal, Unimplemented
from sealane_worker import machine
from sealane_worker.child import PASSED_VARIABLES

#: Told from time to time: fraction done (0..1) and what is being done.
Progress = Callable[[float, str], None]

SOURCE_VARIANT = "savedmodel"


@dataclass(frozen=True, slots=True)
class OptimiseSpec:
    """What to optimise; paths on this machine.

    Attributes:
        saved_model: SavedModel folder.
        calibration: ``.npz`` with ``x`` and ``y``: rows that set the int8 ranges.
        test: ``.npz`` with ``x`` and ``y``: rows that accuracy is measured on.
        out: folder for the results.
    """

    saved_model: str
    calibration: str
    test: str
    out: str


@dataclass(frozen=True, slots=True)
class MeasuredVariant:
    """One variant as measured on this machine.

    Attributes:
        name: ``savedmodel``, ``litert-float`` or ``litert-int8``.
        runtime: the runtime that serves it.
        path: its file or folder.
        size_bytes: of all its files.
        accuracy: share of test rows whose largest output is their class.
        p50_us: median latency at batch 1 with one thread, microseconds.
        p99_us: 99th percentile of the same.
        utilisation: processor seconds per second of wall time, running back to back.
    """

    name: str
    runtime: str
    path: str
    size_bytes: int
    accuracy: float
    p50_us: float
    p99_us: float
    utilisation: float


def acceptable(variants: tuple[MeasuredVariant, ...], max_accuracy_drop: float) -> tuple[str, ...]:
    """Names of the variants that lose at most `max_accuracy_drop` against the SavedModel, itself left out."""
    source = next(variant for variant in variants if variant.name == SOURCE_VARIANT)
    return tuple(
        variant.name
        for variant in variants
        # One test row more or less is not decided by the last bit of a float.
        if variant is not source and source.accuracy - variant.accuracy <= max_accuracy_drop + 1e-9
    )


class OptimiseRun:
    """One job's process. Construct, then :meth:`result` in the same thread; :meth:`cancel` from any."""

    def __init__(self, spec: OptimiseSpec) -> None:
        for package in ("tensorflow", "ai_edge_litert"):
            if importlib.util.find_spec(package) is None:
                raise Unimplemented(
                    f"optimise jobs need {package}; run pip install 'sealane[tensorflow,litert]' on this worker",
                    reason="RUNTIME_NOT_INSTALLED",
                )
        self._out = Path(spec.out)
        self._out.mkdir(parents=True, exist_ok=True)
        spec_file = self._out / "SPEC.json"
        spec_file.write_text(json.dumps(asdict(spec)))
        self._cancelled = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sealane_worker.optimise_process", str(spec_file)],
            env={
                **{name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ},
                "LANG": "C.UTF-8",
                "TMPDIR": str(self._out),  # the converter writes the model anew, which goes with the rest
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        # A job is work for every processor, wherever the front keeps to just now.
        os.sched_setaffinity(self._process.pid, machine.processors())

    def cancel(self) -> None:
        """End the process; :meth:`result` then raises Aborted."""
        self._cancelled.set()
        self._process.terminate()
        try:
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def result(self, progress: Progress) -> tuple[MeasuredVariant, ...]:
        """Wait for the end; the variants in the order SavedModel, float, int8.

        Raises:
            Aborted: cancelled (JOB_CANCELLED).
            InvalidArgument, FailedPrecondition: data or model that cannot be used.
            Internal: the process crashed.
        """
        failure: dict[str, str] = {}
        for line in self._lines():
            if "error" in line:
                failure = cast(dict[str, str], line["error"])
            elif "fraction" in line:
                progress(cast(float, line["fraction"]), str(line["message"]))
        status = self._process.wait()
        if self._cancelled.is_set():
            raise Aborted("the job was cancelled", reason="JOB_CANCELLED")
        if failure:
            raise BY_KIND.get(failure["kind"], Internal)(failure["message"], reason=failure["reason"])
        if status != 0:
            raise Internal(
                f"the optimise process ended with status {status}; see the worker's log", reason="JOB_CRASHED"
            )
        told = json.loads((self._out / "RESULT.json").read_text())
        return tuple(MeasuredVariant(**variant) for variant in told["variants"])

    def _lines(self) -> Iterator[dict[str, object]]:
        # Libraries print to stdout too: lines that are not ours are skipped.
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                try:
                    value = json.loads(line)
                except ValueError:
                    continue
                if isinstance(value, dict):
                    yield value
