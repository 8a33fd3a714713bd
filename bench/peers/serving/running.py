"""What every Python server of the bench runs: the same files, one thread a run. Needs numpy, onnxruntime, LiteRT."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np


class OnnxModel:
    """ONNX Runtime, one thread a run."""

    def __init__(self, path: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """One run."""
        return self._session.run(None, {self._input: array})[0]


class LiteRtModel:
    """LiteRT, one interpreter of one thread per calling thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._mine = threading.local()
        self._interpreter()

    def _interpreter(self):
        found = getattr(self._mine, "interpreter", None)
        if found is None:
            from ai_edge_litert.interpreter import Interpreter

            found = Interpreter(model_path=self._path, num_threads=1)
            found.allocate_tensors()
            self._mine.input = found.get_input_details()[0]["index"]
            self._mine.output = found.get_output_details()[0]["index"]
            self._mine.interpreter = found
        return found

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """One run."""
        interpreter = self._interpreter()
        interpreter.set_tensor(self._mine.input, array)
        interpreter.invoke()
        return interpreter.get_tensor(self._mine.output)


def described(folder: str) -> dict[str, dict]:
    """What `models.json` says, by name."""
    return {model["name"]: model for model in json.loads((Path(folder) / "models.json").read_text())}


def load(folder: str, name: str):
    """One model, ready to be called."""
    path = str(Path(folder) / described(folder)[name]["file"])
    return (LiteRtModel if path.endswith(".tflite") else OnnxModel)(path)


DTYPES = {"FP32": np.float32, "UINT8": np.uint8}
