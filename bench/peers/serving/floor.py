"""The floors: what gRPC in Python costs without a server around it, and the runtime without gRPC.

``floor.py serve FOLDER PORT THREADS`` answers Open Inference calls on a synchronous grpcio server of one process, for
the model ``echo`` with the request's own bytes; ``floor.py run FOLDER MODEL THREADS SECONDS`` runs in process.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from running import DTYPES, described, load


def serve(folder: str, port: int, threads: int) -> None:
    """Until killed."""
    import grpc

    from sealane.compat.openinference.v2 import openinference_pb2 as oip

    models = {name: (load(folder, name), model) for name, model in described(folder).items()}

    def infer(request, context):
        run, model = models[request.model_name]
        array = np.frombuffer(request.raw_input_contents[0], DTYPES[request.inputs[0].datatype])
        made = run(array.reshape(tuple(request.inputs[0].shape)))
        response = oip.ModelInferResponse(model_name=request.model_name, raw_output_contents=[made.tobytes()])
        response.outputs.add(name=model["output"], datatype="FP32", shape=made.shape)
        return response

    def handlers(service, method, handler):
        return grpc.method_handlers_generic_handler(service, {method: handler})

    server = grpc.server(
        ThreadPoolExecutor(threads),
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
    )
    decoded = grpc.unary_unary_rpc_method_handler(
        infer, oip.ModelInferRequest.FromString, oip.ModelInferResponse.SerializeToString
    )
    echo = grpc.unary_unary_rpc_method_handler(lambda body, context: body)
    server.add_generic_rpc_handlers(
        (handlers("inference.GRPCInferenceService", "ModelInfer", decoded), handlers("bench.Echo", "Call", echo))
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


def run(folder: str, name: str, threads: int, seconds: float) -> None:
    """Runs of the model alone; prints the laps' quantiles and the rate of all threads together as JSON."""
    model, spec = load(folder, name), described(folder)[name]
    array = np.zeros(spec["shape"], DTYPES[spec["datatype"]])
    laps: list[list[float]] = [[] for _ in range(threads)]
    start = threading.Barrier(threads)

    def loop(mine: list[float]) -> None:
        for _ in range(3):
            model(array)
        start.wait()
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            model(array)
            mine.append(time.perf_counter() - began)

    workers = [threading.Thread(target=loop, args=(mine,)) for mine in laps]
    began = time.process_time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    cpu = time.process_time() - began
    every = np.sort(np.concatenate(laps)) * 1e6
    p50, p99 = (float(every[int(share * (len(every) - 1))]) for share in (0.5, 0.99))
    found = {"ok": len(every), "rps": len(every) / seconds, "p50_us": p50, "p99_us": p99, "cpu_s": cpu}
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        run(sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
