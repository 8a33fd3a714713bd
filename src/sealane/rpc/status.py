"""Between :mod:`sealane.errors` and ``google.rpc.Status``. The one place that knows both."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from sealane import errors

DOMAIN = "sealane"
DETAILS_KEY = "grpc-status-details-bin"

CODE_OF: dict[str, grpc.StatusCode] = {kind: getattr(grpc.StatusCode, kind) for kind in errors.BY_KIND}
_CODE_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def translate(failure: BaseException, request_id: str) -> errors.SealaneError:
    """The error to answer with: ours as it is, anything else as an opaque INTERNAL."""
    if isinstance(failure, errors.SealaneError):
        return failure
    if isinstance(failure, TimeoutError):
        return errors.DeadlineExceeded("the deadline of the call is over; allow more time or send less")
    return errors.Internal(f"internal error; quote request id {request_id} to the operator")


def to_status(error: errors.SealaneError, request_id: str = "") -> status_pb2.Status:
    """An error as ``google.rpc.Status`` with ErrorInfo and, where they fit, BadRequest and RetryInfo."""
    metadata = dict(error.metadata)
    if request_id:
        metadata["request_id"] = request_id
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
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
    return status_pb2.Status(code=CODE_OF[error.kind].value[0], message=error.message, details=packed)


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
