"""The HTTP face of the gateway: each request is the call of a gRPC method, through the same middleware."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from sealane.errors import InvalidArgument, SealaneError
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import Target
from sealane.protocols.openinference_json import one_of_stream
from sealane.protocols.openinference_stream import GRPC_ERRORS
from sealane.protocols.peek import target_of as oip_target
from sealane.rest import openinference_endpoints, tfserving_endpoints
from sealane.rest.bodies import JSON_BYTES, coding_of, inflate
from sealane.rest.status import nowhere, refusal
from sealane.rest.table import Asked, Endpoint, Question, Reply, Table, target_of
from sealane.rpc import limits
from sealane.rpc.async_dispatch import AsyncDispatcher
from sealane.rpc.call import Call, Peer
from sealane.rpc.http_guests import Connection
from sealane.rpc.limits import HEAD_BYTES
from sealane.rpc.policy import Method
from sealane.rpc.transport import outward
from sealane_inference.finder import Finder
from sealane_inference.http_conversion import ASK, TELL, answer_frame, asked_of, question_frame, reply_of
from sealane_inference.http_converter import Converter
from sealane_inference.http_inflow import INLINE_BYTES, Heavy, Inflow, Receive
from sealane_inference.http_models import Models
from sealane_inference.http_openapi import document
from sealane_inference.http_scope import Scope, Send, connection_of, headers_of, timeout_of
from sealane_inference.http_sending import begin_events, send_event, send_reply
from sealane_inference.present import Present

OPENAPI = "/openapi.json"
_PEER = Peer(tls_version="TLSv1.3")  # the listener takes no other
#: Endpoints whose JSON another process reads and writes where it is large.
_CONVERTED = {ask: name for name, ask in ASK.items()}
#: The JSON of all others holds no tensors.
_CONTROL_BYTES = 256 * 1024
_HEAD_TOO_LARGE = refusal(
    # The listener sees to those that come in pieces alone.
    InvalidArgument(f"the headers take more than {HEAD_BYTES} bytes; send fewer", reason="HEAD_TOO_LARGE"),
    "",
    tfserving=False,
)


@dataclass(slots=True)
class _Exchange:
    """One request on its way."""

    endpoint: Endpoint
    question: Question
    call: Call
    receive: Receive
    connection: Connection
    asked: Asked | None = None
    held: int = 0
    watch: asyncio.Task[None] | None = None
    gone: bool = False


class Face:
    """The application, in the form of ASGI; TLS is the listener's business.

    Args:
        dispatcher: runs the calls.
        present: for the routes of models whose signatures have to be known.
        hosts: names and addresses of this gateway, for which proofs of possession may be made.
    """

    def __init__(self, dispatcher: AsyncDispatcher, present: Present, hosts: Sequence[str]) -> None:
        self._dispatcher = dispatcher
        self._hosts = frozenset(hosts)
        self._table = Table([*openinference_endpoints.endpoints(), *tfserving_endpoints.endpoints()])
        self._models = Models(dispatcher)
        self._finders = {
            True: Finder(present, tfserving.unknown_model, "Missing model name in request."),
            False: Finder(present, openinference.unknown_model, "the request names no model; set its name"),
        }
        self._inflow = Inflow()
        self._heavy = Heavy()
        self._converter = Converter()
        self._openapi = document(self._table)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        verb, path = str(scope["method"]), str(scope["path"])
        headers, duplicates = headers_of(scope)
        if path == OPENAPI and verb in ("GET", "HEAD"):
            await self._send(send, Reply((self._openapi,)), headers)
            return
        found = self._table.find(verb, path)
        if sum(len(name) + len(value) for name, value in headers.items()) > HEAD_BYTES:
            await self._send(send, _HEAD_TOO_LARGE, {})
            return
        if found.endpoint is None:
            await self._send(send, nowhere(verb, path, found.verbs, OPENAPI), headers)
            return
        try:
            call = self._call(found.endpoint, scope, headers, duplicates)
        except SealaneError as error:
            await self._send(send, refusal(error, "", tfserving=found.endpoint.tfserving), headers)
            return
        question = Question(target_of(found.values), headers)
        exchange = _Exchange(found.endpoint, question, call, receive, connection_of(scope))
        try:
            await (self._stream if found.endpoint.streams else self._answer)(exchange, send)
        except asyncio.CancelledError:
            if not exchange.gone:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        finally:
            self._inflow.done(exchange.held)
            if exchange.watch is not None:
                exchange.watch.cancel()

    async def close(self) -> None:
        """End the processes that read and write large JSON."""
        self._heavy.close()
        await self._converter.close()

    async def _answer(self, exchange: _Exchange, send: Send) -> None:
        outcome = await self._dispatcher.unary(exchange.call, lambda call: self._source(exchange))
        reply = await self._reply(exchange, outcome)
        outcome = b""
        if not await send_reply(send, reply, exchange.question.headers, self._heavy):
            await self._end(exchange)

    async def _stream(self, exchange: _Exchange, send: Send) -> None:
        begun = False
        async with aclosing(self._answers(exchange)) as answers:
            async for outcome in answers:
                reply = await self._reply(exchange, outcome)
                if not begun and reply.status != 200:
                    await self._send(send, reply, exchange.question.headers)
                    return
                if not begun:
                    await begin_events(send)
                    begun = True
                if not await send_event(send, reply.body):
                    await self._end(exchange)
                    return
        if not begun:
            await begin_events(send)
        await send({"type": "http.response.body", "body": b""})

    async def _answers(self, exchange: _Exchange) -> AsyncGenerator[bytes | SealaneError, None]:
        """Serialized answers of ModelInfer; a refusal is the last."""
        call = exchange.call
        if not call.method.server_streaming:
            yield await self._dispatcher.unary(call, lambda call: self._source(exchange))
            return
        async with aclosing(self._dispatcher.stream(call, lambda call: self._source(exchange))) as outcomes:
            async for outcome in outcomes:
                yield one_of_stream(outcome) if isinstance(outcome, bytes) else outcome

    async def _source(self, exchange: _Exchange) -> bytes:
        """Read the request and make the method's of it; the caller is known by now."""
        exchange.connection.known = exchange.connection.known or exchange.call.identity is not None
        body = await self._inflow.read(exchange.receive, exchange.question.headers)
        exchange.held = len(body)
        exchange.watch = asyncio.create_task(_watch(exchange, asyncio.current_task()))
        question, endpoint = exchange.question, exchange.endpoint
        coding = coding_of(question.headers)
        if coding:
            body = await self._heavy.run(len(body) * 8, lambda: inflate(body, coding))
            self._hold(exchange, len(body))
        question = replace(question, body=body)
        weight = endpoint.weigh(question)
        most = JSON_BYTES if endpoint.ask in _CONVERTED else _CONTROL_BYTES
        if weight > most:
            raise InvalidArgument(
                f"the JSON is larger than {most} bytes; send the tensors in binary, or fewer rows a call",
                reason="REQUEST_TOO_LARGE",
            )
        if endpoint.needs_model(question):
            finder = self._finders[endpoint.tfserving]
            found = await self._models.of(exchange.call, self._routed(exchange, question), finder)
            question = replace(question, model=found)
        exchange.asked = await self._ask(endpoint, question, weight)
        return exchange.asked.message

    async def _ask(self, endpoint: Endpoint, question: Question, weight: int) -> Asked:
        name = _CONVERTED.get(endpoint.ask)
        if weight <= INLINE_BYTES or name is None:
            return await self._heavy.run(weight, lambda: endpoint.ask(question))
        return asked_of(await self._converter.run(question_frame(name, question)), TELL[name])

    @staticmethod
    def _routed(exchange: _Exchange, question: Question) -> Target:
        target = question.target
        return target if exchange.endpoint.tfserving else oip_target(target.model, target.version)

    async def _reply(self, exchange: _Exchange, outcome: bytes | SealaneError) -> Reply:
        self._let_go(exchange)
        if not isinstance(outcome, bytes):
            return self._refused(exchange, outcome)
        try:
            self._hold(exchange, len(outcome))
            reply = await self._told(exchange, outcome)
            self._hold(exchange, sum(map(len, reply.body)) - len(outcome))
        except SealaneError as error:
            return self._refused(exchange, error)
        return reply

    async def _told(self, exchange: _Exchange, answer: bytes) -> Reply:
        asked, name = exchange.asked, _CONVERTED.get(exchange.endpoint.ask)
        assert asked is not None
        if asked.light or len(answer) <= INLINE_BYTES or name is None:
            return await self._heavy.run(0 if asked.light else len(answer), lambda: asked.tell(answer))
        if len(answer) > JSON_BYTES:
            raise InvalidArgument(
                f"the outputs take {len(answer)} bytes, and JSON carries {JSON_BYTES}; ask for them in binary",
                reason="ANSWER_TOO_LARGE",
            )
        return reply_of(await self._converter.run(answer_frame(name, asked.notes, answer)))

    def _hold(self, exchange: _Exchange, size: int) -> None:
        exchange.held += size
        self._inflow.take(size)

    def _let_go(self, exchange: _Exchange) -> None:
        """The request is not needed any more."""
        self._inflow.done(exchange.held)
        exchange.held, exchange.call.body, exchange.call.message = 0, None, None
        if exchange.asked is not None:
            exchange.asked = replace(exchange.asked, message=b"")

    @staticmethod
    def _refused(exchange: _Exchange, failure: SealaneError) -> Reply:
        outer = outward(failure, exchange.call.method.path)
        return refusal(outer, exchange.call.request_id, tfserving=exchange.endpoint.tfserving)

    def _call(self, endpoint: Endpoint, scope: Scope, headers: Mapping[str, str], duplicates: frozenset[str]) -> Call:
        method = self._method(endpoint)
        cap = limits.STREAM_SECONDS if method.server_streaming else limits.UNARY_SECONDS
        return Call(
            method=method,
            metadata={**headers, GRPC_ERRORS: "true"} if endpoint.streams else headers,
            peer=_PEER,
            deadline=time.monotonic() + min(cap, timeout_of(headers)),
            duplicates=duplicates,
            proves=(str(scope["method"]), self._url(scope, headers)),
        )

    def _method(self, endpoint: Endpoint) -> Method:
        if endpoint.streams and not self._dispatcher.serves(endpoint.method):
            return self._dispatcher.method(openinference_endpoints.INFER)
        return self._dispatcher.method(endpoint.method)

    def _url(self, scope: Scope, headers: Mapping[str, str]) -> str:
        """The URL that a proof must name (RFC 9449 section 4.3); nothing for a host that is not this gateway."""
        host = headers.get("host", "").lower()
        name = host.removesuffix(":443") if host.endswith(":443") else host
        if name.rpartition(":")[0] not in self._hosts and name not in self._hosts:
            return ""
        path = scope.get("raw_path") or b""
        assert isinstance(path, bytes)
        return f"https://{name}{path.decode('ascii', 'replace').partition('?')[0]}"

    @staticmethod
    async def _end(exchange: _Exchange) -> None:
        """End the connection, and wait until it is over."""
        exchange.connection.abort()
        while (await exchange.receive())["type"] != "http.disconnect":
            pass

    async def _send(self, send: Send, reply: Reply, headers: Mapping[str, str]) -> None:
        await send_reply(send, reply, headers, self._heavy)


async def _watch(exchange: _Exchange, task: asyncio.Task[object] | None) -> None:
    """Cancel the work for a caller that leaves: it reaches the model, which need not run for nobody."""
    while True:
        message = await exchange.receive()
        if message["type"] == "http.disconnect":
            break
    if task is not None and not task.done():
        exchange.gone = True
        task.cancel()
