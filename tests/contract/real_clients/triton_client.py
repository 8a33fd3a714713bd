"""Runs tritonclient, unmodified, against an Open Inference server with TLS and a token.

Usage: triton_client.py HOST:PORT CA_FILE TOKEN MODEL INPUTS.npz [TLS_NAME]
Prints one JSON object: what the server says of itself and the model, and its outputs.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype


class Token(triton.InferenceServerClientPlugin):
    """Sends the token with every call."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: object) -> None:
        request.headers["authorization"] = f"Bearer {self._token}"  # type: ignore[attr-defined]


def main() -> int:
    """Call every core RPC once."""
    endpoint, ca_file, token, model, inputs = sys.argv[1:6]
    tls_name = sys.argv[6] if len(sys.argv) > 6 else "inference.service.sealane"
    client = triton.InferenceServerClient(
        endpoint, ssl=True, root_certificates=ca_file, channel_args=[("grpc.ssl_target_name_override", tls_name)]
    )
    client.register_plugin(Token(token))
    arrays = dict(np.load(inputs))
    tensors = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    metadata = client.get_model_metadata(model)
    result = client.infer(model, tensors, request_id="r1", client_timeout=30)
    outputs = {output.name: result.as_numpy(output.name).tolist() for output in metadata.outputs}
    print(
        json.dumps(
            {
                "live": client.is_server_live(),
                "ready": client.is_server_ready() and client.is_model_ready(model),
                "server": client.get_server_metadata().name,
                "inputs": [tensor.name for tensor in metadata.inputs],
                "version": result.get_response().model_version,
                "id": result.get_response().id,
                "outputs": outputs,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
