"""What the steps of the demo share."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sealane.client import Client
from sealane_local.demo.report import Report
from sealane_local.stack import LocalStack

MODEL = "digits"
CAMERA_A, CAMERA_B, ACCURATE = "camera-a", "camera-b", "accurate"
EDGE, CLOUD = "edge-1", "cloud-1"
SITE = "site-a"


@dataclass(slots=True)
class World:
    """The running suite, the test set, and what the demo has found so far."""

    stack: LocalStack
    client: Client
    report: Report
    light: bool
    files: Path
    """Folder with the model and its data."""
    version: str = ""
    test_x: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    test_y: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    trace_id: str = ""

    @property
    def data(self) -> Path:
        """Folder of the stack."""
        return self.stack.options.data

    def load_test_set(self) -> None:
        """Read the rows that neither training nor calibration has seen."""
        with np.load(self.files / "test.npz") as arrays:
            self.test_x, self.test_y = arrays["x"].astype(np.float32), arrays["y"].astype(np.int64)

    @property
    def endpoints(self) -> dict[str, str]:
        """Addresses by name."""
        addresses: dict[str, str] = json.loads((self.data / "endpoints.json").read_text())
        return addresses

    def endpoint(self, name: str) -> str:
        """Address of a service."""
        return self.endpoints[name]

    def accuracy_of(self, probabilities: npt.NDArray[np.generic]) -> float:
        """Share of right answers."""
        return float(np.mean(np.argmax(probabilities, axis=1) == self.test_y))


@dataclass(frozen=True, slots=True)
class Timing:
    """Latencies of a series of calls in milliseconds."""

    p50: float
    p99: float


def timing(seconds: list[float]) -> Timing:
    """Percentiles of measured seconds."""
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return Timing(round(float(p50), 3), round(float(p99), 3))


class Stopwatch:
    """Measures a series of steps."""

    def __init__(self) -> None:
        self.laps: list[float] = []
        self._last = time.perf_counter()

    def start(self) -> None:
        """A step begins."""
        self._last = time.perf_counter()

    def lap(self) -> None:
        """It ended."""
        self.laps.append(time.perf_counter() - self._last)
