"""Open Inference Protocol v2 over HTTP: bodies of JSON, with binary tensors behind it, <-> the protocol's messages.

Pure: no network, no model. Texts in quotes are those of Triton, because its clients match on them. The elements of a
request are copied once on their way into the message, those of a response not at all.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import InvalidArgument
from sealane.protocols import json_fields, json_values
from sealane.protocols.call import Target
from sealane.protocols.elements import check_count, to_content
from sealane.protocols.json_values import Json
from sealane.protocols.wire import length_delimited
from sealane.tensors import MAX_TENSOR_BYTES, NUMPY_OF, byte_size

#: Length of the JSON of a body in front of its binary tensors.
HEADER_LENGTH = "inference-header-content-length"
#: Field of a ModelInferRequest with the bytes of a tensor.
_RAW = 7
_BINARY_SIZE, _BINARY, _BINARY_ALL = "binary_data_size", "binary_data", "binary_data_output"
#: Parameter of a BYTES tensor that says how its elements are written, as MLServer has it.
_CONTENT_TYPE, _BASE64 = "content_type", "base64"
_FINAL = "triton_final_response"
_DIGITS = re.compile(r"[0-9]{1,12}")
Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the outputs of an answer are to be written; an output that is not named follows the default."""

    binary: bool = False
    by_name: Mapping[str, bool] = field(default_factory=dict)

    def is_binary(self, name: str) -> bool:
        """Whether an output travels behind the JSON."""
        return self.by_name.get(name, self.binary)


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of an answer: JSON, and what travels behind it."""

    document: bytes
    binary: tuple[bytes, ...] = ()


def header_length(value: str | None, size: int) -> int:
    """How much of a body of `size` bytes is JSON.

    Raises:
        InvalidArgument: no number, or more than there is.
    """
    if value is None:
        return size
    if not _DIGITS.fullmatch(value) or int(value) > size:
        raise InvalidArgument(
            f"Unable to parse {HEADER_LENGTH}, got: {value[:20]}; it is the length of the JSON in front of the tensors",
            reason="MALFORMED_REQUEST",
        )
    return int(value)


def encode_request(target: Target, body: bytes, length: int) -> tuple[bytes, Wanted]:
    """The serialized ModelInferRequest of a body whose first `length` bytes are JSON.

    Raises:
        InvalidArgument: anything in it that can never work.
    """
    document = json_values.parse(body if length == len(body) else body[:length])
    request = oip.ModelInferRequest(model_name=target.model, model_version=target.version or target.label)
    request.id = json_fields.text_of(document.get("id", ""), "id")
    parameters = json_fields.object_of(document.get("parameters", {}), "parameters")
    binary = json_fields.flag_of(parameters.get(_BINARY_ALL, False), f"parameters.{_BINARY_ALL}")
    _set_parameters(request.parameters, parameters, "parameters", but=(_BINARY_ALL,))
    raw = _inputs(request, json_fields.list_of(document.get("inputs"), "inputs"), memoryview(body)[length:])
    outputs = _outputs(request, json_fields.list_of(document.get("outputs", []), "outputs"))
    parts: list[Buffer] = [request.SerializeToString()]
    for content in raw:
        parts += (length_delimited(_RAW, len(content)), content)
    return b"".join(parts), Wanted(binary, outputs)


def decode_response(message: bytes, wanted: Wanted) -> Answer:
    """The body of a serialized ModelInferResponse.

    Raises:
        InvalidArgument: an output that JSON cannot carry; ask for it in binary.
    """
    response = oip.ModelInferResponse.FromString(message)
    document = response_head(response)
    outputs: list[Json] = []
    binary: list[bytes] = []
    for output, content in zip(response.outputs, response.raw_output_contents, strict=True):
        told: dict[str, Json] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        parameters = json_fields.parameters_of(output.parameters)
        if wanted.is_binary(output.name):
            parameters[_BINARY_SIZE] = len(content)
            binary.append(content)
        elif output.datatype == "BYTES":
            elements = split(content)
            texts = json_values.texts_of(elements)
            if texts is None:
                parameters[_CONTENT_TYPE] = _BASE64
                texts = [json_values.to_base64(element)["b64"] for element in elements]
            told["data"] = texts
        else:
            told["data"] = values_of(output.datatype, content, output.name)
        if parameters:
            told["parameters"] = parameters
        outputs.append(told)
    document["outputs"] = outputs
    return Answer(json_values.dump(document), tuple(binary))


def one_of_stream(message: bytes) -> bytes:
    """The serialized ModelInferResponse in a serialized ModelStreamInferResponse, without what is of streams alone."""
    response = oip.ModelStreamInferResponse.FromString(message).infer_response
    response.parameters.pop(_FINAL, None)
    return response.SerializeToString()


def response_head(response: oip.ModelInferResponse) -> dict[str, Json]:
    """What an answer says besides its outputs."""
    head: dict[str, Json] = {"id": response.id} if response.id else {}
    head |= {"model_name": response.model_name, "model_version": response.model_version}
    if response.parameters:
        head["parameters"] = json_fields.parameters_of(response.parameters)
    return head


def values_of(datatype: str, content: bytes, name: str) -> list[Json]:
    """The elements of a tensor of fixed size, flat.

    Raises:
        InvalidArgument: FP16 and BF16 travel in binary alone.
    """
    if datatype in ("FP16", "BF16"):
        raise InvalidArgument(
            f"sending {datatype} data via JSON is not supported. Please use the binary data format for output '{name}'",
            reason="DATATYPE_BINARY",
            field="outputs",
        )
    found: list[Json] = np.frombuffer(content, NUMPY_OF[datatype]).tolist()
    return found


def split(content: bytes) -> list[bytes]:
    """The elements of raw BYTES that a worker wrote."""
    elements, position = [], 0
    while position < len(content):
        start = position + 4
        position = start + int.from_bytes(content[position:start], "little")
        elements.append(content[start:position])
    return elements


def join(elements: list[bytes]) -> bytes:
    """Raw BYTES of elements."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def pack(datatype: str, values: Json, count: int, parameters: Mapping[str, Json], path: str) -> bytes:
    """Raw contents of the elements of a tensor, given as nested or flat lists.

    Raises:
        InvalidArgument: values of another type or number than the tensor has.
    """
    if datatype in ("FP16", "BF16"):
        raise InvalidArgument(
            f"sending {datatype} data via JSON is not supported. Please use the binary data format for input '{path}'",
            reason="DATATYPE_BINARY",
            field=path,
        )
    if datatype == "BYTES":
        if parameters.get(_CONTENT_TYPE) == _BASE64:
            elements = [
                json_values.from_base64(json_fields.text_of(value, path), path) for value in json_values.leaves(values)
            ]
        else:
            elements = json_values.byte_values(values, path)
        found, content = len(elements), join(elements)
    else:
        array = json_values.numbers(values, datatype, path)
        found, content = array.size, to_content(array)
    if found != count:
        raise InvalidArgument(
            f"Unable to parse 'data': Shape does not match true shape of 'data' field of '{path}': "
            f"{found} values, the shape takes {count}",
            reason="TENSOR_SIZE_MISMATCH",
            field=path,
        )
    return content


