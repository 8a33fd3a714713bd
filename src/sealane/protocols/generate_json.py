"""Triton's generate extension: a JSON object of inputs by name <-> the messages of the Open Inference Protocol.

Pure. A key that names an input is that tensor, any other is a parameter of the request; ``parameters`` may hold more of
both. Values say little of their shape: fixed dimensions are the model's, the innermost free one takes what is left.
"""

from __future__ import annotations

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import InvalidArgument
from sealane.protocols import json_fields, json_values
from sealane.protocols.call import Target
from sealane.protocols.elements import check_count
from sealane.protocols.json_values import Json
from sealane.protocols.openinference_json import pack, response_head, split, values_of
from sealane.protocols.wire import length_delimited
from sealane.tensors import Signature, TensorSpec

_RAW = 7
_ID, _PARAMETERS = "id", "parameters"


def encode_generate(target: Target, body: bytes, signature: Signature) -> bytes:
    """The serialized ModelInferRequest of a body.

    Raises:
        InvalidArgument: anything in it that can never work.
    """
    document = json_values.parse(body)
    inputs = {spec.name: spec for spec in signature.inputs}
    request = oip.ModelInferRequest(model_name=target.model, model_version=target.version or target.label)
    if _ID not in inputs and _ID in document:
        request.id = json_fields.text_of(document.pop(_ID), _ID)
    if _PARAMETERS not in inputs:
        document |= json_fields.object_of(document.pop(_PARAMETERS, {}), _PARAMETERS)
    check_count(len(document), _PARAMETERS)
    parts = [b""]
    for name, value in document.items():
        spec = inputs.get(name)
        if spec is None:
            json_fields.set_parameter(request.parameters[name], value, name)
            continue
        values = value if isinstance(value, list) else [value]
        shape = _shape(spec, len(values))
        request.inputs.add(name=name, datatype=spec.datatype, shape=shape)
        content = pack(spec.datatype, values, len(values), {}, name)
        parts += (length_delimited(_RAW, len(content)), content)
    parts[0] = request.SerializeToString()
    return b"".join(parts)


def decode_generated(message: bytes) -> bytes:
    """The body of a serialized ModelInferResponse: a value of one element stands without its list.

    Raises:
        InvalidArgument: an output that JSON cannot carry.
    """
    response = oip.ModelInferResponse.FromString(message)
    document = response_head(response)
    parameters = document.pop(_PARAMETERS, None)
    if isinstance(parameters, dict):
        document |= {name: value for name, value in parameters.items() if not name.startswith("triton_")}
    for output, content in zip(response.outputs, response.raw_output_contents, strict=True):
        values = _texts(content) if output.datatype == "BYTES" else values_of(output.datatype, content, output.name)
        document[output.name] = values[0] if len(values) == 1 else values
    return json_values.dump(document)


def _texts(content: bytes) -> list[Json]:
    elements = split(content)
    texts = json_values.texts_of(elements)
    return [json_values.to_base64(element) for element in elements] if texts is None else list(texts)


def _shape(spec: TensorSpec, count: int) -> list[int]:
    left, shape = count, list(spec.shape)
    for size in shape:
        if size > 0:
            left, rest = divmod(left, size)
            if rest:
                raise _misfit(spec)
    for index in reversed(range(len(shape))):
        if shape[index] < 0:
            shape[index], left = left, 1
    if left != 1:
        raise _misfit(spec)
    return shape


def _misfit(spec: TensorSpec) -> InvalidArgument:
    return InvalidArgument(
        f"The schema can not convert input '{spec.name}' to tensor with proper shape {list(spec.shape)}; "
        "send as many values as it takes, or use infer",
        reason="INPUT_SHAPE_MISMATCH",
        field=spec.name,
    )
