"""Runs the stubs of tensorflow-serving-api, unmodified, against a server with TLS and a token.

Usage: tfs_client.py HOST:PORT CA_FILE TOKEN MODEL INPUTS.npz [TLS_NAME] [--refusals]
Prints one JSON object: state and signatures of the model, its outputs, and with --refusals the codes that
a call without a token, with inputs of another rank and for an unknown model ends with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

Stub = prediction_service_pb2_grpc.PredictionServiceStub


def predict_request(model: str, arrays: dict[str, np.ndarray]) -> predict_pb2.PredictRequest:
    """A request as users of this package write it."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    for name, array in arrays.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    return request


def code_of(stub: Stub, request: predict_pb2.PredictRequest) -> str:
    """The code of the error that the client raises."""
    try:
        stub.Predict(request, timeout=30)
    except grpc.RpcError as failure:
        return failure.code().name
    return "OK"


def refusals(stub: Stub, stranger: Stub, model: str, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """What must be refused."""
    flat = {name: array.reshape(len(array), -1) for name, array in arrays.items()}
    return {
        "no_token": code_of(stranger, predict_request(model, arrays)),
        "wrong_shape": code_of(stub, predict_request(model, flat)),
        "unknown_model": code_of(stub, predict_request("nobody", arrays)),
    }


def main() -> int:
    """Call every served RPC once."""
    positional = [argument for argument in sys.argv[1:] if argument != "--refusals"]
    endpoint, ca_file, token, model, inputs = positional[:5]
    tls_name = positional[5] if len(positional) > 5 else "inference.service.sealane"
    options = [("grpc.ssl_target_name_override", tls_name)]
    tls = grpc.ssl_channel_credentials(Path(ca_file).read_bytes())
    credentials = grpc.composite_channel_credentials(tls, grpc.access_token_call_credentials(token))
    channel = grpc.secure_channel(endpoint, credentials, options=options)
    prediction = Stub(channel)

    status_request = get_model_status_pb2.GetModelStatusRequest()
    status_request.model_spec.name = model
    status = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status_request, timeout=30)

    metadata_request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    metadata_request.model_spec.name = model
    metadata = prediction.GetModelMetadata(metadata_request, timeout=30)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    metadata.metadata["signature_def"].Unpack(signatures)

    arrays = dict(np.load(inputs))
    response = prediction.Predict(predict_request(model, arrays), timeout=30)
    report: dict[str, object] = {
        "states": {
            item.version: get_model_status_pb2.ModelVersionStatus.State.Name(item.state)
            for item in status.model_version_status
        },
        "signatures": sorted(signatures.signature_def),
        "version": response.model_spec.version.value,
        "outputs": {name: tf.make_ndarray(proto).tolist() for name, proto in response.outputs.items()},
    }
    if "--refusals" in sys.argv:
        stranger = Stub(grpc.secure_channel(endpoint, tls, options=options))
        report["refused"] = refusals(prediction, stranger, model, arrays)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
