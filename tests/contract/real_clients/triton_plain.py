"""Runs tritonclient, unmodified, without TLS and without a token, against a local proxy.

Usage: triton_plain.py HOST:PORT MODEL INPUTS.npz
Prints one JSON object: the outputs, the same over a stream.
"""

from __future__ import annotations

import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype


def main() -> int:
    """Call it once, and once over a stream."""
    endpoint, model, inputs = sys.argv[1:4]
    client = triton.InferenceServerClient(endpoint)
    assert client.is_server_ready() and client.is_model_ready(model)
    tensors = []
    for name, array in dict(np.load(inputs)).items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    result = client.infer(model, tensors, client_timeout=30)
    names = [output.name for output in result.get_response().outputs]
    outputs = {name: result.as_numpy(name).tolist() for name in names}
    answers: queue.Queue[tuple[object, object]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer(model, tensors)
    streamed, error = answers.get(timeout=30)
    client.stop_stream()
    assert error is None, error
    for name, value in outputs.items():
        assert streamed.as_numpy(name).tolist() == value  # type: ignore[attr-defined]  # an InferResult
    print(json.dumps(outputs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
