"""Imports a client library of one of the protocols and Sealane into one process; each reads what the other wrote.

Usage: together.py tritonclient|kserve|tfserving sealane-first|sealane-last
Prints one JSON object: the version of protobuf and what was compared. Run with `src` and `services` on the path.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys

BODIES: dict[str, bytes] = {}


def sealane() -> None:
    """Our own messages, the SDK, and where its dependencies are here, gateway and worker."""
    from sealane.client import connect  # noqa: F401
    from sealane.compat.openinference.v2 import openinference_pb2 as oip
    from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
    from sealane.protocols.foreign import foreign_files

    request = oip.ModelInferRequest(model_name="m", id="7", raw_input_contents=[b"abcd"])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    request.parameters["priority"].int64_param = 1
    BODIES["infer"] = request.SerializeToString(deterministic=True)
    predict = tfs.PredictRequest(model_spec=tfs.ModelSpec(name="m", signature_name="s"))
    predict.inputs["x"].float_val.append(1.5)
    BODIES["predict"] = predict.SerializeToString(deterministic=True)
    assert {file.package for file in foreign_files()} == {"inference", "tensorflow", "tensorflow.serving"}
    try:
        import grpc_reflection  # noqa: F401  # the services' own dependency
    except ImportError:
        return
    import sealane_worker.app  # noqa: F401


def same(name: str, message: type) -> None:
    """What we wrote, read and written again by the other library."""
    parsed = message.FromString(BODIES[name])
    assert parsed.SerializeToString(deterministic=True) == BODIES[name]


def tritonclient() -> None:
    """NVIDIA's client."""
    import tritonclient.grpc
    from tritonclient.grpc import service_pb2

    LATER.append(lambda: same("infer", service_pb2.ModelInferRequest))
    tritonclient.grpc.InferenceServerClient("127.0.0.1:1").close()


def kserve() -> None:
    """KServe's."""
    from kserve.protocol.grpc import grpc_predict_v2_pb2, grpc_predict_v2_pb2_grpc  # noqa: F401

    LATER.append(lambda: same("infer", grpc_predict_v2_pb2.ModelInferRequest))


def tfserving() -> None:
    """TensorFlow Serving's stubs, and TensorFlow itself."""
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc  # noqa: F401

    LATER.append(lambda: same("predict", predict_pb2.PredictRequest))


LATER: list = []


def main() -> None:
    """Import in the order asked for, compare, tell."""
    other = {"tritonclient": tritonclient, "kserve": kserve, "tfserving": tfserving}[sys.argv[1]]
    for load in (sealane, other) if sys.argv[2] == "sealane-first" else (other, sealane):
        load()
    for compare in LATER:
        compare()
    print(json.dumps({"protobuf": importlib.metadata.version("protobuf"), "compared": len(LATER)}))


main()
