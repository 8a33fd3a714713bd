"""A model.py for Triton's Python backend, which runs the ONNX file beside it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# The stub that runs this does not look there itself.
sys.path += os.environ["PYTHONPATH"].split(os.pathsep)

import numpy as np
import onnxruntime
import triton_python_backend_utils as utils


class TritonPythonModel:
    """Asked by Triton."""

    def initialize(self, args):
        (file,) = Path(args["model_repository"], args["model_version"]).glob("*.onnx")
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        # What it is asked is written down, warm-up requests too.
        self.log = Path(args["model_repository"], "asked.log")

    def execute(self, requests):
        answers = []
        for request in requests:
            pixels = utils.get_input_tensor_by_name(request, "pixels").as_numpy()
            with self.log.open("a") as log:
                log.write(f"{len(pixels)} {float(np.sum(pixels, dtype=np.float64)):.3f}\n")
            (answer,) = self.session.run(None, {"pixels": pixels})
            answers.append(utils.InferenceResponse([utils.Tensor("probabilities", answer)]))
        return answers
