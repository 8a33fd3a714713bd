"""``model.py`` of the Triton Python backend."""

from __future__ import annotations

import json

import triton_python_backend_utils as triton
from running import load


class TritonPythonModel:
    """One instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model."""
        config = json.loads(args["model_config"])
        folder = config["parameters"]["models"]["string_value"]
        self._model = load(folder, config["name"])

    def execute(self, requests: list) -> list:
        """Run each request."""
        responses = []
        for request in requests:
            array = triton.get_input_tensor_by_name(request, "x").as_numpy()
            responses.append(triton.InferenceResponse([triton.Tensor("y", self._model(array))]))
        return responses
