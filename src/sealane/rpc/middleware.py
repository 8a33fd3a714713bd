"""Cross-cutting work on every call: two plain functions each, in one visible order (:mod:`sealane.rpc.order`).

``before`` runs from the outside in and may refuse by raising; ``after`` runs from the inside out for
those that were entered. Neither blocks; work that must (fetching a key) is handed out as
:class:`Blocking` and done by the adapter where it hurts nobody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from google.protobuf.message import DecodeError, Message
from opentelemetry.trace import SpanKind, Status, StatusCode

from sealane import telemetry
from sealane.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    SealaneError,
)
from sealane.rpc.call import Call
from sealane.rpc.places import Admission, Places
from sealane.telemetry import Telemetry

access_log = logging.getLogger("sealane.access")

#: Streams that need no credential (health's Watch): so many at once, and each for so long. Anybody can open them, so
#: they have places of their own; those who watch for longer come again.
PUBLIC_STREAMS = 64
PUBLIC_STREAM_SECONDS = 600.0
#: Streams that peers alone may open (workers to the scheduler, lanes to the gateway) live for days: they have places of
#: their own too, so that a large fleet takes none from calls.
PEER_STREAMS = 20_000


class Blocking(Exception):
    """Work that must be done before the call can go on; do it, then enter again."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__("work to be done off the event loop")
        self.work = work


class Middleware(Protocol):
    """One concern."""

    def before(self, call: Call) -> None:
        """Look at the call on its way in; raise to refuse it."""
        ...

    def after(self, call: Call, failure: SealaneError | None) -> None:
        """Look at the outcome on its way out."""
        ...


class Inward:
    """A concern that looks only at the way in."""

    def after(self, call: Call, failure: SealaneError | None) -> None:
        """Nothing to do on the way out."""


class BodyReader:
    """A concern that looks at the body on the way in, or at its size; the others come before all of these."""


class Chain:
    """Runs the list for one call, whatever its cardinality."""

    def __init__(self, middleware: Sequence[Middleware]) -> None:
        self._before = tuple(item.before for item in middleware)
        readers = [index for index, item in enumerate(middleware) if isinstance(item, BodyReader)]
        self._bodiless = min(readers, default=len(self._before))
        # Most look only at the way in: the few others are called alone.
        outward = enumerate(middleware)
        self._after = [(index, item.after) for index, item in outward if not isinstance(item, Inward)][::-1]

    def enter(self, call: Call, *, body: bool = True) -> None:
        """Run every ``before`` not run yet; without a `body`, those that need none: they tell who the caller is."""
        for before in self._before[call.entered : None if body else self._bodiless]:
            before(call)
            call.entered += 1

    def leave(self, call: Call, failure: SealaneError | None) -> None:
        """Run the ``after`` of what was entered, inside out."""
        entered, call.entered = call.entered, 0
        for index, after in self._after:
            if index < entered:
                after(call, failure)
        if failure is not None:
            # It holds the frames that it went through, and they hold it and the request: memory that only the garbage
            # collector frees, and late. Who sends large requests to be refused could fill it.
            failure.__traceback__ = failure.__cause__ = failure.__context__ = None


class Limits:
    """Refuses more calls than the process can hold; streams are counted too, public ones by themselves.

    Args:
        max_in_flight: calls that the process takes in all.
        places: where they are counted; none for places of its own.
    """

    def __init__(self, max_in_flight: int, places: Admission | None = None) -> None:
        self._places = places or Places(max_in_flight)
        self._public_streams = self._peer_streams = 0
        self._lock = threading.Lock()  # guards the streams

    @property
    def in_flight(self) -> int:
        """Calls inside now."""
        return self._places.in_flight

    def take_counts(self) -> tuple[int, int]:
        """Most calls at the same time, and calls that ended, since this was last asked."""
        return self._places.take_counts()

    def before(self, call: Call) -> None:
        """Count in; public methods (health, tokens) are never crowded out by load.

        Raises:
            ResourceExhausted: no place is free.
        """
        if _public_stream(call):
            self._enter_public_stream(call)
            return
        if _peer_stream(call):
            self._enter_peer_stream()
            return
        if not self._places.enter(call.method.public):
            raise ResourceExhausted("too many calls at once; back off and retry", reason="OVERLOAD", retry_after=0.1)

    def after(self, call: Call, failure: SealaneError | None) -> None:
        """Count out."""
        if _public_stream(call):
            with self._lock:
                self._public_streams -= 1
        elif _peer_stream(call):
            with self._lock:
                self._peer_streams -= 1
        else:
            self._places.leave()

    def _enter_peer_stream(self) -> None:
        with self._lock:
            if self._peer_streams >= PEER_STREAMS:
                raise ResourceExhausted(
                    "too many peers are connected; start another scheduler or gateway",
                    reason="PEER_STREAMS",
                    retry_after=5.0,
                )
            self._peer_streams += 1

    def _enter_public_stream(self, call: Call) -> None:
        with self._lock:
            if self._public_streams >= PUBLIC_STREAMS:
                raise ResourceExhausted(
                    "too many watch health here; ask by Check, or come back later",
                    reason="PUBLIC_STREAMS",
                    retry_after=5.0,
                )
            self._public_streams += 1
        call.deadline = min(call.deadline, time.monotonic() + PUBLIC_STREAM_SECONDS)


