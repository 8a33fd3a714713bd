"""From a method path to the servicer's function, through the middleware, on an event loop and without a transport.

For calls that do not come by gRPC: an HTTP request becomes a call of the method that means the same, so that tokens,
permissions, quotas, limits and spans are the same. The caller is known before a byte of its body is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import cast

from sealane.errors import SealaneError
from sealane.rpc.authorisation import check_resource
from sealane.rpc.call import Call
from sealane.rpc.dispatch import Route, explain, serialize, unserved_route
from sealane.rpc.middleware import Chain, parse_body
from sealane.rpc.policy import Method
from sealane.rpc.server import canceller, enter

#: Reads what the caller sent and makes the method's request of it.
Source = Callable[[Call], Awaitable[bytes]]


class AsyncDispatcher:
    """Runs calls on an event loop.

    Args:
        routes: what is served, by path.
        chain: the middleware of the service's other listeners.
    """

    def __init__(self, routes: Mapping[str, Route], chain: Chain) -> None:
        self._routes = routes
        self._chain = chain

    def method(self, path: str) -> Method:
        """The method at `path`; one that refuses where nothing is served."""
        return self._route(path).method

    def serves(self, path: str) -> bool:
        """Whether there is a method at `path`."""
        return path in self._routes

    async def unary(self, call: Call, source: Source) -> bytes | SealaneError:
        """Run one call; the serialized answer, or why there is none.

        A refusal is returned and not raised: it would hold the frames on its way, and they the request.
        """
        route, failure = self._route(call.method.path), None
        try:
            async with asyncio.timeout(call.remaining):
                await enter(self._chain, call, body=False)
                call.body = await source(call)
                await enter(self._chain, call)
                response = await cast(Awaitable[object], route.handler(call.message, call))
            return serialize(response)
        except Exception as error:  # the translator: the one place that may catch all
            failure = explain(error, call)
        finally:
            self._chain.leave(call, failure)
        return failure

    async def stream(self, call: Call, source: Source) -> AsyncGenerator[bytes | SealaneError, None]:
        """Run one call that gives several answers to one request; a refusal is the last thing given."""
        route, failure = self._route(call.method.path), None
        call.cancel = canceller()
        try:
            await enter(self._chain, call, body=False)
            body = await source(call)
            await enter(self._chain, call)
            responses = cast(AsyncIterator[object], route.handler(_only(route, call, body), call))
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
            yield failure

    async def beside(self, call: Call, path: str, body: bytes) -> bytes:
        """Ask another method for what `call` needs to be understood: as its caller, who was let in, at no further cost.

        Raises:
            SealaneError: what the method answers.
        """
        route = self._route(path)
        asked = replace(call, method=route.method, body=body, message=None, model=None)
        asked.message = parse_body(asked, body)
        check_resource(asked, asked.message)
        return serialize(await cast(Awaitable[object], route.handler(asked.message, asked)))

    def _route(self, path: str) -> Route:
        return self._routes.get(path) or unserved_route(path)


async def _only(route: Route, call: Call, body: bytes) -> AsyncIterator[object]:
    if route.raw:
        yield body
        return
    message = parse_body(call, body)
    check_resource(call, message)
    yield message
