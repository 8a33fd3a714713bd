"""TensorFlow Serving over HTTP: its JSON bodies <-> its messages.

Pure. Texts in quotes are those of TensorFlow Serving, because its clients match on them. JSON does not say datatypes,
so predictions are read by the model's signature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sealane.compat.tfserving.v1 import example_pb2 as tf
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import InvalidArgument
from sealane.protocols import json_values, message_json
from sealane.protocols.call import InferenceCall, ModelDescription, Target
from sealane.protocols.elements import byte_elements, check_count, from_elements
from sealane.protocols.json_values import Json
from sealane.protocols.tfserving import METADATA_FIELD, encode_request
from sealane.tensors import Array, Signature, TensorSpec, datatype_of

#: Names of outputs that end so hold bytes and no text.
_BYTES_SUFFIX = "_bytes"
_ROWS, _COLUMNS = "instances", "inputs"


@dataclass(frozen=True, slots=True)
class Prediction:
    """A serialized PredictRequest, and whether its answer is wanted row by row."""

    message: bytes
    rows: bool


def encode_predict(target: Target, body: bytes, model: ModelDescription) -> Prediction:
    """The request of a body: ``instances`` (rows) or ``inputs`` (columns).

    Raises:
        InvalidArgument: anything in it that can never work.
    """
    document = json_values.parse(body)
    name = _signature_name(document)
    signature = model.signature(name)
    if signature is None:
        raise InvalidArgument(
            f'Serving signature name: "{name or "serving_default"}" not found in signature def',
            reason="SIGNATURE_NOT_FOUND",
            field="signature_name",
        )
    if _ROWS in document and _COLUMNS in document:
        raise _malformed(f"Not formatted correctly expecting only one of '{_COLUMNS}' or '{_ROWS}' keys to exist")
    if _ROWS in document:
        columns = _columns_of_rows(document[_ROWS], signature)
    elif _COLUMNS in document:
        columns = _columns(document[_COLUMNS], signature)
    else:
        raise _malformed(f"Missing '{_COLUMNS}' or '{_ROWS}' key")
    specs = {spec.name: spec for spec in signature.inputs}
    arrays = {key: _array(specs[key], values) for key, values in columns.items()}
    call = InferenceCall(Target(target.model, target.version, target.label, name), arrays)
    return Prediction(encode_request(call).SerializeToString(), _ROWS in document)


def decode_predict(outputs: Mapping[str, Array], *, rows: bool) -> bytes:
    """The body of an answer.

    Raises:
        InvalidArgument: rows are wanted of outputs that do not have one for each.
    """
    if not rows:
        columns = {name: _values(name, array) for name, array in sorted(outputs.items())}
        return json_values.dump({"outputs": _only(columns) if len(columns) == 1 else columns})
    sizes = {name: array.shape[0] if array.ndim else -1 for name, array in outputs.items()}
    for name, size in sizes.items():
        if size < 0:
            raise _malformed(f"Tensor name: {name} has no shape information; ask for columns by '{_COLUMNS}'")
        if size != max(sizes.values()):
            raise _malformed(
                f"Tensor name: {name} has inconsistent batch size: {size} expecting: {max(sizes.values())}; "
                f"ask for columns by '{_COLUMNS}'"
            )
    columns = {name: _values(name, array) for name, array in sorted(outputs.items())}
    if len(columns) == 1:
        return json_values.dump({"predictions": _only(columns)})
    names, lists = list(columns), [column for column in columns.values() if isinstance(column, list)]
    return json_values.dump({"predictions": [dict(zip(names, row, strict=True)) for row in zip(*lists, strict=True)]})


def encode_examples(request: tfs.ClassificationRequest | tfs.RegressionRequest, target: Target, body: bytes) -> bytes:
    """The serialized request of a body with ``examples`` and, for what they share, ``context``.

    Raises:
        InvalidArgument: anything in it that can never work.
    """
    document = json_values.parse(body)
    spec = request.model_spec
    spec.name, spec.signature_name = target.model, _signature_name(document)
    if target.version:
        spec.version.value = int(target.version)
    elif target.label:
        spec.version_label = target.label
    examples = document.get("examples")
    if not isinstance(examples, list):
        raise _malformed("key 'examples' is expected and was not found, or is no list")
    if not examples:
        raise _malformed("'examples' value is an empty array")
    if "context" in document:
        shared = request.input.example_list_with_context
        _fill(shared.context, document["context"])
        into = shared.examples
    else:
        into = request.input.example_list.examples
    for example in examples:
        _fill(into.add(), example)
    return request.SerializeToString()


def decode_classes(message: bytes) -> bytes:
    """The body of a serialized ClassificationResponse."""
    result = tfs.ClassificationResponse.FromString(message).result
    rows = [[[item.label, _shortest(item.score)] for item in row.classes] for row in result.classifications]
    return json_values.dump({"results": rows})


def decode_values(message: bytes) -> bytes:
    """The body of a serialized RegressionResponse."""
    result = tfs.RegressionResponse.FromString(message).result
    return json_values.dump({"results": [_shortest(item.value) for item in result.regressions]})


def decode_metadata(message: bytes) -> bytes:
    """The body of a serialized GetModelMetadataResponse."""
    response = tfs.GetModelMetadataResponse.FromString(message)
    signatures = tfs.SignatureDefMap.FromString(response.metadata[METADATA_FIELD].value)
    told = {"model_spec": message_json.proto3(response.model_spec)}
    return json_values.dump({**told, "metadata": {METADATA_FIELD: message_json.proto3(signatures)}})


def decode_status(message: bytes) -> bytes:
    """The body of a serialized GetModelStatusResponse."""
    return json_values.dump(message_json.proto3(tfs.GetModelStatusResponse.FromString(message)))


def _signature_name(document: Mapping[str, Json]) -> str:
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise _malformed("'signature_name' key must be a string value")
    return name


def _columns_of_rows(rows: Json, signature: Signature) -> dict[str, Json]:
    if not isinstance(rows, list):
        raise _malformed(f"Excepting '{_ROWS}' to be an list/array")
    if not rows:
        raise _malformed(f"No values in '{_ROWS}' array")
    names = sorted(spec.name for spec in signature.inputs)
    named = [isinstance(row, dict) and not json_values.is_base64(row) for row in rows]
    if not any(named):
        if len(names) != 1:
            raise _malformed(
                f"{_ROWS} is a plain list, but expecting list of objects as multiple input tensors required"
            )
        return {names[0]: rows}
    columns: dict[str, list[Json]] = {name: [] for name in names}
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or not named[index]:
            raise _malformed(f"Expecting object but got list at item {index} of input list")
        if sorted(row) != names:
            raise _malformed(
                f"Failed to process element: {index} of '{_ROWS}' list. JSON object: keys must be equal to: "
                f"{','.join(names)}"
            )
        for name, value in row.items():
            columns[name].append(value)
    return dict(columns)


def _columns(inputs: Json, signature: Signature) -> dict[str, Json]:
    names = sorted(spec.name for spec in signature.inputs)
    if not isinstance(inputs, dict) or json_values.is_base64(inputs):
        if len(names) != 1:
            raise _malformed(
                f"{_COLUMNS} is a plain value/list, but expecting an object as multiple input tensors required"
            )
        return {names[0]: inputs}
    for name in names:
        if name not in inputs:
            raise _malformed(f"Missing named input: {name} in '{_COLUMNS}' object")
    return {name: inputs[name] for name in names}


def _array(spec: TensorSpec, values: Json) -> Array:
    if spec.datatype != "BYTES":
        return json_values.numbers(values, spec.datatype, spec.name, exact=True)
    shape = json_values.dense_shape(values, spec.name)
    return from_elements(json_values.byte_values(values, spec.name), shape, spec.name)


def _values(name: str, array: Array) -> Json:
    if datatype_of(array) == "BYTES":
        elements = byte_elements(array)
        texts = None if name.endswith(_BYTES_SUFFIX) else json_values.texts_of(elements)
        told: list[Json] = list(texts) if texts is not None else [json_values.to_base64(item) for item in elements]
        nested = np.empty(len(told), dtype=np.object_)
        nested[:] = told
        return nested.reshape(array.shape).tolist()
    wide = json_values.floats_of(array)
    if wide.dtype.kind == "f" and wide.dtype.itemsize < 8:
        # As doubles they would have digits that the model never said: 0.1 would be 0.10000000149011612.
        wide = wide.astype("U32").astype(np.float64)
    return wide.tolist()


def _only(columns: Mapping[str, Json]) -> Json:
    return next(iter(columns.values()))


def _shortest(value: float) -> float:
    return float(str(np.float32(value)))


def _fill(example: tf.Example, features: Json) -> None:
    if not isinstance(features, dict):
        raise _malformed("Example must be JSON object")
    check_count(len(features), "examples")
    for name, content in features.items():
        feature = example.features.feature[name]
        values = content if isinstance(content, list) else [content]
        if not values:
            continue
        if all(type(value) in (int, bool) for value in values):
            if not all(-(1 << 63) <= value < 1 << 63 for value in values):
                raise _malformed(f"Feature: {name} has uint64 element. Only int64 is supported")
            feature.int64_list.value.extend(int(value) for value in values)
        elif all(type(value) is float for value in values):
            array = json_values.numbers(values, "FP32", name)
            feature.float_list.value.extend(array.tolist())
        elif all(isinstance(value, str) or json_values.is_base64(value) for value in values):
            feature.bytes_list.value.extend(json_values.byte_values(values, name))
        else:
            raise _malformed(f"Unexpected element type in feature: {name}, its elements must be of one type")


def _malformed(why: str) -> InvalidArgument:
    return InvalidArgument(f"JSON Value: {why}", reason="MALFORMED_REQUEST")
