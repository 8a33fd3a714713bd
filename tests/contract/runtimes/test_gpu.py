"""WORK-8: the same model, the same answers, on the GPU where there is one, in the box that serves it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from small_models import Digits, Perceptron

from sealane_worker.box import Box
from sealane_worker.spec import ModelSpec, Run, Serving

PROVIDERS = onnxruntime.get_available_providers()
pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" not in PROVIDERS, reason=f"no CUDA provider here, ONNX Runtime has {PROVIDERS}"
)


def test_the_gpu_answers_as_the_processor_does(onnx_digits: Path, digits: Digits, perceptron: Perceptron) -> None:
    box = Box.start(ModelSpec("onnxruntime", onnx_digits, serving=Serving(device="cuda")))
    try:
        ran = box.run(Run({"pixels": digits.test}, "serving_default", time.monotonic() + 30))
        assert box.loaded.sandbox in ("full", "partial", "none")
        np.testing.assert_allclose(ran.outputs["probabilities"], perceptron.answers, atol=1e-3)
    finally:
        box.close()
