"""The HTTP form of the Open Inference Protocol, with Triton's extensions and KServe's answers."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

from google.protobuf.message import Message

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import InvalidArgument
from sealane.protocols import json_fields, json_values, message_json
from sealane.protocols.generate_json import decode_generated, encode_generate
from sealane.protocols.json_values import Json
from sealane.protocols.openinference_json import (
    HEADER_LENGTH,
    Wanted,
    decode_response,
    encode_request,
    header_length,
)
from sealane.protocols.openinference_raw import encode_raw_request
from sealane.protocols.peek import target_of as oip_target
from sealane.rest.table import BINARY, Asked, Endpoint, Notes, Question, Reply
from sealane.tensors import Signature

SERVICE = "/inference.GRPCInferenceService/"
INFER = SERVICE + "ModelInfer"
STREAM = SERVICE + "ModelStreamInfer"
_Tell = Callable[[bytes], Json]


def endpoints() -> list[Endpoint]:
    """All of them; those that are called most stand first."""
    found: list[Endpoint] = []
    for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        found += _of_model(model)
    return [*found, *_of_server(), *_unsupported()]


def _of_model(at: str) -> list[Endpoint]:
    return [
        Endpoint("POST", f"{at}/infer", INFER, infer, "Run a model", _is_raw, _json_length),
        Endpoint(
            "POST", f"{at}/infer_stream", STREAM, infer, "Run a model, answers as events", _is_raw, _json_length, True
        ),
        Endpoint("POST", f"{at}/generate", INFER, generate, "Run a model on inputs by name", _always),
        Endpoint(
            "POST", f"{at}/generate_stream", STREAM, generate, "The same, answers as events", _always, streams=True
        ),
        Endpoint("GET", f"{at}/ready", SERVICE + "ModelReady", model_ready, "Whether a model can be called"),
        Endpoint("GET", f"{at}/config", SERVICE + "ModelConfig", model_config, "How a model is served"),
        Endpoint("GET", f"{at}/stats", SERVICE + "ModelStatistics", statistics, "What a model has done"),
    ]


def _of_server() -> list[Endpoint]:
    model, versions, load = (
        "/v2/models/{model}",
        "/v2/models/{model}/versions/{version}",
        "/v2/repository/models/{model}",
    )
    return [
        Endpoint("GET", "/v2/health/live", SERVICE + "ServerLive", live, "Whether the server is up"),
        Endpoint("GET", "/v2/health/ready", SERVICE + "ServerReady", ready, "Whether the server can route"),
        Endpoint("GET", "/v2", SERVICE + "ServerMetadata", server_metadata, "Name, version and extensions"),
        Endpoint("GET", "/v2/models/stats", SERVICE + "ModelStatistics", statistics, "What all models have done"),
        Endpoint("GET", "/v2/models", SERVICE + "RepositoryIndex", model_names, "Names of the models (KServe)"),
        Endpoint("GET", model, SERVICE + "ModelMetadata", model_metadata, "Inputs and outputs of a model"),
        Endpoint("GET", versions, SERVICE + "ModelMetadata", model_metadata, "Inputs and outputs of a version"),
        Endpoint("POST", "/v2/repository/index", SERVICE + "RepositoryIndex", index, "The models and their states"),
        Endpoint("POST", f"{load}/load", SERVICE + "RepositoryModelLoad", load_model, "Deploy a model"),
        Endpoint("POST", f"{load}/unload", SERVICE + "RepositoryModelUnload", unload_model, "Remove a deployment"),
    ]


def _unsupported() -> list[Endpoint]:
    """What Triton has and nobody may do here: they answer as Triton does where they are not built in."""
    found = []
    for kind, name in (("systemsharedmemory", "SystemSharedMemory"), ("cudasharedmemory", "CudaSharedMemory")):
        for at in (f"/v2/{kind}", f"/v2/{kind}/region/{{region}}"):
            found.append(_refused("GET", f"{at}/status", f"{name}Status"))
            found.append(_refused("POST", f"{at}/unregister", f"{name}Unregister"))
        found.append(_refused("POST", f"/v2/{kind}/region/{{region}}/register", f"{name}Register"))
    for verb in ("GET", "POST"):
        found.append(_refused(verb, "/v2/logging", "LogSettings"))
        found.append(_refused(verb, "/v2/trace/setting", "TraceSetting"))
        found.append(_refused(verb, "/v2/models/{model}/trace/setting", "TraceSetting"))
    return found


def _refused(verb: str, path: str, method: str) -> Endpoint:
    return Endpoint(verb, path, SERVICE + method, _nothing, "Not served here")


def infer(question: Question) -> Asked:
    """ModelInfer, with tensors in JSON, behind it, or one tensor alone."""
    length = _json_length(question)
    target = oip_target(question.target.model, question.target.version)
    if _is_raw(question):
        message, wanted = encode_raw_request(target, question.body, _signature(question)), Wanted(binary=True)
    else:
        message, wanted = encode_request(target, question.body, length)

    notes: Notes = {"binary": wanted.binary, "by_name": dict(wanted.by_name)}
    light = wanted.binary and not any(not item for item in wanted.by_name.values())
    return Asked(message, lambda answer: tell_infer(notes, answer), light, notes)


def tell_infer(notes: Notes, answer: bytes) -> Reply:
    """The answer of ModelInfer."""
    by_name = {name: bool(value) for name, value in json_fields.object_of(notes["by_name"], "outputs").items()}
    told = decode_response(answer, Wanted(bool(notes["binary"]), by_name))
    if not told.binary:
        return Reply((told.document,))
    headers = (("Inference-Header-Content-Length", str(len(told.document))),)
    return Reply((told.document, *told.binary), media_type=BINARY, headers=headers)


def generate(question: Question) -> Asked:
    """ModelInfer of inputs by name."""
    target = oip_target(question.target.model, question.target.version)
    message = encode_generate(target, question.body, _signature(question))
    return Asked(message, lambda answer: tell_generate({}, answer))


def tell_generate(notes: Notes, answer: bytes) -> Reply:
    """The answer of ModelInfer, outputs by name."""
    return Reply((decode_generated(answer),))


def live(question: Question) -> Asked:
    """ServerLive."""
    return _asked(oip.ServerLiveRequest(), lambda answer: {"live": oip.ServerLiveResponse.FromString(answer).live})


def ready(question: Question) -> Asked:
    """ServerReady; both keys, since the protocol's text shows one and its clients read the other."""

    def tell(answer: bytes) -> Reply:
        found = oip.ServerReadyResponse.FromString(answer).ready
        return Reply((json_values.dump({"ready": found, "live": True}),), 200 if found else 400)

    return Asked(b"", tell)


