"""The stubs of tensorflow-serving-api, unmodified, with TensorFlow's own tensors."""

from __future__ import annotations

import sys
import time

import grpc
import numpy as np
import tensorflow as tf
from calling import Refused, Site, Tensor, run
from rows_tfs import ROWS, Predicted, Prediction, Served
from tensorflow.core.framework import tensor_pb2
from tensorflow.python.framework import tensor_util
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

_CODINGS = {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}
_STATES = get_model_status_pb2.ModelVersionStatus.State


class Client:
    """Calls them as their users do."""

    rest = False

    def __init__(self, site: Site) -> None:
        self.site = site
        options = [
            ("grpc.ssl_target_name_override", site.tls_name),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
        ]
        self._channel = grpc.secure_channel(site.grpc, grpc.ssl_channel_credentials(site.trust), options=options)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def forms(self, datatype: str) -> tuple[str, ...]:
        """Strings have no tensor_content."""
        return ("values",) if datatype == "BYTES" else ("content", "values")

    def predict(self, asked: Prediction) -> Predicted:
        request = predict_pb2.PredictRequest(output_filter=asked.outputs)
        self._name(request.model_spec, asked.model, asked.signature)
        if asked.version:
            request.model_spec.version.value = asked.version
        if asked.label:
            request.model_spec.version_label = asked.label
        for name, tensor in asked.inputs.items():
            request.inputs[name].CopyFrom(_proto(tensor, asked))
        future = self._prediction.Predict.future(
            request,
            timeout=asked.seconds,
            metadata=tuple(self.site.authorization(asked.token).items()),
            compression=_CODINGS.get(asked.coding),
        )
        if asked.cancel:
            time.sleep(asked.cancel)
            future.cancel()
        try:
            answer = future.result()
        except grpc.FutureCancelledError:
            raise Refused("CANCELLED", "the client left") from None
        except grpc.RpcError as error:
            raise Refused(error.code().name, error.details()) from None
        arrays = {name: _array(proto) for name, proto in answer.outputs.items()}
        spec = answer.model_spec
        return Predicted(arrays, spec.name, spec.version.value, spec.signature_name)

    def classify(self, model: str, signature: str, rows: list[list[float]]) -> list[list[tuple[str, float]]]:
        request = classification_pb2.ClassificationRequest(input=_examples(rows))
        self._name(request.model_spec, model, signature)
        return _classes(self._call(self._prediction.Classify, request).result)

    def regress(self, model: str, signature: str, rows: list[list[float]]) -> list[float]:
        request = regression_pb2.RegressionRequest(input=_examples(rows))
        self._name(request.model_spec, model, signature)
        return [item.value for item in self._call(self._prediction.Regress, request).result.regressions]

    def multi(self, model: str, tasks: list[tuple[str, str]], rows: list[list[float]]) -> list:
        request = inference_pb2.MultiInferenceRequest(input=_examples(rows))
        for signature, method in tasks:
            task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
            self._name(task.model_spec, model, signature)
        classes, numbers = self._call(self._prediction.MultiInference, request).results
        return [_classes(classes.classification_result), [it.value for it in numbers.regression_result.regressions]]

    def metadata(self, model: str, field: str = "signature_def") -> dict[str, tuple[list[str], list[str]]]:
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=[field])
        request.model_spec.name = model
        found = get_model_metadata_pb2.SignatureDefMap()
        self._call(self._prediction.GetModelMetadata, request).metadata["signature_def"].Unpack(found)
        return {name: (sorted(it.inputs), sorted(it.outputs)) for name, it in found.signature_def.items()}

    def status(self, model: str, version: int = 0) -> dict[int, str]:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        if version:
            request.model_spec.version.value = version
        try:
            found = self._call(self._models.GetModelStatus, request).model_version_status
        except Refused as refusal:
            if "Servable not found" in refusal.text:
                return {}
            raise
        return {item.version: _STATES.Name(item.state) for item in found}

    def reload(self, models: list[Served]) -> tuple[int, str]:
        request = model_management_pb2.ReloadConfigRequest()
        for model in models:
            config = request.config.model_config_list.config.add(name=model.name, base_path=model.base_path)
            config.model_version_policy.specific.versions.extend(model.versions)
            config.version_labels.update(model.labels)
        found = self._call(self._models.HandleReloadConfigRequest, request).status
        return found.error_code, found.error_message

    def _call(self, method: grpc.UnaryUnaryMultiCallable, request: object) -> object:
        try:
            return method(request, timeout=30, metadata=tuple(self.site.authorization("good").items()))
        except grpc.RpcError as error:
            raise Refused(error.code().name, error.details()) from None

    @staticmethod
    def _name(spec: object, model: str, signature: str) -> None:
        spec.name, spec.signature_name = model, signature


def _proto(tensor: Tensor, asked: Prediction) -> tensor_pb2.TensorProto:
    datatype, array = tensor
    array = array.astype(tf.bfloat16.as_numpy_dtype) if datatype == "BF16" else array
    if asked.repeat:
        return tf.make_tensor_proto(array.ravel()[0], shape=array.shape)
    proto = tf.make_tensor_proto(array)
    if asked.form == "values" and proto.tensor_content:
        return _in_values(array, proto)
    return proto


def _in_values(array: np.ndarray, proto: tensor_pb2.TensorProto) -> tensor_pb2.TensorProto:
    """The same in the field of its type: what older clients and those of other languages send."""
    made = tensor_pb2.TensorProto(dtype=proto.dtype, tensor_shape=proto.tensor_shape)
    append = tensor_util.GetNumpyAppendFn(array.dtype)
    append(made, array.ravel())
    return made


def _array(proto: tensor_pb2.TensorProto) -> np.ndarray:
    array = tf.make_ndarray(proto)
    return array.astype(np.float32) if array.dtype == tf.bfloat16.as_numpy_dtype else array


def _examples(rows: list[list[float]]) -> object:
    found = input_pb2.Input()
    for row in rows:
        features = tf.train.Features(feature={"x": tf.train.Feature(float_list=tf.train.FloatList(value=row))})
        found.example_list.examples.append(tf.train.Example(features=features))
    return found


def _classes(result: object) -> list[list[tuple[str, float]]]:
    return [[(it.label, it.score) for it in line.classes] for line in result.classifications]


if __name__ == "__main__":
    sys.exit(run(ROWS, Client))
