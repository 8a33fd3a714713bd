"""Runs the stubs of tensorflow-serving-api, unmodified, against a server with TLS and a token.

Usage: tfs_client.py HOST:PORT CA_FILE TOKEN MODEL INPUTS.npz [TLS_NAME]
Prints one JSON object: state and signatures of the model, and its outputs.
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


def main() -> int:
    """Call every served RPC once."""
    endpoint, ca_file, token, model, inputs = sys.argv[1:6]
    tls_name = sys.argv[6] if len(sys.argv) > 6 else "inference.service.sealane"
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(Path(ca_file).read_bytes()), grpc.access_token_call_credentials(token)
    )
    channel = grpc.secure_channel(endpoint, credentials, options=[("grpc.ssl_target_name_override", tls_name)])
    prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    status_request = get_model_status_pb2.GetModelStatusRequest()
    status_request.model_spec.name = model
    status = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status_request, timeout=30)

    metadata_request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    metadata_request.model_spec.name = model
    metadata = prediction.GetModelMetadata(metadata_request, timeout=30)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    metadata.metadata["signature_def"].Unpack(signatures)

    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    for name, array in dict(np.load(inputs)).items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    response = prediction.Predict(request, timeout=30)
    print(
        json.dumps(
            {
                "states": {
                    item.version: get_model_status_pb2.ModelVersionStatus.State.Name(item.state)
                    for item in status.model_version_status
                },
                "signatures": sorted(signatures.signature_def),
                "version": response.model_spec.version.value,
                "outputs": {name: tf.make_ndarray(proto).tolist() for name, proto in response.outputs.items()},
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
