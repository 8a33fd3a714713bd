"""The synchronous server of a worker's front: a thread pool, the cheapest unary call grpcio has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from sealane.errors import SealaneError
from sealane.rpc import limits
from sealane.rpc.dispatch import Dispatcher, Route, unserved_route
from sealane.rpc.transport import call_of, code_of, trailers_of

#: Calls that may wait for a thread. More than one connection can open at once, so that nobody who opens and resets
#: streams all the time takes every place. A call that waits is small: its body is read when a thread takes it.
WAITING = 1000


def build(dispatcher: Dispatcher, *, threads: int = 64) -> grpc.Server:
    """A server for every unary method of the dispatcher.

    Raises:
        ValueError: a streaming method, which this server does not carry.
    """
    server = grpc.server(
        ThreadPoolExecutor(threads, thread_name_prefix="front"),
        options=limits.client_port(limits.DATA_MESSAGE_BYTES),
        maximum_concurrent_rpcs=threads + WAITING,
    )
    by_service: dict[str, dict[str, grpc.RpcMethodHandler[bytes, bytes]]] = {}
    for path, route in dispatcher.routes.items():
        if route.method.client_streaming or route.method.server_streaming:
            raise ValueError(f"{path} streams; the synchronous server carries unary methods only")
        service, _, name = path.lstrip("/").partition("/")
        by_service.setdefault(service, {})[name] = _handler(dispatcher, route)
    for service, handlers in by_service.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_generic_rpc_handlers((_Unserved(dispatcher),))  # asked last
    return server


class _Unserved(grpc.GenericRpcHandler):
    """Every other path: who is nobody is UNAUTHENTICATED there too, before he learns what is served."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """A handler that reads nothing of what is sent, however the caller streams."""
        run = _runner(self._dispatcher, unserved_route(handler_call_details.method))

        def refuse(bodies: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            yield run(None, context)

        return grpc.stream_stream_rpc_method_handler(refuse)


def _handler(dispatcher: Dispatcher, route: Route) -> grpc.RpcMethodHandler[bytes, bytes]:
    return grpc.unary_unary_rpc_method_handler(_runner(dispatcher, route))


def _runner(dispatcher: Dispatcher, route: Route) -> Callable[[bytes | None, grpc.ServicerContext], bytes]:
    def run(body: bytes | None, context: grpc.ServicerContext) -> bytes:
        call = call_of(route.method, context, body)  # type: ignore[arg-type]  # its stubs name other mappings
        try:
            return dispatcher.unary(route, call)
        except SealaneError as failure:
            context.set_trailing_metadata(trailers_of(failure, call.request_id))
            context.abort(code_of(failure), failure.message)

    return run
