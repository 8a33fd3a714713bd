"""A runtime whose model takes 20 ms a call, and counts the calls that it began after their deadline.

The deadline is an input, on the clock that all processes of a machine share, so that nobody between the caller and the
model has a say in it. The counts are the answer, to whoever asks last.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sealane.tensors import Array, Signature, TensorSpec
from sealane_worker.runtimes import RuntimeInfo, RuntimeOptions

SECONDS = 0.020


class Slow:
    """The model."""

    def load(self, path: Path, options: RuntimeOptions) -> tuple[Signature, ...]:
        """One input, one output."""
        self._begun = self._late = 0
        spec = TensorSpec("deadline", "FP64", (-1, 1))
        return (Signature((spec,), (TensorSpec("counts", "FP64", (-1, 2)),)),)

    def run(self, inputs: Mapping[str, Array], signature_name: str) -> dict[str, Array]:
        """Sleep; a deadline of 0 is that of nobody."""
        begun = time.monotonic()
        deadline = float(inputs["deadline"][0, 0])
        if deadline:
            self._begun += 1
            self._late += begun > deadline
        time.sleep(SECONDS)
        return {"counts": np.array([[self._begun, self._late]], np.float64)}

    def close(self) -> None:
        """Nothing is left."""


RUNTIME = RuntimeInfo("slow", ("SLOW",), "sealane_slow", ("slow",), "sealane_slow", Slow)
