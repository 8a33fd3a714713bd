"""LitServe: ``litserve_server.py FOLDER PORT WORKERS``. Tensors travel as base64 in JSON."""

from __future__ import annotations

import base64
import sys

import litserve
import numpy as np
from running import DTYPES, described, load


class BenchApi(litserve.LitAPI):
    """One model."""

    def __init__(self, folder: str, name: str) -> None:
        super().__init__(api_path=f"/{name}")
        self._folder, self.name = folder, name
        self._tensor = described(folder)[name]

    def setup(self, device: str) -> None:
        """Load it, in the worker."""
        self._model = load(self._folder, self.name)

    def decode_request(self, request):
        """JSON to a tensor."""
        array = np.frombuffer(base64.b64decode(request["x"]), DTYPES[self._tensor["datatype"]])
        return array.reshape(self._tensor["shape"])

    def predict(self, x):
        """One run."""
        return self._model(x)

    def encode_response(self, output):
        """A tensor to JSON."""
        return {"y": base64.b64encode(output.tobytes()).decode()}


if __name__ == "__main__":
    folder, port, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    apis = [BenchApi(folder, name) for name in described(folder)]
    heavy = [workers if api.name.startswith("mobilenet") else 1 for api in apis]
    server = litserve.LitServer(apis, accelerator="cpu", workers_per_device=heavy)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
