"""One inference call on the wire: bytes to one address, with credentials, trace and deadline.

The hot path of the SDK: no interceptor, no generated stub, nothing parsed that need not be.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar, cast

import grpc
from opentelemetry.trace import SpanKind

from sealane import telemetry
from sealane.client.credentials import Token
from sealane.client.hedges import hedge_budget
from sealane.client.hedging import Begun, hedge
from sealane.client.session import INFERENCE, Session
from sealane.errors import MODEL_CRASHED, Cancelled, DeadlineExceeded, SealaneError, Unauthenticated, Unavailable
from sealane.rpc.affinity import AFFINITY
from sealane.rpc.channel import Target
from sealane.rpc.loads import LOAD, Load, Ticket
from sealane.rpc.retry_budget import RetryBudget
from sealane.rpc.status import from_rpc_error

_FIRST_BACKOFF = 0.02
_LAST_BACKOFF = 0.5
#: Tries that a client may always make, beside those that its calls earn.
RETRIES_PER_SECOND = 10.0

T = TypeVar("T")
Multicallable: TypeAlias = "grpc.UnaryUnaryMultiCallable[bytes, bytes]"


@dataclass(frozen=True, slots=True)
class Request:
    """A serialized request.

    Args:
        path: method path.
        body: serialized message.
        proof_in_body: the body itself proves possession of the token's key.
        affinity: calls of one key go to one worker while it is not much busier than others; empty for none.
    """

    path: str
    body: bytes
    proof_in_body: bool = False
    affinity: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere to send a request.

    Args:
        target: where.
        begin: counts a call to it in; none where nobody counts.
    """

    target: Target
    begin: Callable[[], Ticket] | None = None


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
        self.budget = RetryBudget(per_second=RETRIES_PER_SECOND)
        """Of all calls of this client."""
        self._hedges = hedge_budget()

    def token(self, *, bound: bool = False) -> Token:
        """The inference token that calls carry."""
        return self._session.tokens.get(INFERENCE, bound=bound)

    def send(
        self,
        target: Target,
        request: Request,
        deadline: float,
        token: Token | None = None,
        ticket: Ticket | None = None,
    ) -> bytes:
        """One attempt.

        Args:
            target: where to.
            request: what.
            deadline: monotonic time at which nobody waits any more.
            token: token to use; default: the cached bearer token.
            ticket: told how the worker is, and how the attempt ends.

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
            seconds, sent = max(0.001, deadline - time.monotonic()), tuple(metadata.items())
            method = self._method(target, request.path)
            if ticket is None:
                return method(request.body, timeout=seconds, metadata=sent)
            return _measured(method, request.body, seconds, sent, ticket)
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
        self, places: Sequence[Place], request: Request, deadline: float, token: Token | None = None, *, after: float
    ) -> bytes:
        """The first answer of two places; the second is asked when the first has not answered in `after` seconds.

        Only while the client's calls have earned it: 2 of 100 calls are asked twice for being slow, and a few at rest.

        Raises:
            SealaneError: neither answered.
        """
        self._hedges.earn()

        def begin(place: Place) -> Begun:
            seconds, metadata = max(0.001, deadline - time.monotonic()), tuple(self._metadata(request, token).items())
            begun = self._method(place.target, request.path).future(request.body, timeout=seconds, metadata=metadata)
            if place.begin is not None:
                ticket = place.begin()
                begun.add_done_callback(lambda _: _close(ticket, begun))
            return cast(Begun, begun)

        try:
            return hedge(lambda: begin(places[0]), lambda: begin(places[1]), after, self._hedges.spend)
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
        if request.affinity:
            metadata[AFFINITY] = request.affinity
        if traceparent := telemetry.current():
            metadata["traceparent"] = traceparent
        return metadata

    def repeat(self, attempt: Callable[[], T], deadline: float) -> T:
        """Run `attempt` until it answers, fails for good, or the time is over; see :func:`repeat`.

        A token that was good and is no longer taken is replaced once.

        Raises:
            SealaneError: the last failure.
        """
        self.budget.earn()
        try:
            return repeat(attempt, deadline, self.budget)
        except Unauthenticated as error:
            if not self._session.tokens.refused(error):
                raise
            return repeat(attempt, deadline, self.budget)

    def _method(self, target: Target, path: str) -> Multicallable:
        key = (target.address, target.tls_name, path)
        method = self._methods.get(key)
        if method is None:
            # No serializers: bytes both ways.
            method = self._methods[key] = cast(Multicallable, self._session.bare(target).unary_unary(path))
        return method


def _measured(
    method: Multicallable, body: bytes, seconds: float, metadata: tuple[tuple[str, str], ...], ticket: Ticket
) -> bytes:
    """One attempt that is counted, and what the worker said of its load with it."""
    try:
        answer, call = method.with_call(body, timeout=seconds, metadata=metadata)
    except grpc.RpcError as failure:
        ticket.hear(_load_of(cast(grpc.Call, failure)))
        ticket.end(_error_of(failure))
        raise
    ticket.hear(_load_of(call))
    ticket.end()
    return answer


def _close(ticket: Ticket, begun: grpc.Call) -> None:
    """The same of one that was hedged; the one that is not needed is cancelled, which says nothing of its worker."""
    code = begun.code()
    if code is grpc.StatusCode.CANCELLED:
        ticket.end(Cancelled("the other answered first"))
        return
    ticket.hear(_load_of(begun))
    ticket.end(None if code is grpc.StatusCode.OK else _error_of(cast(grpc.RpcError, begun)))


def _load_of(call: grpc.Call) -> Load | None:
    for key, value in call.trailing_metadata() or ():
        if key == LOAD and isinstance(value, str):
            return Load.parse(value)
    return None


def _error_of(failure: grpc.RpcError) -> SealaneError:
    error = from_rpc_error(failure)
    if isinstance(error, Cancelled):
        # Nobody cancels these calls here: a server that stops ends so what it had taken and not yet begun.
        return Unavailable("the server ended while it had the call; retry elsewhere", reason="SERVER_ENDED")
    return error


def final(error: SealaneError) -> bool:
    """Whether repeating is pointless: only UNAVAILABLE passes, and not where a constraint holds it."""
    return not isinstance(error, Unavailable) or bool(error.metadata.get("constraint"))


def repeat(attempt: Callable[[], T], deadline: float, budget: RetryBudget) -> T:
    """Run `attempt` until it answers, fails for good, or the time is over.

    A crash of the model is tried once more, because another request may have been its cause; a second one is final.
    Where the budget is used up, the next attempt waits until it has earned one: so those who call while nobody is there
    do not run down whoever comes back first.

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
            now = time.monotonic()
            if final(error) or (crashed and again) or now + pause >= deadline:
                raise
            earned = budget.reserve(now, deadline - now)
            if earned is None:
                raise
            crashed = crashed or again
            time.sleep(max(pause, earned))
            if time.monotonic() >= deadline:  # a busy machine woke it too late: what failed is known, and why
                raise
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
