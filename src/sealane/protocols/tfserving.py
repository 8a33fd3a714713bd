"""TensorFlow Serving: its messages <-> plain calls and answers, without TensorFlow.

Pure: no network, no model. Texts that clients match on are those of TensorFlow Serving.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import FailedPrecondition, InvalidArgument, NotFound
from sealane.protocols.call import (
    DEFAULT_SIGNATURE,
    InferenceAnswer,
    InferenceCall,
    ModelDescription,
    Target,
)
from sealane.protocols.elements import Budget, check_count
from sealane.protocols.tfserving_tensors import (
    decode_signature,
    decode_tensor,
    encode_signature,
    encode_tensor,
)
from sealane.tensors import Array, Signature

#: The only metadata field of the protocol, and the foreign type of its content.
METADATA_FIELD = "signature_def"
METADATA_TYPE = "type.googleapis.com/tensorflow.serving.SignatureDefMap"


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """State of one version: a name of ModelVersionStatus.State, and the error where it ended with one."""

    version: int
    state: str
    error_code: str = "OK"
    error_message: str = ""


def target(
    request: tfs.PredictRequest
    | tfs.GetModelMetadataRequest
    | tfs.GetModelStatusRequest
    | tfs.ClassificationRequest
    | tfs.RegressionRequest
    | tfs.InferenceTask,
) -> Target:
    """Which model a parsed request is for.

    Raises:
        InvalidArgument: no model spec, or no name in it.
    """
    if not request.HasField("model_spec"):
        raise InvalidArgument("Missing ModelSpec", reason="MODEL_NAME_MISSING", field="model_spec")
    spec = request.model_spec
    if not spec.name:
        raise InvalidArgument(
            "ModelSpec has no name specified.",
            reason="MODEL_NAME_MISSING",
            field="model_spec.name",
        )
    version = str(spec.version.value) if spec.HasField("version") else ""
    return Target(spec.name, version, spec.version_label, spec.signature_name)


def unknown_model(wanted: Target) -> NotFound | InvalidArgument:
    """The answer for a model, or a version of it, that is not there."""
    if wanted.label:
        return InvalidArgument(
            f"Unrecognized servable version label: {wanted.label}",
            reason="LABEL_UNKNOWN",
            field="model_spec.version_label",
        )
    which = f"Specific({wanted.model}, {wanted.version})" if wanted.version else f"Latest({wanted.model})"
    return NotFound(f"Servable not found for request: {which}", reason="MODEL_NOT_FOUND")


def unknown_version(wanted: Target) -> NotFound:
    """The answer to a status request for a version that is not there."""
    return NotFound(
        f"Could not find version {wanted.version} of model {wanted.model}",
        reason="VERSION_NOT_FOUND",
    )


def decode_request(request: tfs.PredictRequest) -> InferenceCall:
    """A plain call from a request; tensors in `tensor_content` are read in place.

    Raises:
        InvalidArgument: anything in it that can never work.
    """
    wanted = target(request)
    check_count(len(request.inputs), "inputs")
    check_count(len(request.output_filter), "output_filter")
    outputs = tuple(request.output_filter)
    for name in outputs:
        if outputs.count(name) > 1:
            raise InvalidArgument(
                f"duplicate output tensor alias: {name}",
                reason="OUTPUT_NAME",
                field="output_filter",
            )
    budget = Budget()
    inputs = {name: decode_tensor(proto, budget, f"inputs[{name}]") for name, proto in request.inputs.items()}
    return InferenceCall(wanted, inputs, outputs)


def find_signature(model: ModelDescription, name: str) -> Signature:
    """The signature that a request names, `serving_default` where it names none.

    Raises:
        FailedPrecondition: the model has no such signature.
    """
    signature = model.signature(name)
    if signature is None:
        raise FailedPrecondition(
            f'Serving signature key "{name or DEFAULT_SIGNATURE}" not found.',
            reason="SIGNATURE_NOT_FOUND",
        )
    return signature


def check(call: InferenceCall, signature: Signature) -> tuple[str, ...]:
    """The outputs to compute, after the inputs were checked against the signature.

    Raises:
        InvalidArgument: inputs that the signature cannot run, or an output that it does not have.
    """
    wanted = {spec.name for spec in signature.inputs}
    sent = set(call.inputs)
    if sent != wanted:
        raise InvalidArgument(
            f"input size does not match signature: {len(sent)}!={len(wanted)} len({_braces(sent)}) != "
            f"len({_braces(wanted)}). Sent extra: {_braces(sent - wanted)}. "
            f"Missing but required: {_braces(wanted - sent)}.",
            reason="INPUT_NAMES_MISMATCH",
            field="inputs",
        )
    signature.check_inputs(call.inputs)
    known = tuple(spec.name for spec in signature.outputs)
    for name in call.outputs:
        if name not in known:
            raise InvalidArgument(
                f"output tensor alias not found in signature: {name} Outputs expected to be in the set "
                f"{_braces(known)}.",
                reason="OUTPUT_UNKNOWN",
                field="output_filter",
            )
    return call.outputs or known


def encode_response(answer: InferenceAnswer) -> tfs.PredictResponse:
    """The response for an answer; it echoes the name with the version and signature that ran."""
    response = response_head(answer.call.target.model, answer.version, answer.signature)
    for name, array in answer.outputs.items():
        response.outputs[name].CopyFrom(encode_tensor(array))
    return response


def response_head(model: str, version: str, signature: str) -> tfs.PredictResponse:
    """A response without its tensors."""
    return tfs.PredictResponse(model_spec=spec_of(model, version, signature))


def encode_request(call: InferenceCall) -> tfs.PredictRequest:
    """The request for a call."""
    wanted = call.target
    request = tfs.PredictRequest(
        model_spec=spec_of(wanted.model, wanted.version, wanted.signature),
        output_filter=call.outputs,
    )
    if wanted.label:
        request.model_spec.version_label = wanted.label
    for name, array in call.inputs.items():
        request.inputs[name].CopyFrom(encode_tensor(array))
    return request


def decode_response(response: tfs.PredictResponse) -> dict[str, Array]:
    """The outputs of a response by name.

    Raises:
        InvalidArgument: a response that holds no well-formed tensors.
    """
    budget = Budget()
    return {name: decode_tensor(proto, budget, f"outputs[{name}]") for name, proto in response.outputs.items()}


def check_metadata_request(request: tfs.GetModelMetadataRequest) -> Target:
    """Which model a metadata request is for.

    Raises:
        InvalidArgument: no model, or another metadata field than `signature_def`.
    """
    wanted = target(request)
    if not request.metadata_field:
        raise InvalidArgument(
            "GetModelMetadataRequest must specify at least one metadata_field",
            reason="METADATA_FIELD",
            field="metadata_field",
        )
    for name in request.metadata_field:
        if name != METADATA_FIELD:
            raise InvalidArgument(
                f"Metadata field {name} is not supported",
                reason="METADATA_FIELD",
                field="metadata_field",
            )
    return wanted


def encode_metadata(model: ModelDescription, version: str) -> tfs.GetModelMetadataResponse:
    """The metadata of the version of a model that answers."""
    signatures = tfs.SignatureDefMap()
    for signature in model.signatures:
        signatures.signature_def[signature.name].CopyFrom(encode_signature(signature))
    response = tfs.GetModelMetadataResponse(model_spec=spec_of(model.name, version))
    content = response.metadata[METADATA_FIELD]
    content.type_url = METADATA_TYPE
    content.value = signatures.SerializeToString(deterministic=True)
    return response


def decode_metadata(response: tfs.GetModelMetadataResponse) -> ModelDescription:
    """What a metadata response says about a model.

    Raises:
        InvalidArgument: a content that is no map of signatures.
    """
    signatures = tfs.SignatureDefMap()
    content = response.metadata.get(METADATA_FIELD)
    try:
        signatures.ParseFromString(content.value if content is not None else b"")
    except DecodeError:
        raise InvalidArgument("the metadata holds no map of signatures", reason="MALFORMED_RESPONSE") from None
    spec = response.model_spec
    return ModelDescription(
        name=spec.name,
        versions=(str(spec.version.value),) if spec.HasField("version") else (),
        platform="",
        signatures=tuple(
            decode_signature(name, signatures.signature_def[name]) for name in sorted(signatures.signature_def)
        ),
    )


def encode_status(wanted: Target, versions: Sequence[VersionStatus]) -> tfs.GetModelStatusResponse:
    """The state of the version that is wanted, or of all, newest first.

    Raises:
        NotFound: no such version.
    """
    chosen = [item for item in versions if not wanted.version or str(item.version) == wanted.version]
    if not chosen:
        raise unknown_version(wanted) if wanted.version else unknown_model(wanted)
    response = tfs.GetModelStatusResponse()
    for item in sorted(chosen, key=lambda item: -item.version):
        response.model_version_status.add(
            version=item.version,
            state=tfs.ModelVersionStatus.State.Value(item.state),
            status=tfs.StatusProto(
                error_code=tfs.Code.Value(item.error_code),
                error_message=item.error_message,
            ),
        )
    return response


def decode_status(response: tfs.GetModelStatusResponse) -> tuple[VersionStatus, ...]:
    """The state of each version in a response."""
    return tuple(
        VersionStatus(
            version=item.version,
            state=tfs.ModelVersionStatus.State.Name(item.state),
            error_code=tfs.Code.Name(item.status.error_code),
            error_message=item.status.error_message,
        )
        for item in response.model_version_status
    )


def spec_of(model: str, version: str, signature: str = "") -> tfs.ModelSpec:
    """A model spec; an empty version is left out."""
    spec = tfs.ModelSpec(name=model, signature_name=signature)
    if version:
        spec.version.value = int(version)
    return spec


def _braces(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
