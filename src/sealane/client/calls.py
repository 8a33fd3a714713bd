"""One inference call on the wire: bytes to one address, with credentials, trace and deadline.

The hot path of the SDK: no interceptor, no generated stub, nothing parsed that need not be.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import grpc
from opentelemetry.trace import SpanKind

from sealane import telemetry
from sealane.client.credentials import Token
from sealane.client.hedging import Begun, hedge
from sealane.client.session import INFERENCE, Session
from sealane.errors import MODEL_CRASHED, Cancelled, DeadlineExceeded, SealaneError, Unauthenticated, Unavailable
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


class Stream(Protocol):
    """A two-way stream that is open."""

    def __iter__(self) -> Iterator[bytes]:
        """The answers; raises ``grpc.RpcError``."""
        ...

    def cancel(self) -> object:
        """End it."""
        ...


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
        metadata = self._metadata(request, token)
        traceparent = telemetry.current()
        span = session.telemetry.start(request.path, SpanKind.CLIENT, traceparent) if traceparent else None
        if span is not None:
            span.set_attribute(telemetry.RPC_METHOD, request.path)
            metadata["traceparent"] = telemetry.header_of(span)
        try:
            return self._method(target, request.path)(
                request.body, timeout=max(0.001, deadline - time.monotonic()), metadata=tuple(metadata.items())
            )
        except grpc.RpcError as failure:
            error = _error_of(failure)
            if span is not None:
                span.set_attribute(telemetry.ERROR_TYPE, error.kind)
            raise error from failure
        finally:
            if span is not None:
                span.end()

    def first(self, targets: Sequence[Target], request: Request, deadline: float, token: Token | None = None) -> bytes:
        """The first answer of several targets, asked one after the other while they are not there.

        Raises:
            SealaneError: the last one's failure, or one that is final.
        """
        for target in targets[:-1]:
            try:
                return self.send(target, request, deadline, token)
            except Unavailable as error:
                if error.reason == MODEL_CRASHED:  # what crashed one copy of the model is not shown to the next
                    raise
        return self.send(targets[-1], request, deadline, token)

    def hedged(
        self, targets: Sequence[Target], request: Request, deadline: float, token: Token, *, after: float
    ) -> bytes:
        """The first answer of two targets; the second is asked when the first has not answered in `after` seconds.

        Raises:
            SealaneError: neither answered.
        """

        def begin(target: Target) -> Begun:
            seconds, metadata = max(0.001, deadline - time.monotonic()), tuple(self._metadata(request, token).items())
            method = cast("grpc.UnaryUnaryMultiCallable[bytes, bytes]", self._method(target, request.path))
            return cast(Begun, method.future(request.body, timeout=seconds, metadata=metadata))

        try:
            return hedge(lambda: begin(targets[0]), lambda: begin(targets[1]), after)
        except grpc.RpcError as failure:
            raise _error_of(failure) from failure

    def stream(self, target: Target, path: str, bodies: Iterator[bytes], deadline: float, token: Token) -> Stream:
        """A two-way stream of a method whose bodies prove who sends them; iterate over it for the answers."""
        metadata = tuple(self._metadata(Request(path, b"", proof_in_body=True), token).items())
        method: Callable[..., object] = self._session.bare(target).stream_stream(path)
        return cast(Stream, method(bodies, timeout=max(0.001, deadline - time.monotonic()), metadata=metadata))

    def _metadata(self, request: Request, token: Token | None) -> dict[str, str]:
        metadata = self._session.tokens.headers(token or self.token(), request.path, prove=not request.proof_in_body)
        metadata["x-request-id"] = str(uuid.uuid4())
        if traceparent := telemetry.current():
            metadata["traceparent"] = traceparent
        return metadata

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


def _error_of(failure: grpc.RpcError) -> SealaneError:
    error = from_rpc_error(failure)
    if isinstance(error, Cancelled):
        # Nobody cancels these calls here: a server that stops ends so what it had taken and not yet begun.
        return Unavailable("the server ended while it had the call; retry elsewhere", reason="SERVER_ENDED")
    return error


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
