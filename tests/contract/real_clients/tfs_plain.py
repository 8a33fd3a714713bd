"""Runs the stubs of tensorflow-serving-api, unmodified, without TLS and without a token, against a local proxy.

Usage: tfs_plain.py HOST:PORT MODEL INPUTS.npz
Prints one JSON object: the outputs.
"""

from __future__ import annotations

import json
import sys

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)


def main() -> int:
    """Ask for its status, then call it once."""
    endpoint, model, inputs = sys.argv[1:4]
    with grpc.insecure_channel(endpoint) as channel:
        status = get_model_status_pb2.GetModelStatusRequest()
        status.model_spec.name = model
        told = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status, timeout=30)
        assert told.model_version_status[0].state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
        request = predict_pb2.PredictRequest()
        request.model_spec.name = model
        for name, array in dict(np.load(inputs)).items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
        answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=30)
    print(json.dumps({name: tf.make_ndarray(value).tolist() for name, value in answer.outputs.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
