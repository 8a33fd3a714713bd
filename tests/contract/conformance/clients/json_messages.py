"""The protocols' messages as JSON, for clients that learn them by reflection: @grpc/grpc-js and `buf curl`.

Names go out as the contract has them; they come back so, or with capitals inside, as JSON of protobuf has them.
"""

from __future__ import annotations

import base64
import struct

import numpy as np
from calling import NUMPY, Answer, Refused, Request, Tensor
from rows_tfs import Predicted, Prediction, Served

OIP, PREDICTION, MODELS = (
    "inference.GRPCInferenceService",
    "tensorflow.serving.PredictionService",
    "tensorflow.serving.ModelService",
)
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_TFS = {
    "BOOL": "DT_BOOL",
    "FP16": "DT_HALF",
    "BF16": "DT_BFLOAT16",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
    "BYTES": "DT_STRING",
    **{f"{kind}{bits}": f"DT_{kind}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)},
}
_VALUES = {
    "DT_FLOAT": "float_val",
    "DT_DOUBLE": "double_val",
    "DT_INT64": "int64_val",
    "DT_UINT64": "uint64_val",
    "DT_UINT32": "uint32_val",
    "DT_BOOL": "bool_val",
    "DT_STRING": "string_val",
    "DT_HALF": "half_val",
    "DT_BFLOAT16": "half_val",
}
_WORDS = {word: datatype for datatype, word in _TFS.items()}
_WORDS |= {str(number): _WORDS[word] for number, word in {1: "DT_FLOAT", 7: "DT_STRING"}.items()}


def get(message: dict, name: str, default: object = None) -> object:
    """A field by the contract's name."""
    first, *others = name.split("_")
    return message.get(name, message.get(first + "".join(part.capitalize() for part in others), default))


# -- Open Inference Protocol -------------------------------------------------------------------------


def infer_request(request: Request) -> dict[str, object]:
    """ModelInferRequest."""
    message: dict[str, object] = {"model_name": request.model, "inputs": []}
    if request.version:
        message["model_version"] = request.version
    if request.id:
        message["id"] = request.id
    parameters = {name: _parameter(value) for name, value in request.parameters.items()}
    if request.sequence:
        keys = ("sequence_id", "sequence_start", "sequence_end")
        parameters |= {key: _parameter(value) for key, value in zip(keys, request.sequence, strict=True)}
    numbers = {"priority": request.priority, "timeout": request.timeout}
    parameters |= {name: _parameter(number) for name, number in numbers.items() if number}
    if parameters:
        message["parameters"] = parameters
    if request.outputs:
        told = {"parameters": {"classification": _parameter(request.classes)}} if request.classes else {}
        message["outputs"] = [{"name": name, **told} for name in request.outputs]
    for name, (datatype, array) in request.inputs.items():
        tensor = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if request.typed:
            field = _CONTENTS.get(datatype) or ("uint_contents" if datatype[0] == "U" else "int_contents")
            tensor["contents"] = {field: _listed(array)}
        else:
            message.setdefault("raw_input_contents", []).append(_text(_raw(datatype, array)))
        message["inputs"].append(tensor)
    return message


def infer_answer(message: dict) -> Answer:
    """ModelInferResponse; contents come raw."""
    arrays = {}
    for output, raw in zip(message["outputs"], get(message, "raw_output_contents"), strict=True):
        shape = [int(size) for size in output.get("shape", ())]
        arrays[output["name"]] = _array(output["datatype"], base64.b64decode(raw)).reshape(shape)
    return Answer(get(message, "model_name"), get(message, "model_version"), message.get("id", ""), arrays)


def stream_answer(message: dict) -> Answer | Refused:
    """ModelStreamInferResponse."""
    text = get(message, "error_message", "")
    return Refused("", text) if text else infer_answer(get(message, "infer_response"))


def _parameter(value: object) -> dict[str, object]:
    if isinstance(value, bool):
        return {"bool_param": value}
    return {"int64_param": str(value)} if isinstance(value, int) else {"string_param": value}


def _raw(datatype: str, array: np.ndarray) -> bytes:
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(item)) + item for item in array.ravel())
    if datatype == "BF16":
        return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return np.ascontiguousarray(array).tobytes()


