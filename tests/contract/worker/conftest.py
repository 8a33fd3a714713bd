"""The example's light model, and limits that let crashes be tested in tenths of a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sealane.tensors import Array
from sealane_worker.box import BoxLimits
from sealane_worker.spec import ModelSpec

LIGHT = Path(__file__).parents[3] / "examples/digits/light"


@pytest.fixture
def int8_spec() -> ModelSpec:
    """The int8 digits model."""
    return ModelSpec("litert", LIGHT / "litert-int8.tflite")


@pytest.fixture
def quick() -> BoxLimits:
    """Limits for tests."""
    return BoxLimits(load=20, hang=0.3, backoff_first=0.02, crash_window=60)


@pytest.fixture(scope="session")
def digits() -> tuple[Array, Array]:
    """Test images (360, 8, 8, 1) and their digits."""
    with np.load(LIGHT / "test.npz") as archive:
        return archive["x"], archive["y"]
