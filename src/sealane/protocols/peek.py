"""Which model a foreign request is for, read from its bytes without parsing its tensors.

The gateway forwards the bytes untouched and needs only the name. What is read here must be what a
full parse at the worker reads, or a caller could be routed by one name and served another: fields
may come twice and in any order, the last one counts, and embedded messages merge
(https://protobuf.dev/programming-guides/encoding, "Last One Wins"). Groups and more than
:data:`MAX_FIELDS` fields are refused, so that the scan of any body ends soon.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sealane.errors import InvalidArgument
from sealane.protocols.call import Target

#: Most fields of one message that are looked at; a request with 256 tensors has some 800.
MAX_FIELDS = 4096
#: Most workers that one request may be sealed to.
MAX_RECIPIENTS = 8
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}

_OIP = "/inference.GRPCInferenceService/"
_PREDICTION = "/tensorflow.serving.PredictionService/"
_NAME_AND_VERSION = frozenset(
    _OIP + method for method in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "ModelInfer")
)
_MODEL_SPEC = frozenset(
    {
        *(_PREDICTION + method for method in ("Predict", "Classify", "Regress", "GetModelMetadata")),
        "/tensorflow.serving.ModelService/GetModelStatus",
    }
)
_TASKS = _PREDICTION + "MultiInference"
#: Field of a ModelInferRequest -> what it holds.
_ID, _PARAMETERS = 3, 4


@dataclass(frozen=True, slots=True)
class Field:
    """One field: a number for a varint, else where its content begins; and where it ends in the body."""

    number: int
    wire_type: int
    value: int = 0
    start: int = 0
    end: int = 0


def names_model(path: str) -> bool:
    """Whether requests of the foreign method at `path` name a model."""
    return path in _NAME_AND_VERSION or path in _MODEL_SPEC or path == _TASKS


def peek(path: str, body: bytes) -> Target:
    """The model that the request `body` of the foreign method at `path` is for.

    Raises:
        InvalidArgument: a body that is no well-formed message, or a method that names no model.
    """
    if path in _NAME_AND_VERSION:
        return _name_and_version(body)
    if path in _MODEL_SPEC:
        return _model_spec(body, 0, len(body))
    if path == _TASKS:
        return _first_task(body)
    raise InvalidArgument(f"method {path!r} names no model", reason="METHOD_WITHOUT_MODEL")


@dataclass(frozen=True, slots=True)
class SealedRoute:
    """Where a sealed request may go: its deployment and the keys it is sealed to."""

    deployment: str
    key_ids: tuple[str, ...]


def inner(body: bytes) -> bytes:
    """The serialized message in field 1 of a message that holds nothing else; given twice, they merge.

    Raises:
        InvalidArgument: a body that is no well-formed message.
    """
    found = [
        body[item.start : item.end]
        for item in fields(body, 0, len(body))
        if (item.number, item.wire_type) == (1, _LENGTH)
    ]
    return found[0] if len(found) == 1 else b"".join(found)


def peek_method(body: bytes) -> str:
    """What a serialized SealedInferRequest is a request of.

    Raises:
        InvalidArgument: a body that is no well-formed message.
    """
    found = [item for item in fields(body, 0, len(body)) if (item.number, item.wire_type) == (6, _LENGTH)]
    return _text(body, found[-1], "method") if found else ""


def peek_sealed(body: bytes) -> SealedRoute:
    """Where a serialized SealedInferRequest may go: to its recipients, or to the keeper of its session.

    Raises:
        InvalidArgument: a body that is no well-formed message, or one with too many recipients.
    """
    deployment = keeper = ""
    key_ids: list[str] = []
    for field in fields(body, 0, len(body)):
        if (field.number, field.wire_type) == (5, _LENGTH):
            deployment = _text(body, field, "deployment")
        elif (field.number, field.wire_type) == (7, _LENGTH):
            key_ids.append(_key_id(body, field, "recipients.key_id"))
        elif (field.number, field.wire_type) == (11, _LENGTH):
            keeper = _key_id(body, field, "session.key_id") or keeper
    if keeper and not key_ids:
        return SealedRoute(deployment, (keeper,))
    if not 0 < len(key_ids) <= MAX_RECIPIENTS:
        raise InvalidArgument(
            f"{len(key_ids)} recipients; seal to 1 to {MAX_RECIPIENTS} workers of the sealing context",
            reason="RECIPIENTS",
            field="recipients",
        )
    return SealedRoute(deployment, tuple(key_ids))


def target_of(model: str, version: str) -> Target:
    """A target from an Open Inference version, which is a number or a label."""
    if version and version.isascii() and version.isdigit():
        return Target(model=model, version=str(int(version)) if len(version) < 20 else version)
    return Target(model=model, label=version)


def _name_and_version(body: bytes) -> Target:
    model = version = ""
    for field in fields(body, 0, len(body)):
        if field.wire_type == _LENGTH and field.number == 1:
            model = _text(body, field, "model_name")
        elif field.wire_type == _LENGTH and field.number == 2:
            version = _text(body, field, "model_version")
    return target_of(model, version)


@dataclass(frozen=True, slots=True)
class InferOptions:
    """What the way of an inference depends on, besides its model; `sequence` is empty outside of one."""

    request_id: str = ""
    sequence: str = ""


_NO_OPTIONS = InferOptions()


def peek_options(body: bytes) -> InferOptions:
    """Id and sequence of a serialized ModelInferRequest.

    Raises:
        InvalidArgument: a body that is no well-formed message.
    """
    request_id, sequence = "", ""
    for field in fields(body, 0, len(body)):
        if field.wire_type != _LENGTH:
            continue
        if field.number == _ID:
            request_id = _text(body, field, "id")
        elif field.number == _PARAMETERS and body.find(b"sequence_id", field.start, field.end) >= 0:
            sequence = _sequence(body, field, sequence)
    return InferOptions(request_id, sequence) if request_id or sequence else _NO_OPTIONS


def _sequence(body: bytes, entry: Field, before: str) -> str:
    """The sequence of a map entry, if it is that of `sequence_id`; 0 and the empty text are none."""
    key, value = "", ""
    for field in fields(body, entry.start, entry.end):
        if (field.number, field.wire_type) == (1, _LENGTH):
            key = _text(body, field, "parameters")
        elif (field.number, field.wire_type) == (2, _LENGTH):
            for choice in fields(body, field.start, field.end):
                if (choice.number, choice.wire_type) in ((2, _VARINT), (5, _VARINT)):
                    value = str(choice.value) if choice.value else ""
                elif (choice.number, choice.wire_type) == (3, _LENGTH):
                    value = _text(body, choice, "parameters")
    return value if key == "sequence_id" else before


def _first_task(body: bytes) -> Target:
    """The model of the first task; the worker refuses tasks for another one."""
    for task in fields(body, 0, len(body)):
        if (task.number, task.wire_type) == (1, _LENGTH):
            return _model_spec(body, task.start, task.end)
    return Target("")


def _model_spec(body: bytes, start: int, end: int) -> Target:
    name = label = signature = ""
    version: int | None = None
    for outer in fields(body, start, end):
        if (outer.number, outer.wire_type) != (1, _LENGTH):
            continue
        for field in fields(body, outer.start, outer.end):
            if field.wire_type != _LENGTH:
                continue
            if field.number == 1:
                name = _text(body, field, "model_spec.name")
            elif field.number == 2:
                version, label = _wrapped(body, field, version or 0), ""
            elif field.number == 3:
                signature = _text(body, field, "model_spec.signature_name")
            elif field.number == 4:
                version, label = None, _text(body, field, "model_spec.version_label")
    return Target(
        model=name,
        version="" if version is None else str(version),
        label=label,
        signature=signature,
    )


def _wrapped(body: bytes, wrapper: Field, value: int) -> int:
    """The number in an Int64Value, or `value` where it has none."""
    for field in fields(body, wrapper.start, wrapper.end):
        if (field.number, field.wire_type) == (1, _VARINT):
            value = field.value - (1 << 64) if field.value >> 63 else field.value
    return value


def _key_id(body: bytes, holder: Field, path: str) -> str:
    key_id = ""
    for field in fields(body, holder.start, holder.end):
        if (field.number, field.wire_type) == (1, _LENGTH):
            key_id = _text(body, field, path)
    return key_id


def _text(body: bytes, field: Field, path: str) -> str:
    try:
        return body[field.start : field.end].decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f"{path} is not UTF-8; send text", reason="MALFORMED_REQUEST", field=path) from None


def fields(body: bytes, position: int, end: int) -> Iterator[Field]:
    """The fields of the message at body[position:end], in order."""
    count = 0
    while position < end:
        count += 1
        if count > MAX_FIELDS:
            raise _malformed(f"it has more than {MAX_FIELDS} fields")
        tag, position = _varint(body, position, end)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise _malformed(f"it has field number {number}")
        if wire_type == _VARINT:
            value, position = _varint(body, position, end)
            yield Field(number, wire_type, value=value, end=position)
            continue
        if wire_type == _LENGTH:
            size, position = _varint(body, position, end)
        elif wire_type in _FIXED:
            size = _FIXED[wire_type]
        else:
            raise _malformed(f"it has wire type {wire_type}")
        if size > end - position:
            raise _malformed("it ends inside a field")
        yield Field(number, wire_type, start=position, end=position + size)
        position += size


def _varint(body: bytes, position: int, end: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if position + index >= end:
            raise _malformed("it ends inside a number")
        byte = body[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value >> 64:
                break
            return value, position + index + 1
    raise _malformed("it has a number above 64 bits")


def _malformed(why: str) -> InvalidArgument:
    return InvalidArgument(
        f"the request is not a well-formed message: {why}; generate it with a protobuf library",
        reason="MALFORMED_REQUEST",
    )
