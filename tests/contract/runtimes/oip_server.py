"""A server of the Open Inference Protocol on Triton's own stubs; prints its port and serves until its input ends.

Model ``sum`` adds two inputs and turns a text; ``refuses`` answers every run with the status that its input names.
"""

from __future__ import annotations

import struct
import sys
from concurrent import futures

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    def ModelMetadata(self, request, context):
        if request.name not in ("sum", "refuses", "odd", "lying"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        answer = service_pb2.ModelMetadataResponse(name=request.name, versions=["1"], platform="test")
        numbers = "COMPLEX" if request.name == "odd" else "FP32"
        if request.name == "refuses":
            answer.inputs.add(name="status", datatype="INT32", shape=[1])
            answer.outputs.add(name="never", datatype="INT32", shape=[1])
            return answer
        for name in ("a", "b"):
            answer.inputs.add(name=name, datatype=numbers, shape=[-1, 2])
        answer.inputs.add(name="word", datatype="BYTES", shape=[1])
        answer.outputs.add(name="sum", datatype="FP32", shape=[-1, 2])
        answer.outputs.add(name="turned", datatype="BYTES", shape=[1])
        return answer

    def ModelInfer(self, request, context):
        raw = {item.name: data for item, data in zip(request.inputs, request.raw_input_contents, strict=True)}
        if request.model_name == "refuses":
            codes = {code.value[0]: code for code in grpc.StatusCode}
            context.abort(codes[np.frombuffer(raw["status"], np.int32)[0]], "as asked for")
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        a, b = (np.frombuffer(raw[name], np.float32).reshape(-1, 2) for name in ("a", "b"))
        word = raw["word"][4:][::-1]
        answer.outputs.add(name="sum", datatype="FP32", shape=a.shape)
        answer.raw_output_contents.append((a + b).tobytes())
        if request.model_name == "sum":
            answer.outputs.add(name="turned", datatype="BYTES", shape=[1])
            answer.raw_output_contents.append(struct.pack("<I", len(word)) + word)
        return answer


def main():
    server = grpc.server(futures.ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Server(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(None)


if __name__ == "__main__":
    main()