def _inputs(request: oip.ModelInferRequest, inputs: list[Json], tail: memoryview) -> list[Buffer]:
    """Describe the inputs in the request; returns their bytes, in order."""
    check_count(len(inputs), "inputs")
    contents: list[Buffer] = []
    position = 0
    for index, item in enumerate(inputs):
        tensor = json_fields.object_of(item, f"inputs[{index}]")
        name = json_fields.text_of(tensor.get("name"), f"inputs[{index}].name")
        datatype = json_fields.text_of(tensor.get("datatype"), f"inputs[{index}].datatype")
        shape = json_fields.shape_of(tensor.get("shape"), f"inputs[{index}].shape")
        parameters = json_fields.object_of(tensor.get("parameters", {}), f"inputs[{index}].parameters")
        told = request.inputs.add(name=name, datatype=datatype, shape=shape)
        _set_parameters(told.parameters, parameters, f"inputs[{index}].parameters", but=(_BINARY_SIZE, _CONTENT_TYPE))
        if any(parameter.startswith("shared_memory_") for parameter in parameters):
            contents.append(b"")  # the worker says that it opens none
            continue
        if _BINARY_SIZE in parameters:
            size = json_fields.whole_of(parameters[_BINARY_SIZE], f"inputs[{index}].parameters.{_BINARY_SIZE}")
            if position + size > len(tail):
                raise InvalidArgument(
                    f"unexpected end of binary data: input '{name}' has {size} bytes, {len(tail) - position} are left",
                    reason="TENSOR_SIZE_MISMATCH",
                    field=f"inputs[{index}]",
                )
            contents.append(tail[position : position + size])
            position += size
            continue
        if "data" not in tensor:
            raise InvalidArgument(
                f"unable to find data for input tensor '{name}' for model '{request.model_name}' in request.",
                reason="NO_DATA",
                field=f"inputs[{index}].data",
            )
        count = byte_size(datatype, shape, MAX_TENSOR_BYTES) // NUMPY_OF[datatype].itemsize
        contents.append(pack(datatype, tensor["data"], count, parameters, name))
    if position != len(tail):
        raise InvalidArgument(
            f"unexpected additional input data for model '{request.model_name}'", reason="TENSOR_SIZE_MISMATCH"
        )
    return contents


def _outputs(request: oip.ModelInferRequest, outputs: list[Json]) -> dict[str, bool]:
    """Name the wanted outputs in the request; returns which of them say how they travel."""
    check_count(len(outputs), "outputs")
    binary: dict[str, bool] = {}
    for index, item in enumerate(outputs):
        output = json_fields.object_of(item, f"outputs[{index}]")
        name = json_fields.text_of(output.get("name"), f"outputs[{index}].name")
        parameters = json_fields.object_of(output.get("parameters", {}), f"outputs[{index}].parameters")
        told = request.outputs.add(name=name)
        classes = parameters.get("classification")
        but = (_BINARY, "classification") if classes == 0 else (_BINARY,)
        _set_parameters(told.parameters, parameters, f"outputs[{index}].parameters", but=but)
        if _BINARY in parameters:
            binary[name] = json_fields.flag_of(parameters[_BINARY], f"outputs[{index}].parameters.{_BINARY}")
    return binary


def _set_parameters(
    target: Mapping[str, oip.InferParameter], parameters: Mapping[str, Json], path: str, but: tuple[str, ...]
) -> None:
    check_count(len(parameters), path)
    for name, value in parameters.items():
        if name not in but:
            json_fields.set_parameter(target[name], value, f"{path}.{name}")
