"""Every error Sealane raises on purpose. Knows no gRPC; :mod:`sealane.rpc.status` maps kinds to codes.

::

    SealaneError
    ├── InvalidArgument      the request can never work (names the field)
    ├── Unauthenticated      no or bad credential
    ├── PermissionDenied     good credential, no right
    ├── NotFound             absent, or another project's
    ├── AlreadyExists        the name is taken
    ├── FailedPrecondition   the state forbids it; do not retry as is
    ├── Aborted              lost a race or a lease; read again
    ├── ResourceExhausted    your quota or our load (carries retry_after)
    ├── DeadlineExceeded     the time is over
    ├── Cancelled            the caller does not wait any more
    ├── Unavailable          try again, or elsewhere, now
    ├── DataLoss             a stored digest does not match
    ├── Unimplemented        not in this installation (says what to install)
    └── Internal             a bug

A message starts in lower case, has no full stop, says what to do next and never holds a secret.
"""

from __future__ import annotations

from typing import ClassVar

#: Reason of an Unavailable: the model died while it ran the request. It may be the request that kills it, so nobody
#: runs it on another copy: one request would take the model down everywhere.
MODEL_CRASHED = "MODEL_CRASHED"
#: Reason of an Unavailable: another process of the service leads. The call did not run.
NOT_LEADER = "NOT_LEADER"


class SealaneError(Exception):
    """Base of the tree.

    Args:
        message: what is wrong and what to do next.
        reason: stable UPPER_SNAKE_CASE cause; default: the class's own.
        field: path of the offending field, where there is one.
        retry_after: seconds after which a retry may work, where that is known.
        metadata: further facts, safe to show to the caller.
    """

    kind: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        retry_after: float | None = None,
        **metadata: str,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.kind
        self.field = field
        self.retry_after = retry_after
        self.metadata = metadata


class InvalidArgument(SealaneError):
    """The request can never work as it is."""

    kind = "INVALID_ARGUMENT"


class Unauthenticated(SealaneError):
    """No credential, or one that does not verify."""

    kind = "UNAUTHENTICATED"


class PermissionDenied(SealaneError):
    """The credential verifies and does not carry the right."""

    kind = "PERMISSION_DENIED"


class NotFound(SealaneError):
    """Absent, or not the caller's to see: both answer alike."""

    kind = "NOT_FOUND"


class AlreadyExists(SealaneError):
    """The name, or the request id with another content, is taken."""

    kind = "ALREADY_EXISTS"


class FailedPrecondition(SealaneError):
    """The state forbids it; repeating the same call will not help."""

    kind = "FAILED_PRECONDITION"


class Aborted(SealaneError):
    """A race or a lease was lost; read again, then decide."""

    kind = "ABORTED"


class ResourceExhausted(SealaneError):
    """A quota or the load forbids it now; back off."""

    kind = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(SealaneError):
    """The caller's time is over."""

    kind = "DEADLINE_EXCEEDED"


class Cancelled(SealaneError):
    """The caller does not wait for the answer any more."""

    kind = "CANCELLED"


class Unavailable(SealaneError):
    """Not served here now; retry, or go elsewhere."""

    kind = "UNAVAILABLE"


class DataLoss(SealaneError):
    """What is stored no longer matches its digest."""

    kind = "DATA_LOSS"


class Unimplemented(SealaneError):
    """This installation cannot do it; the message says what to install."""

    kind = "UNIMPLEMENTED"


class Internal(SealaneError):
    """A bug; the caller gets a fixed text and the request id."""

    kind = "INTERNAL"


BY_KIND: dict[str, type[SealaneError]] = {
    cls.kind: cls
    for cls in (
        InvalidArgument,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        Aborted,
        ResourceExhausted,
        DeadlineExceeded,
        Cancelled,
        Unavailable,
        DataLoss,
        Unimplemented,
        Internal,
    )
}
