"""The asyncio server of the control plane and the gateway, built from descriptors.

Handlers take bytes: no generated code parses a body before the caller is known (SECURITY 0.1).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from sealane.errors import SealaneError
from sealane.rpc import limits
from sealane.rpc.authorisation import check_resource
from sealane.rpc.call import Call
from sealane.rpc.dispatch import Route, Served, explain, routes_of, serialize, unserved_route
from sealane.rpc.middleware import Blocking, Chain, parse_body
from sealane.rpc.odd_paths import survive_odd_paths
from sealane.rpc.transport import call_of, code_of, outward, trailers_of

AioContext = grpc.aio.ServicerContext[bytes, bytes]


def build(
    services: Iterable[Served], chain: Chain, *, mesh: bool, options: list[limits.Option] | None = None
) -> grpc.aio.Server:
    """A server with these services. Methods that only peers may call are left off the client port."""
    survive_odd_paths()
    server = grpc.aio.server(
        options=options or (limits.mesh_port() if mesh else limits.client_port()),
        maximum_concurrent_rpcs=20_000 if mesh else 2_000,
    )
    by_service: dict[str, dict[str, grpc.RpcMethodHandler[bytes, bytes]]] = {}
    for path, route in routes_of(services).items():
        if mesh or route.method.access.permission:
            service, _, name = path.lstrip("/").partition("/")
            by_service.setdefault(service, {})[name] = _Adapter(route, chain).grpc_handler()
    for service, handlers in by_service.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_generic_rpc_handlers((_Unserved(chain),))  # asked last
    return server


class _Unserved(grpc.GenericRpcHandler):
    """Every other path: who is nobody is UNAUTHENTICATED there too, before he learns what is served."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """A handler that reads nothing of what is sent, however the caller streams."""
        return _Adapter(unserved_route(handler_call_details.method), self._chain).grpc_handler()


class _Adapter:
    """Runs the chain and one servicer function for each of the four cardinalities."""

    def __init__(self, route: Route, chain: Chain) -> None:
        self._route = route
        self._chain = chain

    def grpc_handler(self) -> grpc.RpcMethodHandler[bytes, bytes]:
        """The handler in the form that grpcio wants, with identity (de)serialisers."""
        method = self._route.method
        if method.server_streaming:
            make = (
                grpc.stream_stream_rpc_method_handler
                if method.client_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(cast(Callable[..., object], self._to_stream))
        unary = grpc.stream_unary_rpc_method_handler if method.client_streaming else grpc.unary_unary_rpc_method_handler
        return unary(cast(Callable[..., object], self._to_unary))

    async def _to_unary(self, body: bytes | AsyncIterator[bytes], context: AioContext) -> bytes:
        call = call_of(self._route.method, context, body if isinstance(body, bytes) else None)
        failure: SealaneError | None = None
        try:
            await enter(self._chain, call)
            async with asyncio.timeout(call.remaining):
                response = await cast(Awaitable[object], self._route.handler(self._request(call, body), call))
            return serialize(response)
        except Exception as error:  # the translator: the one place that may catch all
            failure = explain(error, call)
        finally:
            self._chain.leave(call, failure)
        failure = outward(failure, call.method.path)
        await context.abort(code_of(failure), failure.message, trailers_of(failure, call.request_id))
        raise AssertionError("abort returned")

    async def _to_stream(self, body: bytes | AsyncIterator[bytes], context: AioContext) -> AsyncIterator[bytes]:
        call = call_of(self._route.method, context, body if isinstance(body, bytes) else None)
        call.cancel = canceller()
        failure: SealaneError | None = None
        try:
            await enter(self._chain, call)
            responses = cast(AsyncIterator[object], self._route.handler(self._request(call, body), call))
            async with aclosing(responses):  # type: ignore[type-var]  # servicers return async generators
                async for response in responses:
                    yield serialize(response)
        except asyncio.CancelledError:
            failure = call.revoked
            if failure is None:
                raise
        except Exception as error:  # the translator: the one place that may catch all
            failure = explain(error, call)
        finally:
            self._chain.leave(call, failure)
        if failure is not None:
            await context.abort(code_of(failure), failure.message, trailers_of(failure, call.request_id))

    def _request(self, call: Call, body: bytes | AsyncIterator[bytes]) -> object:
        if isinstance(body, bytes):
            return call.message
        return body if self._route.raw else _messages(call, body)


def canceller() -> Callable[[], None]:
    """Ends the running task, from any thread."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def cancel() -> None:
        loop.call_soon_threadsafe(task.cancel)

    return cancel


async def enter(chain: Chain, call: Call, *, body: bool = True) -> None:
    """Enter the chain, or the part of it that needs no body; work that blocks is done on a thread."""
    while True:
        try:
            chain.enter(call, body=body)
        except Blocking as pause:
            await asyncio.to_thread(pause.work)
        else:
            return


async def _messages(call: Call, bodies: AsyncIterator[bytes]) -> AsyncIterator[Message]:
    async for body in bodies:
        message = parse_body(call, body)
        check_resource(call, message)
        yield message
