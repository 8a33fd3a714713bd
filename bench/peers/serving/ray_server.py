"""Ray Serve with its gRPC proxy: ``ray_server.py FOLDER GRPC_PORT HTTP_PORT REPLICAS``."""

from __future__ import annotations

import signal
import sys
import threading

import numpy as np
import ray
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions
from running import DTYPES, described, load

from sealane.compat.openinference.v2 import openinference_pb2 as oip


@serve.deployment(max_ongoing_requests=100, ray_actor_options={"num_cpus": 0})
class Bench:
    """Every model."""

    def __init__(self, folder: str) -> None:
        self._models = {name: load(folder, name) for name in described(folder)}

    def ModelInfer(self, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
        """One inference."""
        array = np.frombuffer(request.raw_input_contents[0], DTYPES[request.inputs[0].datatype])
        made = self._models[request.model_name](array.reshape(tuple(request.inputs[0].shape)))
        response = oip.ModelInferResponse(model_name=request.model_name, raw_output_contents=[made.tobytes()])
        response.outputs.add(name="y", datatype="FP32", shape=made.shape)
        return response


def main() -> None:
    """Serve until told to stop."""
    folder, grpc_port, http_port, replicas = sys.argv[1], *map(int, sys.argv[2:5])
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    adder = "sealane.compat.openinference.v2.openinference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"
    serve.start(
        grpc_options=gRPCOptions(port=grpc_port, grpc_servicer_functions=[adder]),
        http_options=HTTPOptions(host="127.0.0.1", port=http_port),
    )
    serve.run(Bench.options(num_replicas=replicas).bind(folder), name="bench")
    print("ready", flush=True)
    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    done.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
