"""A box around the runtime in tests/fakes/hostile, and one word with its model."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from sealane_worker.box import Box, BoxLimits
from sealane_worker.model.queueing import Batching
from sealane_worker.spec import HostPolicy, ModelSpec, Ran, Run, Serving

HOSTILE = Path(__file__).parents[2] / "fakes" / "hostile"


def spec_of(folder: Path, batching: Batching | None = None, *, instances: int = 1, at_load: str = "") -> ModelSpec:
    """A hostile model on disk."""
    path = folder / "model" / "model.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(at_load)
    return ModelSpec("hostile", path, serving=Serving(batching=batching or Batching(), instances=instances))


def find_hostile(patch: pytest.MonkeyPatch) -> None:
    """Let this process and its model processes find the runtime."""
    patch.syspath_prepend(str(HOSTILE))
    patch.setenv("PYTHONPATH", str(HOSTILE))


def start(
    folder: Path, patch: pytest.MonkeyPatch, limits: BoxLimits, policy: HostPolicy | None = None, *, at_load: str = ""
) -> Box:
    """A hostile model in its box."""
    find_hostile(patch)
    return Box.start(spec_of(folder, at_load=at_load), limits, policy)


def ask(*texts: str, seconds: float = 10.0, priority: int = 0, flow: int = 0) -> Run:
    """A request of one row per text."""
    rows = np.array([text.encode() for text in texts], np.object_)
    return Run({"do": rows}, "serving_default", time.monotonic() + seconds, (), priority, flow)


def said(ran: Ran) -> list[str]:
    """What the model said, row by row."""
    return [bytes(item).decode() for item in ran.outputs["said"].tolist()]


def say(box: Box, text: str, seconds: float = 10.0) -> str:
    """What the model says to one word."""
    return said(box.run(ask(text, seconds=seconds)))[0]
