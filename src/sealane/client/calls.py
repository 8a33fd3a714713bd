"""One inference call on the wire: bytes to one address, with credentials, trace and deadline.

The hot path of the SDK: no interceptor, no generated stub, nothing parsed that need not be.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc
from opentelemetry.trace import SpanKind

from sealane import telemetry
from sealane.client.credentials import Token
from sealane.client.session import INFERENCE, Session
from sealane.errors import MODEL_CRASHED, DeadlineExceeded, SealaneError, Unauthenticated, Unavailable
from sealane.rpc.channel import Target
from sealane.rpc.status import from_rpc_error

_FIRST_BACKOFF = 0.02
_LAST_BACKOFF = 0.5

T = TypeVar("T")
Multicallable = Callable[..., bytes]


@dataclass(frozen=True, slots=True)
class Request:
    """A serialized request.

    Args:
        path: method path.
        body: serialized message.
        proof_in_body: the body itself proves possession of the token's key.
    """

    path: str
    body: bytes
    proof_in_body: bool = False


class Caller:
    """Sends requests to targets."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._methods: dict[tuple[str, str, str], Multicallable] = {}

    def token(self, *, bound: bool = False) -> Token:
        """The inference token that calls carry."""
        return self._session.tokens.get(INFERENCE, bound=bound)

    def send(self, target: Target, request: Request, deadline: float, token: Token | None = None) -> bytes:
        """One attempt.

        Args:
            target: where to.
            request: what.
            deadline: monotonic time at which nobody waits any more.
            token: token to use; default: the cached bearer token.

        Raises:
            SealaneError: it failed.
        """
        session = self._session
        metadata = session.tokens.headers(token or self.token(), request.path, prove=not request.proof_in_body)
        metadata["x-request-id"] = str(uuid.uuid4())
        traceparent = telemetry.current()
        span = session.telemetry.start(request.path, SpanKind.CLIENT, traceparent) if traceparent else None
        if span is not None:
            span.set_attribute(telemetry.RPC_METHOD, request.path)
            traceparent = telemetry.header_of(span)
        if traceparent:
            metadata["traceparent"] = traceparent
        try:
            return self._method(target, request.path)(
                request.body, timeout=max(0.001, deadline - time.monotonic()), metadata=tuple(metadata.items())
            )
        except grpc.RpcError as failure:
            error = from_rpc_error(failure)
            if span is not None:
                span.set_attribute(telemetry.ERROR_TYPE, error.kind)
            raise error from failure
        finally:
            if span is not None:
                span.end()

    def repeat(self, attempt: Callable[[], T], deadline: float) -> T:
        """Run `attempt` until it answers, fails for good, or the time is over; see :func:`repeat`.

        A token that was good and is no longer taken is replaced once.

        Raises:
            SealaneError: the last failure.
        """
        try:
            return repeat(attempt, deadline)
        except Unauthenticated as error:
            if not self._session.tokens.refused(error):
                raise
            return repeat(attempt, deadline)

    def _method(self, target: Target, path: str) -> Multicallable:
        key = (target.address, target.tls_name, path)
        method = self._methods.get(key)
        if method is None:
            method = self._session.bare(target).unary_unary(path)  # no serializers: bytes both ways
            self._methods[key] = method
        return method


def final(error: SealaneError) -> bool:
    """Whether repeating is pointless: only UNAVAILABLE passes, and not where a constraint holds it."""
    return not isinstance(error, Unavailable) or bool(error.metadata.get("constraint"))


def repeat(attempt: Callable[[], T], deadline: float) -> T:
    """Run `attempt` until it answers, fails for good, or the time is over.

    A crash of the model is tried once more, because another request may have been its cause; a second one is final.

    Raises:
        SealaneError: the last failure.
    """
    backoff = _FIRST_BACKOFF
    crashed = False
    while True:
        try:
            return attempt()
        except SealaneError as error:
            pause = max(random.uniform(0, backoff), error.retry_after or 0.0)  # noqa: S311  # jitter is no secret
            again = error.reason == MODEL_CRASHED
            if final(error) or (crashed and again) or time.monotonic() + pause >= deadline:
                raise
            crashed = crashed or again
            time.sleep(pause)
            backoff = min(2 * backoff, _LAST_BACKOFF)


def remaining(deadline: float) -> float:
    """Seconds left.

    Raises:
        DeadlineExceeded: none.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("the time for the prediction is over; allow more with timeout")
    return left
