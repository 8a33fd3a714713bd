"""Runs tritonclient, unmodified, against an Open Inference server with TLS and a token.

Usage: triton_client.py HOST:PORT CA_FILE TOKEN MODEL INPUTS.npz [TLS_NAME] [--refusals]
Prints one JSON object: what the server says of itself and the model, its outputs, and with --refusals the
codes that a call without a token, with inputs of another rank and for an unknown model ends with.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


class Token(triton.InferenceServerClientPlugin):
    """Sends the token with every call."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: object) -> None:
        request.headers["authorization"] = f"Bearer {self._token}"  # type: ignore[attr-defined]


def tensors_of(arrays: dict[str, np.ndarray]) -> list[triton.InferInput]:
    """Inputs as users of this package write them."""
    tensors = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


def code_of(client: triton.InferenceServerClient, model: str, arrays: dict[str, np.ndarray]) -> str:
    """The code of the error that the client raises."""
    try:
        client.infer(model, tensors_of(arrays), client_timeout=30)
    except InferenceServerException as failure:
        return str(failure.status()).removeprefix("StatusCode.")
    return "OK"


def main() -> int:
    """Call every core RPC once."""
    positional = [argument for argument in sys.argv[1:] if argument != "--refusals"]
    endpoint, ca_file, token, model, inputs = positional[:5]
    tls_name = positional[5] if len(positional) > 5 else "inference.service.sealane"
    options = [("grpc.ssl_target_name_override", tls_name)]

    def connect() -> triton.InferenceServerClient:
        return triton.InferenceServerClient(endpoint, ssl=True, root_certificates=ca_file, channel_args=options)

    client = connect()
    client.register_plugin(Token(token))
    arrays = dict(np.load(inputs))
    metadata = client.get_model_metadata(model)
    result = client.infer(model, tensors_of(arrays), request_id="r1", client_timeout=30)
    report: dict[str, object] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready() and client.is_model_ready(model),
        "server": client.get_server_metadata().name,
        "inputs": [tensor.name for tensor in metadata.inputs],
        "version": result.get_response().model_version,
        "id": result.get_response().id,
        "outputs": {output.name: result.as_numpy(output.name).tolist() for output in metadata.outputs},
    }
    if "--refusals" in sys.argv:
        flat = {name: array.reshape(len(array), -1) for name, array in arrays.items()}
        report["refused"] = {
            "no_token": code_of(connect(), model, arrays),
            "wrong_shape": code_of(client, model, flat),
            "unknown_model": code_of(client, "nobody", arrays),
        }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
