"""Open Inference Protocol v2: its messages <-> plain calls and answers.

Pure: no network, no model. The service side decodes requests and encodes answers; the client side
does the reverse. Texts in quotes are those of Triton, because its clients match on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import InvalidArgument, NotFound
from sealane.protocols.call import (
    InferenceAnswer,
    InferenceCall,
    ModelDescription,
    SequencePlace,
    Target,
)
from sealane.protocols.elements import check_count
from sealane.protocols.openinference_tensors import decode_tensors, encode_raw
from sealane.protocols.peek import target_of
from sealane.tensors import Array, Signature, TensorSpec, datatype_of

#: Protocol extensions that really work here.
EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)

_64_BITS = (1 << 64) - 1
#: Reserved request parameter -> kinds that it may have.
_RESERVED = {
    "sequence_id": ("int64_param", "uint64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "priority": ("int64_param", "uint64_param"),
    "timeout": ("int64_param",),
    "binary_data_output": ("bool_param",),
    "triton_enable_empty_final_response": ("bool_param",),
}


def target(
    request: oip.ModelInferRequest
    | oip.ModelMetadataRequest
    | oip.ModelReadyRequest
    | oip.ModelConfigRequest
    | oip.ModelStatisticsRequest,
) -> Target:
    """Which model a parsed request is for.

    Raises:
        InvalidArgument: no name.
    """
    if isinstance(request, oip.ModelInferRequest):
        name, version, field = request.model_name, request.model_version, "model_name"
    else:
        name, version, field = request.name, request.version, "name"
    if not name:
        raise InvalidArgument(
            "the request names no model; set its name",
            reason="MODEL_NAME_MISSING",
            field=field,
        )
    return target_of(name, version)


def unknown_model(wanted: Target) -> NotFound:
    """The answer for a model, or a version of it, that is not there."""
    version = wanted.version or wanted.label
    middle = f" version {version}" if version else ""
    return NotFound(
        f"Request for unknown model: '{wanted.model}'{middle} is not found",
        reason="MODEL_NOT_FOUND",
    )


def decode_request(request: oip.ModelInferRequest) -> InferenceCall:
    """A plain call from a request; its tensors are read in place.

    Raises:
        InvalidArgument: anything in it that can never work.
    """
    wanted = target(request)
    _check_parameters(request.parameters)
    check_count(len(request.outputs), "outputs")
    outputs: list[str] = []
    classify: dict[str, int] = {}
    for index, output in enumerate(request.outputs):
        where = f"outputs[{index}]"
        if not output.name or output.name in outputs:
            raise InvalidArgument(
                f"requested output {output.name!r} is empty or given twice; name each output once",
                reason="OUTPUT_NAME",
                field=f"{where}.name",
            )
        outputs.append(output.name)
        if classes := _classes(output, where):
            classify[output.name] = classes
    inputs = decode_tensors(request.inputs, request.raw_input_contents, request.model_name, "inputs")
    parameters = request.parameters
    if not parameters:
        return InferenceCall(wanted, inputs, tuple(outputs), request.id, classify)
    return InferenceCall(
        wanted,
        inputs,
        tuple(outputs),
        request.id,
        classify,
        _priority(parameters),
        parameters["timeout"].int64_param if "timeout" in parameters else 0,
        _sequence(parameters),
    )


def check(call: InferenceCall, signature: Signature) -> tuple[str, ...]:
    """The outputs to compute, after the inputs were checked against the signature.

    Raises:
        InvalidArgument: inputs that the signature cannot run, or an output that it does not have.
    """
    signature.check_inputs(call.inputs)
    known = tuple(spec.name for spec in signature.outputs)
    for name in call.outputs:
        if name not in known:
            raise InvalidArgument(
                f"unexpected inference output '{name}' for model '{call.target.model}'; it has {sorted(known)}",
                reason="OUTPUT_UNKNOWN",
                field="outputs",
            )
    return call.outputs or known


def encode_response(answer: InferenceAnswer) -> oip.ModelInferResponse:
    """The response for an answer, always with raw contents."""
    response = oip.ModelInferResponse(
        model_name=answer.call.target.model,
        model_version=answer.version,
        id=answer.call.request_id,
    )
    for name, array in answer.outputs.items():
        if classes := answer.call.classify.get(name):
            array = _top(array, classes)
        response.outputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        response.raw_output_contents.append(encode_raw(array))
    return response


def encode_request(call: InferenceCall) -> oip.ModelInferRequest:
    """The request for a call, with raw contents."""
    request = oip.ModelInferRequest(
        model_name=call.target.model,
        model_version=call.target.version or call.target.label,
        id=call.request_id,
    )
    for name, array in call.inputs.items():
        request.inputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        request.raw_input_contents.append(encode_raw(array))
    for name in call.outputs:
        output = request.outputs.add(name=name)
        if classes := call.classify.get(name):
            output.parameters["classification"].int64_param = classes
    return request


def decode_response(response: oip.ModelInferResponse) -> dict[str, Array]:
    """The outputs of a response by name.

    Raises:
        InvalidArgument: a response that holds no well-formed tensors.
    """
    return decode_tensors(response.outputs, response.raw_output_contents, response.model_name, "outputs")


def encode_metadata(model: ModelDescription) -> oip.ModelMetadataResponse:
    """The metadata of a model; inputs and outputs are those of its default signature."""
    response = oip.ModelMetadataResponse(name=model.name, versions=model.versions, platform=model.platform)
    signature = model.signature()
    if signature is not None:
        for spec in signature.inputs:
            response.inputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        for spec in signature.outputs:
            response.outputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    return response


def decode_metadata(response: oip.ModelMetadataResponse) -> ModelDescription:
    """What a metadata response says about a model."""
    signature = Signature(inputs=_specs(response.inputs), outputs=_specs(response.outputs))
    return ModelDescription(response.name, tuple(response.versions), response.platform, (signature,))


def _specs(
    tensors: Sequence[oip.ModelMetadataResponse.TensorMetadata],
) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in tensors)


def _priority(parameters: Mapping[str, oip.InferParameter]) -> int:
    """1 is the highest; 0 is none. More than a byte holds is the lowest there is."""
    if "priority" not in parameters:
        return 0
    parameter = parameters["priority"]
    return min(parameter.int64_param or parameter.uint64_param, 255)


def _sequence(parameters: Mapping[str, oip.InferParameter]) -> SequencePlace | None:
    """The sequence of a request; 0 and the empty text are none."""
    if "sequence_id" not in parameters:
        return None
    parameter = parameters["sequence_id"]
    number = parameter.int64_param or parameter.uint64_param
    name = str(number & _64_BITS) if number else parameter.string_param
    if not name:
        return None
    flags = (key in parameters and parameters[key].bool_param for key in ("sequence_start", "sequence_end"))
    return SequencePlace(name, *flags)


def _check_parameters(parameters: Mapping[str, oip.InferParameter]) -> None:
    """Reserved parameters must have the type that the protocol gives them."""
    for name, parameter in parameters.items():
        where = f"parameters[{name}]"
        kinds = _RESERVED.get(name)
        if kinds is None:
            if name.startswith("triton_"):
                raise InvalidArgument(
                    f"parameter keys starting with 'triton_' are reserved for Triton usage. Only "
                    f"'triton_enable_empty_final_response' is allowed, not '{name}'",
                    reason="PARAMETER_RESERVED",
                    field=where,
                )
            continue
        kind = parameter.WhichOneof("parameter_choice")
        if kind not in kinds:
            raise InvalidArgument(
                f"invalid value type for '{name}' parameter, expected {' or '.join(kinds)}.",
                reason="PARAMETER_TYPE",
                field=where,
            )
        if name in ("priority", "timeout") and parameter.int64_param < 0:
            raise InvalidArgument(
                f"invalid value for '{name}' parameter, expected value >= 0.",
                reason="PARAMETER_RANGE",
                field=where,
            )


def _classes(output: oip.ModelInferRequest.InferRequestedOutputTensor, where: str) -> int:
    """The number of classes wanted for an output; 0 where the tensor itself is."""
    if any(name.startswith("shared_memory_") for name in output.parameters):
        raise InvalidArgument(
            f"output '{output.name}' asks for shared memory, which this server does not open; read the response",
            reason="SHARED_MEMORY_OFF",
            field=f"{where}.parameters",
        )
    if "classification" not in output.parameters:
        return 0
    parameter = output.parameters["classification"]
    if parameter.WhichOneof("parameter_choice") != "int64_param" or parameter.int64_param < 1:
        raise InvalidArgument(
            "invalid value type for 'classification' parameter, expected int64_param above 0",
            reason="PARAMETER_TYPE",
            field=f"{where}.parameters[classification]",
        )
    return parameter.int64_param


def _top(array: Array, classes: int) -> Array:
    """The best classes of each row as `value:index`, best first; of the whole array below rank 2."""
    if array.dtype.kind not in "fiu":
        raise InvalidArgument(
            f"an output of {datatype_of(array)} has no classes; leave the 'classification' parameter out",
            reason="PARAMETER_TYPE",
            field="outputs",
        )
    rows = array.reshape(array.shape[0] if array.ndim > 1 else 1, -1)
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :classes]
    form = "{:f}:{}" if array.dtype.kind == "f" else "{}:{}"
    labels = np.empty(order.shape, dtype=np.object_)
    for place, index in np.ndenumerate(order):
        labels[place] = form.format(rows[place[0], index].item(), index).encode()
    return labels if array.ndim > 1 else labels[0]