def _array(datatype: str, raw: bytes) -> np.ndarray:
    if datatype == "BF16":
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    if datatype != "BYTES":
        return np.frombuffer(raw, NUMPY[datatype])
    items, at = [], 0
    while at < len(raw):
        (size,) = struct.unpack_from("<I", raw, at)
        items.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    made = np.empty(len(items), np.object_)
    made[:] = items
    return made


def _listed(array: np.ndarray) -> list[object]:
    if array.dtype == np.object_:
        return [_text(item) for item in array.ravel()]
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        return [str(item) for item in array.ravel()]
    return array.ravel().tolist()


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


# -- TensorFlow Serving ------------------------------------------------------------------------------


def model_spec(model: str, signature: str = "", version: int = 0, label: str = "") -> dict[str, object]:
    """ModelSpec."""
    spec: dict[str, object] = {"name": model}
    if signature:
        spec["signature_name"] = signature
    if label:
        spec["version_label"] = label
    return spec | ({"version": version} if version else {})


def predict_request(asked: Prediction) -> dict[str, object]:
    """PredictRequest."""
    return {
        "model_spec": model_spec(asked.model, asked.signature, asked.version, asked.label),
        "inputs": {name: tensor_proto(tensor, asked) for name, tensor in asked.inputs.items()},
        "output_filter": list(asked.outputs),
    }


def predicted(message: dict) -> Predicted:
    """PredictResponse."""
    spec = get(message, "model_spec")
    arrays = {name: _of_proto(proto) for name, proto in message["outputs"].items()}
    version = spec["version"]["value"] if isinstance(spec["version"], dict) else spec["version"]
    return Predicted(arrays, spec["name"], int(version), get(spec, "signature_name"))


def tensor_proto(tensor: Tensor, asked: Prediction) -> dict[str, object]:
    """TensorProto."""
    datatype, array = tensor
    word = _TFS[datatype]
    proto = {"dtype": word, "tensor_shape": {"dim": [{"size": str(size)} for size in array.shape]}}
    if datatype != "BYTES" and asked.form == "content":
        return proto | {"tensor_content": _text(_raw(datatype, array))}
    if datatype in ("FP16", "BF16"):
        array = np.frombuffer(_raw(datatype, array), np.uint16)
    listed = _listed(array)
    return proto | {_VALUES.get(word, "int_val"): listed[:1] if asked.repeat else listed}


def _of_proto(proto: dict) -> np.ndarray:
    word = proto["dtype"]
    datatype = _WORDS[word]
    shape = [int(dim.get("size", 0)) for dim in get(proto, "tensor_shape", {}).get("dim", ())]
    content = get(proto, "tensor_content", "")
    if content:
        return _array(datatype, base64.b64decode(content)).reshape(shape)
    listed = get(proto, _VALUES.get(word, "int_val"), [])
    if datatype == "BYTES":
        made = np.empty(len(listed), np.object_)
        made[:] = [base64.b64decode(item) for item in listed]
        return made.reshape(shape)
    if datatype in ("FP16", "BF16"):
        return _array(datatype, np.array(listed, np.uint16).tobytes()).reshape(shape)
    kind = np.dtype(NUMPY[datatype])
    numbers = [int(item) for item in listed] if kind.kind in "iu" else [float(item) for item in listed]
    return np.array(numbers).astype(kind).reshape(shape) if kind.kind == "f" else np.array(numbers, kind).reshape(shape)


def examples(rows: list[list[float]]) -> dict[str, object]:
    """Input, with one feature `x` in each example."""
    listed = [{"features": {"feature": {"x": {"float_list": {"value": row}}}}} for row in rows]
    return {"example_list": {"examples": listed}}


def classes(result: dict) -> list[list[tuple[str, float]]]:
    """ClassificationResult."""
    return [[(it["label"], it.get("score", 0.0)) for it in line["classes"]] for line in result["classifications"]]


def reload_request(models: list[Served]) -> dict[str, object]:
    """ReloadConfigRequest."""
    configs = [
        {
            "name": model.name,
            "base_path": model.base_path,
            "model_version_policy": {"specific": {"versions": [str(version) for version in model.versions]}},
            "version_labels": {label: str(version) for label, version in model.labels.items()},
        }
        for model in models
    ]
    return {"config": {"model_config_list": {"config": configs}}}
