"""From a method path to the servicer's function, through the middleware.

No transport in here: the same dispatcher serves a worker's own listener and the lanes it dialled.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import cast

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from sealane.errors import SealaneError
from sealane.rpc import limits
from sealane.rpc.authorisation import check_resource
from sealane.rpc.call import Call
from sealane.rpc.middleware import Blocking, Chain, parse_body
from sealane.rpc.policy import Method, methods_of, not_served, unserved
from sealane.rpc.status import translate

log = logging.getLogger("sealane.rpc")

# A servicer's function takes (request, call) and returns a message or ready bytes; on streams an
# iterator, on grpc.aio an awaitable of either. One Callable type for all is what grpc itself does.
Handler = Callable[..., object]
#: Has a function called when nobody waits for an answer any more; see :attr:`sealane.rpc.call.Call.watch`.
Watch = Callable[[Callable[[], None]], bool]


@dataclass(frozen=True, slots=True)
class Served:
    """A servicer and the contract it serves.

    Args:
        servicer: has a function for each method.
        descriptor: of the service.
        foreign_name: replaces the service's own in the path.
        raw: streaming methods whose function takes the bodies as they come, to pass them on.
    """

    servicer: object
    descriptor: ServiceDescriptor
    foreign_name: str = ""
    raw: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Route:
    """A method and the function behind it."""

    method: Method
    handler: Handler
    raw: bool = False


def routes_of(services: Iterable[Served]) -> dict[str, Route]:
    """Routes by path. A method that the servicer lacks is an error at start, not at the first call."""
    routes = {}
    for served in services:
        for method in methods_of(served.descriptor, served.foreign_name):
            if method.server_streaming and not hasattr(served.servicer, method.name):
                continue  # the synchronous front leaves streams (health's Watch) to the gateway
            handler = getattr(served.servicer, method.name)
            routes[method.path] = Route(method, handler, method.name in served.raw)
    return routes


def carried(stream: Call, method: Method, body: bytes, watch: Watch | None = None) -> Call:
    """A unary call that a stream of the same caller carries: what it costs and asks is looked at for itself.

    `watch` tells it when nobody waits for it any more. Not the stream's own: what is asked of that one is kept until
    the stream ends, and a stream may carry calls for days.
    """
    return Call(
        method=method,
        metadata={**stream.metadata, "traceparent": stream.traceparent},
        peer=stream.peer,
        deadline=min(stream.deadline, time.monotonic() + limits.UNARY_SECONDS),
        body=body,
        watch=watch,
        within=stream,
    )


def unserved_route(path: str) -> Route:
    """The route of a path where nothing is served: limits, deadline and authentication, and then a refusal."""

    def refuse(request: object, call: Call) -> object:
        raise not_served(path)

    return Route(unserved(path), refuse)


class Dispatcher:
    """Runs calls synchronously."""

    def __init__(self, services: Iterable[Served], chain: Chain) -> None:
        self.routes = routes_of(services)
        self.chain = chain

    def route(self, path: str) -> Route:
        """The route of a path.

        Raises:
            Unimplemented: nothing is served there.
        """
        route = self.routes.get(path)
        if route is None:
            raise not_served(path)
        return route

    def unary(self, route: Route, call: Call) -> bytes:
        """Run one unary call; returns the serialized answer.

        Raises:
            SealaneError: whatever went wrong, translated.
        """
        failure: SealaneError | None = None
        try:
            enter_blocking(self.chain, call)
            return serialize(route.handler(call.message, call))
        except Exception as error:  # the translator: the one place that may catch all
            failure = explain(error, call)
            raise failure from error
        finally:
            self.chain.leave(call, failure)

    def stream(self, route: Route, call: Call, bodies: Iterator[bytes]) -> Iterator[bytes]:
        """Run one stream; gives the serialized answers.

        Raises:
            SealaneError: whatever went wrong, translated.
        """
        failure: SealaneError | None = None
        try:
            enter_blocking(self.chain, call)
            requests = bodies if route.raw else _messages(call, bodies)
            for response in cast(Iterator[object], route.handler(requests, call)):
                yield serialize(response)
        except Exception as error:  # the translator: the one place that may catch all
            failure = call.revoked or explain(error, call)
            raise failure from error
        finally:
            self.chain.leave(call, failure)


def _messages(call: Call, bodies: Iterator[bytes]) -> Iterator[Message]:
    for body in bodies:
        message = parse_body(call, body)
        check_resource(call, message)
        yield message


def enter_blocking(chain: Chain, call: Call) -> None:
    """Enter the chain on a thread that may block."""
    while True:
        try:
            chain.enter(call)
        except Blocking as pause:
            pause.work()
        else:
            return


def serialize(response: object) -> bytes:
    """Bytes of an answer; ready bytes pass untouched."""
    if isinstance(response, bytes):
        return response
    if isinstance(response, Message):
        return response.SerializeToString()
    raise TypeError(f"a servicer returned {type(response).__name__}, not a message")


def explain(failure: BaseException, call: Call) -> SealaneError:
    """Translate a failure; the details of an unexpected one go to the log alone."""
    translated = translate(failure, call.request_id)
    if translated.kind == "INTERNAL" and not isinstance(failure, SealaneError):
        log.error("unexpected failure", exc_info=failure, extra={"method": call.method.path, "id": call.request_id})
    return translated