def server_metadata(question: Question) -> Asked:
    """ServerMetadata."""
    return _asked(
        oip.ServerMetadataRequest(), lambda answer: message_json.plain(oip.ServerMetadataResponse.FromString(answer))
    )


def model_ready(question: Question) -> Asked:
    """ModelReady."""
    target = question.target

    def tell(answer: bytes) -> Reply:
        found = oip.ModelReadyResponse.FromString(answer).ready
        return Reply((json_values.dump({"name": target.model, "ready": found}),), 200 if found else 400)

    return Asked(oip.ModelReadyRequest(name=target.model, version=target.version).SerializeToString(), tell)


def model_metadata(question: Question) -> Asked:
    """ModelMetadata."""
    request = oip.ModelMetadataRequest(name=question.target.model, version=question.target.version)
    return _asked(request, lambda answer: message_json.plain(oip.ModelMetadataResponse.FromString(answer)))


def model_config(question: Question) -> Asked:
    """ModelConfig."""
    request = oip.ModelConfigRequest(name=question.target.model, version=question.target.version)
    return _asked(request, lambda answer: message_json.plain(oip.ModelConfigResponse.FromString(answer).config))


def statistics(question: Question) -> Asked:
    """ModelStatistics; of all models where the path names none."""
    request = oip.ModelStatisticsRequest(name=question.target.model, version=question.target.version)
    return _asked(request, lambda answer: message_json.plain(oip.ModelStatisticsResponse.FromString(answer)))


def index(question: Question) -> Asked:
    """RepositoryIndex."""
    only_ready = json_fields.flag_of(_body(question).get("ready", False), "ready")

    def tell(answer: bytes) -> Reply:
        found = oip.RepositoryIndexResponse.FromString(answer).models
        return Reply((json_values.dump([message_json.plain(model) for model in found]),))

    return Asked(oip.RepositoryIndexRequest(ready=only_ready).SerializeToString(), tell)


def model_names(question: Question) -> Asked:
    """RepositoryIndex, as KServe tells it."""
    return _asked(
        oip.RepositoryIndexRequest(),
        lambda answer: {"models": [model.name for model in oip.RepositoryIndexResponse.FromString(answer).models]},
    )


def load_model(question: Question) -> Asked:
    """RepositoryModelLoad; the answer is KServe's, Triton's clients read none."""
    request = oip.RepositoryModelLoadRequest(model_name=question.target.model)
    for name, value in json_fields.object_of(_body(question).get("parameters", {}), "parameters").items():
        _set_parameter(request.parameters[name], name, value)
    return _asked(request, lambda answer: {"name": question.target.model, "load": True})


def unload_model(question: Question) -> Asked:
    """RepositoryModelUnload; the answer is KServe's."""
    request = oip.RepositoryModelUnloadRequest(model_name=question.target.model)
    for name, value in json_fields.object_of(_body(question).get("parameters", {}), "parameters").items():
        _set_parameter(request.parameters[name], name, value)
    return _asked(request, lambda answer: {"name": question.target.model, "unload": True})


def _nothing(question: Question) -> Asked:
    return Asked(b"", lambda answer: Reply())


def _asked(request: Message, tell: _Tell) -> Asked:
    return Asked(request.SerializeToString(), lambda answer: Reply((json_values.dump(tell(answer)),)))


def _signature(question: Question) -> Signature:
    found = question.model.signature() if question.model is not None else None
    if found is None:
        raise InvalidArgument(
            f"model '{question.target.model}' has several signatures and none of them is the default; use infer",
            reason="SIGNATURE_NOT_FOUND",
        )
    return found


def _body(question: Question) -> dict[str, Json]:
    return json_values.parse(question.body) if question.body else {}


def _set_parameter(target: oip.ModelRepositoryParameter, name: str, value: Json) -> None:
    if isinstance(value, bool):
        target.bool_param = value
    elif isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        target.int64_param = value
    elif isinstance(value, str) and name.startswith("file:"):
        try:
            target.bytes_param = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidArgument(
                f"parameter {name[:80]!r} is no base64; encode the file", field="parameters"
            ) from None
    elif isinstance(value, str):
        target.string_param = value
    else:
        raise InvalidArgument(
            f"parameter {name[:80]!r} is neither a truth value, a whole number nor text; send one of them",
            field="parameters",
        )


def _json_length(question: Question) -> int:
    return header_length(question.headers.get(HEADER_LENGTH), len(question.body))


def _is_raw(question: Question) -> bool:
    return bool(question.body) and question.headers.get(HEADER_LENGTH) == "0"


def _always(question: Question) -> bool:
    return True
