"""The HTTP form of TensorFlow Serving."""

from __future__ import annotations

import re

from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import InvalidArgument
from sealane.protocols import tfserving, tfserving_json
from sealane.protocols.call import Target
from sealane.rest.table import Asked, Endpoint, Notes, Question, Reply

PREDICTION = "/tensorflow.serving.PredictionService/"
METADATA = PREDICTION + "GetModelMetadata"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
_NUMBER = re.compile(r"[0-9]{1,18}")
_LABEL = re.compile(r"[A-Za-z0-9_]+")


def endpoints() -> list[Endpoint]:
    """All of them."""
    found: list[Endpoint] = []
    for at in ("/v1/models/{model}", "/v1/models/{model}/versions/{version}", "/v1/models/{model}/labels/{label}"):
        found += [
            Endpoint("POST", f"{at}:predict", PREDICTION + "Predict", predict, "Run a model", _always),
            Endpoint("POST", f"{at}:classify", PREDICTION + "Classify", classify, "Score the classes of examples"),
            Endpoint("POST", f"{at}:regress", PREDICTION + "Regress", regress, "One value for each example"),
            Endpoint("GET", at, STATUS, status, "State of a model's versions"),
            Endpoint("GET", f"{at}/metadata", METADATA, metadata, "Signatures of a model"),
        ]
    return found


def metadata_request(target: Target) -> bytes:
    """The serialized GetModelMetadataRequest for a model."""
    request = tfs.GetModelMetadataRequest(metadata_field=[tfserving.METADATA_FIELD])
    _name(request.model_spec, _checked(target))
    return request.SerializeToString()


def predict(question: Question) -> Asked:
    """Predict, in rows or columns."""
    assert question.model is not None
    prediction = tfserving_json.encode_predict(_checked(question.target), question.body, question.model)

    notes: Notes = {"rows": prediction.rows}
    return Asked(prediction.message, lambda answer: tell_predict(notes, answer), notes=notes)


def tell_predict(notes: Notes, answer: bytes) -> Reply:
    """The answer of Predict, in rows or columns as it was asked."""
    outputs = tfserving.decode_response(tfs.PredictResponse.FromString(answer))
    return Reply((tfserving_json.decode_predict(outputs, rows=bool(notes["rows"])),))


def classify(question: Question) -> Asked:
    """Classify."""
    message = tfserving_json.encode_examples(tfs.ClassificationRequest(), _checked(question.target), question.body)
    return Asked(message, lambda answer: tell_classify({}, answer))


def tell_classify(notes: Notes, answer: bytes) -> Reply:
    """The answer of Classify."""
    return Reply((tfserving_json.decode_classes(answer),))


def regress(question: Question) -> Asked:
    """Regress."""
    message = tfserving_json.encode_examples(tfs.RegressionRequest(), _checked(question.target), question.body)
    return Asked(message, lambda answer: tell_regress({}, answer))


def tell_regress(notes: Notes, answer: bytes) -> Reply:
    """The answer of Regress."""
    return Reply((tfserving_json.decode_values(answer),))


def status(question: Question) -> Asked:
    """GetModelStatus."""
    request = tfs.GetModelStatusRequest()
    _name(request.model_spec, _checked(question.target))
    return Asked(request.SerializeToString(), lambda answer: Reply((tfserving_json.decode_status(answer),)))


def metadata(question: Question) -> Asked:
    """GetModelMetadata."""
    message = metadata_request(question.target)
    return Asked(message, lambda answer: Reply((tfserving_json.decode_metadata(answer),)))


def _checked(target: Target) -> Target:
    if target.version and not _NUMBER.fullmatch(target.version):
        raise InvalidArgument(f"Failed to convert version: {target.version[:40]} to numeric.", reason="VERSION_NUMBER")
    if target.label and not _LABEL.fullmatch(target.label):
        raise InvalidArgument(
            f"Failed to read version label: {target.label[:40]}, it is letters, digits and underscores",
            reason="LABEL_UNKNOWN",
        )
    return target


def _name(spec: tfs.ModelSpec, target: Target) -> None:
    spec.name = target.model
    if target.version:
        spec.version.value = int(target.version)
    elif target.label:
        spec.version_label = target.label


def _always(question: Question) -> bool:
    return True