def _peer_stream(call: Call) -> bool:
    return call.method.server_streaming and not call.method.access.permission


def _public_stream(call: Call) -> bool:
    return call.method.public and call.method.server_streaming


def log_call(
    path: str, failure: SealaneError | None, seconds: float, request_id: str, subject: str, *, trace: str = ""
) -> None:
    """Write the access line of a call."""
    access_log.info(
        "call",
        extra={
            "method": path,
            "code": failure.kind if failure else "OK",
            "reason": failure.reason if failure else "",
            "ms": round(seconds * 1000, 2),
            "request_id": request_id,
            "trace": trace,
            "subject": subject,
        },
    )


class Tracing:
    """A server span and an access line per call.

    Args:
        telemetry_: makes the spans.
        every_call: whether each call has its line; otherwise those that failed and those that are traced have one,
            because on the way of an inference a line costs as much as the token, the limits and the parsing together.
    """

    def __init__(self, telemetry_: Telemetry, *, every_call: bool = True) -> None:
        self._telemetry = telemetry_
        self._every_call = every_call

    def before(self, call: Call) -> None:
        """Take over the caller's trace and request id."""
        incoming = call.metadata.get("traceparent", "")
        name = call.method.path.lstrip("/")
        call.span = self._telemetry.start(name, SpanKind.SERVER, incoming, drawn=call.sampled)
        call.traceparent = incoming if call.span is None else telemetry.header_of(call.span)
        call.trace_token = telemetry.enter(call.traceparent)

    def after(self, call: Call, failure: SealaneError | None) -> None:
        """End the span, write the line."""
        code = failure.kind if failure else "OK"
        telemetry.leave(call.trace_token)
        if call.span is not None:
            call.span.set_attribute(telemetry.RPC_SYSTEM, "grpc")
            call.span.set_attribute(telemetry.RPC_METHOD, call.method.path.lstrip("/"))
            call.span.set_attribute(telemetry.RPC_STATUS, code)
            if failure is not None:
                call.span.set_attribute(telemetry.ERROR_TYPE, failure.reason)
                call.span.set_status(Status(StatusCode.ERROR))
            call.span.end()
        told = self._every_call or failure is not None or call.span is not None
        if told and access_log.isEnabledFor(logging.INFO):
            subject = call.identity.subject if call.identity else ""
            spent = time.monotonic() - call.started
            log_call(call.method.path, failure, spent, call.request_id, subject, trace=call.traceparent)


class Deadline(Inward):
    """A call whose time is over is not begun."""

    def before(self, call: Call) -> None:
        """Refuse what nobody waits for any more."""
        if call.remaining <= 0:
            raise DeadlineExceeded("the deadline was over before the call began; allow more time")


class Parse(Inward, BodyReader):
    """Bytes to message, after the caller is known: a malformed body never raises inside grpcio.

    Args:
        raw: paths whose servicers take ``call.body`` as it came, to pass it on.
    """

    def __init__(self, raw: frozenset[str] = frozenset()) -> None:
        self._raw = raw

    def before(self, call: Call) -> None:
        """Set ``call.message`` for calls with one request."""
        if call.body is not None and call.method.path not in self._raw:
            call.message = parse_body(call, call.body)
            call.body = None


def parse_body(call: Call, body: bytes) -> Message:
    """One request message.

    Raises:
        InvalidArgument: the bytes are not a message of the method's request type.
    """
    message = call.method.request()
    try:
        message.ParseFromString(body)
    except (DecodeError, ValueError) as error:
        raise InvalidArgument(f"malformed request; send a {message.DESCRIPTOR.name}", reason="MALFORMED") from error
    return message
