"""How refusals are told over HTTP: Triton's statuses, and TensorFlow Serving's below ``/v1``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from sealane.errors import InvalidArgument, NotFound, SealaneError
from sealane.protocols import json_values
from sealane.rest.table import Reply
from sealane.rpc.status import clipped

_STATUS = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 400,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 400,
    "RESOURCE_EXHAUSTED": 503,
    "DEADLINE_EXCEEDED": 504,
    "CANCELLED": 499,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
}
_TFSERVING = {"ALREADY_EXISTS": 409, "ABORTED": 409}
#: What HTTP has a status of its own for.
_BY_REASON = {
    "QUOTA_EXCEEDED": 429,
    "LENGTH_REQUIRED": 411,
    "REQUEST_TOO_LARGE": 413,
    "CONTENT_ENCODING": 415,
    "METHOD_NOT_ALLOWED": 405,
    "HEAD_TOO_LARGE": 431,
}
_RETRY = (429, 503)
_ECHO = 200


def status_of(failure: SealaneError, *, tfserving: bool) -> int:
    """The status of a refusal."""
    status = _BY_REASON.get(failure.reason, _STATUS[failure.kind])
    return _TFSERVING.get(failure.kind, status) if tfserving else status


def refusal(failure: SealaneError, request_id: str, *, tfserving: bool) -> Reply:
    """A refusal, as both protocols tell it."""
    status = status_of(failure, tfserving=tfserving)
    headers = [("x-request-id", request_id)] if request_id else []
    if status in _RETRY:
        headers.append(("retry-after", str(max(1, math.ceil(failure.retry_after or 0.0)))))
    if status == 401:
        # RFC 6750 section 3 and RFC 9449 section 7.1.
        scheme = 'DPoP algs="EdDSA"' if failure.reason == "PROOF_REFUSED" else "Bearer"
        headers.append(("www-authenticate", scheme))
    if status == 415:
        headers.append(("accept-encoding", "gzip, deflate"))
    return Reply((told(failure),), status, headers=tuple(headers))


def nowhere(verb: str, path: str, verbs: Sequence[str], overview: str) -> Reply:
    """The refusal of a path that is not served, or not with this verb; `verbs` are those that it has.

    `overview` is where it stands what is served.
    """
    if verbs:
        reply = refusal(InvalidArgument("Method Not Allowed", reason="METHOD_NOT_ALLOWED"), "", tfserving=False)
        return replace(reply, headers=(*reply.headers, ("allow", ", ".join(sorted(verbs)))))
    if path.startswith("/v1/"):
        malformed = InvalidArgument(f"Malformed request: {verb} {path[:_ECHO]}", reason="MALFORMED_REQUEST")
        return refusal(malformed, "", tfserving=True)
    return refusal(NotFound(f"nothing is served at this path; {overview} says what is"), "", tfserving=False)


def told(failure: SealaneError) -> bytes:
    """The body of a refusal."""
    return json_values.dump({"error": clipped(failure.message)})
