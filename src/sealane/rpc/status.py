"""Between :mod:`sealane.errors` and ``google.rpc.Status``. The one place that knows both."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from sealane import errors

DOMAIN = "sealane"
DETAILS_KEY = "grpc-status-details-bin"

#: Trailers of a call are at most 8 KiB where its client says nothing else. A message counts as it is encoded, which is
#: up to twelve bytes for a character; the details travel in base64, which adds a third.
MESSAGE_BYTES = 2000
_FACT_BYTES = 500
_FACTS_BYTES = 800
_REASON_BYTES = 100
_CUT = " ... "
#: Of what is too long the beginning is kept, and half as much of the end: there stands what to do next.
_END = 3

CODE_OF: dict[str, grpc.StatusCode] = {kind: getattr(grpc.StatusCode, kind) for kind in errors.BY_KIND}
_CODE_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def translate(failure: BaseException, request_id: str) -> errors.SealaneError:
    """The error to answer with: ours, short enough to be told; for anything else an opaque INTERNAL."""
    if isinstance(failure, errors.SealaneError):
        failure.message = clipped(failure.message)
        return failure
    if isinstance(failure, TimeoutError):
        return errors.DeadlineExceeded("the deadline of the call is over; allow more time or send less")
    return errors.Internal(f"internal error; quote request id {request_id} to the operator")


def clipped(text: str, limit: int = MESSAGE_BYTES) -> str:
    """A text of which at most `limit` bytes travel, without its middle where it is longer."""
    if len(text) <= limit and _encoded_size(text) <= limit:
        return text
    end = limit // _END
    return _beginning(text, limit - end - len(_CUT)) + _CUT + _beginning(text[::-1], end)[::-1]


def _beginning(text: str, limit: int) -> str:
    size = 0
    for index, character in enumerate(text[:limit]):
        size += _encoded_size(character)
        if size > limit:
            return text[:index]
    return text[:limit]


def _encoded_size(text: str) -> int:
    """Bytes of a text as gRPC writes it into a header: printable ASCII as it is, the others as %XX."""
    if text.isascii() and text.isprintable() and "%" not in text:
        return len(text)
    return sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in text.encode("utf-8", "replace"))


def _facts(error: errors.SealaneError, request_id: str) -> dict[str, str]:
    facts: dict[str, str] = {}
    left = _FACTS_BYTES
    for name, value in {**({"request_id": request_id} if request_id else {}), **error.metadata}.items():
        told = clipped(value, _FACT_BYTES)
        left -= len(name.encode()) + len(told.encode())
        if left < 0:
            break
        facts[name] = told
    return facts


def to_status(error: errors.SealaneError, request_id: str = "") -> status_pb2.Status:
    """An error as ``google.rpc.Status`` with ErrorInfo and, where they fit, BadRequest and RetryInfo.

    It is small enough for the trailers of a call, whatever names the error quotes.
    """
    message, reason = clipped(error.message), clipped(error.reason, _REASON_BYTES)
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=_facts(error, request_id))
    details: list[Message] = [info]
    if error.field:
        field, description = clipped(error.field, _FACT_BYTES), clipped(error.message, _FACT_BYTES)
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        item = any_pb2.Any()
        item.Pack(detail)
        packed.append(item)
    return status_pb2.Status(code=CODE_OF[error.kind].value[0], message=message, details=packed)


def from_status(status: status_pb2.Status) -> errors.SealaneError:
    """The error that a ``google.rpc.Status`` stands for."""
    code = _CODE_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    kind = errors.BY_KIND.get(code.name, errors.Internal)
    reason, field, retry_after = "", "", None
    metadata: dict[str, str] = {}
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad) and bad.field_violations:
            field = bad.field_violations[0].field
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    error = kind(status.message or code.name, reason=reason or code.name, field=field, retry_after=retry_after)
    error.metadata = metadata
    return error


def from_code(code: grpc.StatusCode | None, message: str, details: bytes | None) -> errors.SealaneError:
    """The error of a finished call: from its rich status where there is one, else from the bare code."""
    if details:
        status = status_pb2.Status()
        try:
            status.ParseFromString(details)
        except DecodeError:
            pass
        else:
            return from_status(status)
    number = code.value[0] if code is not None else grpc.StatusCode.UNKNOWN.value[0]
    return from_status(status_pb2.Status(code=number, message=message))


def from_rpc_error(failure: grpc.RpcError) -> errors.SealaneError:
    """The error of a failed client call."""
    if not isinstance(failure, grpc.Call):
        return errors.Unavailable(str(failure))
    trailers = dict(iter(failure.trailing_metadata() or ()))
    details = trailers.get(DETAILS_KEY)
    return from_code(failure.code(), failure.details() or "", details if isinstance(details, bytes) else None)
