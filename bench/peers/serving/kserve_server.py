"""KServe's Python server: ``kserve_server.py FOLDER --grpc_port P --http_port P``."""

from __future__ import annotations

import sys

import kserve
from kserve import InferOutput, InferRequest, InferResponse
from running import described, load


class BenchModel(kserve.Model):
    """One model."""

    def __init__(self, folder: str, name: str) -> None:
        super().__init__(name)
        self._model = load(folder, name)
        self.ready = True

    async def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        """One run."""
        made = self._model(payload.inputs[0].as_numpy())
        output = InferOutput("y", list(made.shape), "FP32")
        output.set_data_from_numpy(made, binary_data=True)
        return InferResponse(payload.id or "1", self.name, [output])


if __name__ == "__main__":
    folder, grpc_port, http_port = sys.argv[1:4]
    sys.argv = sys.argv[:1]
    server = kserve.ModelServer(grpc_port=int(grpc_port), http_port=int(http_port), enable_docs_url=False)
    server.start([BenchModel(folder, name) for name in described(folder)])
