"""The HTTP face of the gateway: each request is the call of a gRPC method, through the same middleware."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from sealane.errors import InvalidArgument, NotFound, SealaneError
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import Target
from sealane.protocols.openinference_json import one_of_stream
from sealane.protocols.openinference_stream import GRPC_ERRORS
from sealane.protocols.peek import target_of as oip_target
from sealane.rpc import limits
from sealane.rpc.async_dispatch import AsyncDispatcher
from sealane.rpc.call import Call, Peer
from sealane.rpc.limits import HEAD_BYTES
from sealane.rpc.policy import Method
from sealane.rpc.transport import outward
from sealane_inference import http_oip, http_tfs
from sealane_inference.finder import Finder
from sealane_inference.http_coding import (
    JSON_BYTES,
    Heavy,
    Inflow,
    Receive,
    coding_of,
    deflate,
    inflate,
    wanted_coding,
)
from sealane_inference.http_models import Models
from sealane_inference.http_openapi import document
from sealane_inference.http_scope import Scope, Send, headers_of, start, timeout_of
from sealane_inference.http_status import refusal, told
from sealane_inference.http_table import EVENTS, Asked, Endpoint, Question, Reply, Table, target_of
from sealane_inference.present import Present

OPENAPI = "/openapi.json"
#: An event that nobody takes for so long ends its stream.
_SEND_SECONDS = 60.0
_PEER = Peer(tls_version="TLSv1.3")  # the listener takes no other
_ECHO = 200
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
        self._table = Table([*http_oip.endpoints(), *http_tfs.endpoints()])
        self._models = Models(dispatcher)
        self._finders = {
            True: Finder(present, tfserving.unknown_model, "Missing model name in request."),
            False: Finder(present, openinference.unknown_model, "the request names no model; set its name"),
        }
        self._inflow = Inflow()
        self._heavy = Heavy()
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
            await self._send(send, _nowhere(verb, path, found.verbs), headers)
            return
        try:
            call = self._call(found.endpoint, scope, headers, duplicates)
        except SealaneError as error:
            await self._send(send, refusal(error, "", tfserving=found.endpoint.tfserving), headers)
            return
        exchange = _Exchange(found.endpoint, Question(target_of(found.values), headers), call, receive)
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

    async def _answer(self, exchange: _Exchange, send: Send) -> None:
        outcome = await self._dispatcher.unary(exchange.call, lambda call: self._source(exchange))
        if isinstance(outcome, bytes):
            reply = await self._told(exchange, outcome)
        else:
            reply = self._refused(exchange, outcome)
        await self._send(send, reply, exchange.question.headers)

    async def _stream(self, exchange: _Exchange, send: Send) -> None:
        begun = False
        async for outcome in self._answers(exchange):
            if isinstance(outcome, bytes):
                reply = await self._told(exchange, outcome)
            elif begun:
                reply = Reply((told(outward(outcome, exchange.call.method)),))
            else:
                reply = self._refused(exchange, outcome)
            if not begun and reply.status != 200:
                await self._send(send, reply, exchange.question.headers)
                return
            if not begun:
                await send(start(200, [("content-type", EVENTS), ("cache-control", "no-store")]))
                begun = True
            event = b"".join((b"data: ", *reply.body, b"\n\n"))
            async with asyncio.timeout(_SEND_SECONDS):
                await send({"type": "http.response.body", "body": event, "more_body": True})
        if not begun:
            await send(start(200, [("content-type", EVENTS), ("cache-control", "no-store")]))
        await send({"type": "http.response.body", "body": b""})

    async def _answers(self, exchange: _Exchange) -> AsyncIterator[bytes | SealaneError]:
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
        body = await self._inflow.read(exchange.receive, exchange.question.headers)
        exchange.held = len(body)
        exchange.watch = asyncio.create_task(_watch(exchange, asyncio.current_task()))
        question, endpoint = exchange.question, exchange.endpoint
        coding = coding_of(question.headers)
        if coding:
            body = await self._heavy.run(len(body) * 8, lambda: inflate(body, coding))
            exchange.held += len(body)
            self._inflow.take(len(body))
        question = replace(question, body=body)
        weight = endpoint.weigh(question)
        if weight > JSON_BYTES:
            raise InvalidArgument(
                f"the JSON is larger than {JSON_BYTES} bytes; send the tensors in binary, or fewer rows a call",
                reason="REQUEST_TOO_LARGE",
            )
        if endpoint.needs_model(question):
            finder = self._finders[endpoint.tfserving]
            found = await self._models.of(exchange.call, self._routed(exchange, question), finder)
            question = replace(question, model=found)
        exchange.asked = await self._heavy.run(weight, lambda: endpoint.ask(question))
        return exchange.asked.message

    @staticmethod
    def _routed(exchange: _Exchange, question: Question) -> Target:
        target = question.target
        return target if exchange.endpoint.tfserving else oip_target(target.model, target.version)

    async def _told(self, exchange: _Exchange, answer: bytes) -> Reply:
        asked = exchange.asked
        assert asked is not None
        try:
            return await self._heavy.run(0 if asked.light else len(answer), lambda: asked.tell(answer))
        except SealaneError as error:
            return self._refused(exchange, error)

    @staticmethod
    def _refused(exchange: _Exchange, failure: SealaneError) -> Reply:
        outer = outward(failure, exchange.call.method)
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
            return self._dispatcher.method(http_oip.INFER)
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

    async def _send(self, send: Send, reply: Reply, headers: Mapping[str, str]) -> None:
        body, told_headers = reply.body, [("content-type", reply.media_type), *reply.headers]
        size = sum(map(len, body))
        coding = wanted_coding(headers, size)
        if coding:
            body = (await self._heavy.run(size, lambda: deflate(reply.body, coding)),)
            size = len(body[0])
            told_headers.append(("content-encoding", coding))
        told_headers += (("content-length", str(size)), ("vary", "accept-encoding"))
        await send(start(reply.status, told_headers))
        for piece in body[:-1]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": body[-1] if body else b""})


async def _watch(exchange: _Exchange, task: asyncio.Task[object] | None) -> None:
    """Cancel the work for a caller that leaves: it reaches the model, which need not run for nobody."""
    while True:
        message = await exchange.receive()
        if message["type"] == "http.disconnect":
            break
    if task is not None and not task.done():
        exchange.gone = True
        task.cancel()


def _nowhere(verb: str, path: str, verbs: Sequence[str]) -> Reply:
    if verbs:
        failure: SealaneError = InvalidArgument("Method Not Allowed", reason="METHOD_NOT_ALLOWED")
        reply = refusal(failure, "", tfserving=False)
        return replace(reply, headers=(*reply.headers, ("allow", ", ".join(sorted(verbs)))))
    if path.startswith("/v1/"):
        failure = InvalidArgument(f"Malformed request: {verb} {path[:_ECHO]}", reason="MALFORMED_REQUEST")
        return refusal(failure, "", tfserving=True)
    return refusal(NotFound(f"nothing is served at this path; {OPENAPI} says what is"), "", tfserving=False)
