"""A runtime of MLServer's own kind."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from running import load


class BenchModel(MLModel):
    """Loads by name from the folder in its settings."""

    async def load(self) -> bool:
        """Load it."""
        self._model = load(self.settings.parameters.uri, self.name)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One run."""
        array = NumpyCodec.decode_input(payload.inputs[0])
        output = NumpyCodec.encode_output(name="y", payload=self._model(array))
        return InferenceResponse(model_name=self.name, outputs=[output])
