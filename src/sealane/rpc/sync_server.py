"""The synchronous server of a worker's front: a thread pool, the cheapest unary call grpcio has.

grpcio waits for a request's body on a thread of the pool, for as long as the caller likes. So threads that wait for a
body are counted (:class:`Arrivals`), and have places beside those of the calls that run.
"""

from __future__ import annotations

import hmac
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from sealane.errors import ResourceExhausted, SealaneError
from sealane.rpc import limits
from sealane.rpc.call import Call
from sealane.rpc.dispatch import Dispatcher, Route, unserved_route
from sealane.rpc.transport import call_of, code_of, load_trailers, outward, trailers_of

#: Calls that may wait for a thread. More than one connection can open at once, so that nobody who opens and resets
#: streams all the time takes every place. A call that waits is small: its body is read when a thread takes it.
WAITING = 1000
#: Calls whose body is on its way. One more, and the oldest of the connection that has most of them is ended.
ARRIVING = 128


def build(dispatcher: Dispatcher, *, threads: int = 64, front: Marks | None = None) -> grpc.Server:
    """A server for every method of the dispatcher. A stream keeps a thread: at most half of them do.

    Args:
        dispatcher: what is served.
        threads: calls that run at the same time.
        front: of this process, which holds the port and passes on what it cannot answer.

    Raises:
        ValueError: a method that streams one way, which this server does not carry.
    """
    # Threads are made when they are needed: where bodies come at once, there are never so many.
    server = grpc.server(
        ThreadPoolExecutor(threads + ARRIVING, thread_name_prefix="front"),
        options=(limits.client_port if front is None else limits.behind_front)(limits.DATA_MESSAGE_BYTES),
        maximum_concurrent_rpcs=threads + ARRIVING + WAITING,
    )
    entrance = _Entrance(dispatcher, Arrivals(ARRIVING, front.connection if front else None), front)
    streams = _Streams(entrance, threads // 2)
    by_service: dict[str, dict[str, grpc.RpcMethodHandler[bytes, bytes]]] = {}
    for path, route in dispatcher.routes.items():
        if route.method.client_streaming != route.method.server_streaming:
            raise ValueError(f"{path} streams one way; this server carries unary methods and two-way streams")
        service, _, name = path.lstrip("/").partition("/")
        handler = streams.handler(route) if route.method.server_streaming else entrance.handler(route)
        by_service.setdefault(service, {})[name] = handler
    for service, handlers in by_service.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_generic_rpc_handlers((_Unserved(entrance),))  # asked last
    return server


class Marks:
    """What a front of this process says of a call that it passes on, in metadata that only it can send.

    Args:
        secret: by which the front is known, without a hyphen.
        answered: hears of calls that ended well.
    """

    #: ``secret-ticket``.
    CALL = "x-sealane-express"
    #: Number of the client's connection.
    CONNECTION = "x-sealane-connection"

    def __init__(self, secret: str, answered: Callable[[Call], None]) -> None:
        self._secret = secret
        self.answered = answered

    def read(self, call: Call) -> None:
        """Take the marks off a call."""
        secret, _, ticket = call.metadata.get(self.CALL, "").partition("-")
        if hmac.compare_digest(secret.encode(), self._secret.encode()):
            call.ticket = int(ticket)
        call.metadata = {name: value for name, value in call.metadata.items() if name not in _MARKS}

    def connection(self, context: grpc.ServicerContext) -> str:
        """Of which client's connection a call is."""
        metadata = context.invocation_metadata() or ()
        return str(next((value for name, value in metadata if name == self.CONNECTION), ""))


_MARKS = (Marks.CALL, Marks.CONNECTION)


class Arrivals:
    """Calls whose body is not there yet: at most so many, without a clock.

    An honest body is there in milliseconds. Who sends none, on however many streams, pushes out his own calls first,
    and with many connections the oldest ones: to push out a call of somebody else he must open as many as there are
    places before its body is there.
    """

    def __init__(self, places: int, connection: Callable[[grpc.ServicerContext], str] | None = None) -> None:
        self._places = places
        self._connection = connection or (lambda context: context.peer())
        self._lock = threading.Lock()
        self._waiting: dict[grpc.ServicerContext, str] = {}

    def receive(self, bodies: Iterator[bytes], context: grpc.ServicerContext) -> bytes | None:
        """Wait for the one body of a call; None where the caller ends without one."""
        with self._lock:
            pushed_out = self._longest() if len(self._waiting) >= self._places else None
            if pushed_out is not None:
                del self._waiting[pushed_out]
            self._waiting[context] = ""
        if pushed_out is not None:
            pushed_out.cancel()  # ends its wait too
        try:
            return next(bodies, None)
        finally:
            with self._lock:
                self._waiting.pop(context, None)

    def _longest(self) -> grpc.ServicerContext:
        # Whose connection it is costs more to ask than all the rest, so it is asked when it matters, and once.
        for context, peer in self._waiting.items():
            self._waiting[context] = peer or self._connection(context)
        most = Counter(self._waiting.values()).most_common(1)[0][0]
        return next(context for context, peer in self._waiting.items() if peer == most)


class _Entrance:
    """From grpcio to the dispatcher."""

    def __init__(self, dispatcher: Dispatcher, arrivals: Arrivals, front: Marks | None) -> None:
        self.dispatcher = dispatcher
        self._arrivals = arrivals
        self._front = front

    def call(self, route: Route, context: grpc.ServicerContext, body: bytes | None) -> Call:
        """The call that a context stands for."""
        call = call_of(route.method, context, body)  # type: ignore[arg-type]  # its stubs name other mappings
        if self._front is not None:
            self._front.read(call)
        return call

    def handler(self, route: Route) -> grpc.RpcMethodHandler[bytes, bytes]:
        """The handler of a unary method in the form that grpcio wants."""

        def receive_and_run(bodies: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            body = self._arrivals.receive(bodies, context)
            if body is None:  # as grpcio itself answers
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "the method takes exactly one request message; send one")
            return self.run(route, body, context)

        # To grpcio it takes a stream, for only then our code runs before the body is there.
        return grpc.stream_unary_rpc_method_handler(receive_and_run)

    def run(self, route: Route, body: bytes | None, context: grpc.ServicerContext) -> bytes:
        """One call with one answer, or its refusal."""
        call = self.call(route, context, body)
        try:
            answer = self.dispatcher.unary(route, call)
            if self._front is not None:
                self._front.answered(call)
            if call.load is not None:
                context.set_trailing_metadata(load_trailers(call))
            return answer
        except SealaneError as error:
            failure = outward(error, route.method.path)
            context.set_trailing_metadata((*trailers_of(failure, call.request_id), *load_trailers(call)))
            context.abort(code_of(failure), failure.message)


class _Streams:
    """Two-way streams, so many at the same time."""

    def __init__(self, entrance: _Entrance, places: int) -> None:
        self._entrance = entrance
        self._places = threading.BoundedSemaphore(places)

    def handler(self, route: Route) -> grpc.RpcMethodHandler[bytes, bytes]:
        """The handler in the form that grpcio wants."""

        def run(bodies: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            call = self._entrance.call(route, context, None)
            call.cancel = lambda: _end(context)
            try:
                yield from self._in_a_place(route, call, bodies)
            except SealaneError as error:
                failure = outward(error, route.method.path)
                context.set_trailing_metadata(trailers_of(failure, call.request_id))
                context.abort(code_of(failure), failure.message)

        return grpc.stream_stream_rpc_method_handler(run)

    def _in_a_place(self, route: Route, call: Call, bodies: Iterator[bytes]) -> Iterator[bytes]:
        if not self._places.acquire(blocking=False):
            raise ResourceExhausted("too many streams at once; back off and retry", reason="OVERLOAD", retry_after=0.5)
        try:
            yield from self._entrance.dispatcher.stream(route, call, bodies)
        finally:
            self._places.release()


def _end(context: grpc.ServicerContext) -> None:
    context.cancel()


class _Unserved(grpc.GenericRpcHandler):
    """Every other path: who is nobody is UNAUTHENTICATED there too, before he learns what is served."""

    def __init__(self, entrance: _Entrance) -> None:
        self._entrance = entrance

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """A handler that reads nothing of what is sent, however the caller streams."""
        route = unserved_route(handler_call_details.method)

        def refuse(bodies: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            yield self._entrance.run(route, None, context)

        return grpc.stream_stream_rpc_method_handler(refuse)
