"""Runs tritonclient over HTTP, unmodified, without TLS and without a token, against a local proxy.

Usage: triton_http_plain.py HOST:PORT MODEL INPUTS.npz
Prints one JSON object: the outputs, the same in JSON, in binary, and compressed both ways.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


def main() -> int:
    """Ask about the model, then call it in each form."""
    endpoint, model, inputs = sys.argv[1:4]
    client = triton.InferenceServerClient(endpoint)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model)
    assert [item["name"] for item in client.get_model_metadata(model)["inputs"]] == list(np.load(inputs))
    found = []
    for binary, coding in ((False, None), (True, None), (True, "gzip"), (False, "deflate")):
        tensors = []
        for name, array in dict(np.load(inputs)).items():
            tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array, binary_data=binary)
            tensors.append(tensor)
        wanted = [triton.InferRequestedOutput("probabilities", binary_data=binary)]
        result = client.infer(
            model,
            tensors,
            outputs=wanted,
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,
        )
        found.append(result.as_numpy("probabilities").tolist())
    assert all(np.allclose(item, found[0], atol=1e-6) for item in found)
    try:
        client.infer("nobody", tensors)
    except InferenceServerException as refused:
        assert refused.status() == "404", refused
    else:
        raise AssertionError("an unknown model was answered")
    print(json.dumps({"probabilities": found[0]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
