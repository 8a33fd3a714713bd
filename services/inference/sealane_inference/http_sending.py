"""Answers on their way out: in pieces, so that one that nobody reads waits here and is counted, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

from sealane.rest.bodies import deflate, wanted_coding
from sealane.rest.table import EVENTS, Reply
from sealane_inference.http_inflow import INLINE_BYTES, Heavy
from sealane_inference.http_scope import Send, start

#: An answer, or an event, that its caller has not taken after so long ends the connection.
ANSWER_SECONDS = 60.0
_PIECE = 256 * 1024


async def send_reply(send: Send, reply: Reply, headers: Mapping[str, str], heavy: Heavy) -> bool:
    """Send a whole answer, compressed where the caller reads that; whether he took it in time."""
    body, told = reply.body, [("content-type", reply.media_type), *reply.headers]
    size = sum(map(len, body))
    coding = wanted_coding(headers, size)
    if coding:
        body = (await heavy.run(size, lambda: deflate(reply.body, coding)),)
        size = len(body[0])
        told.append(("content-encoding", coding))
    told += (("content-length", str(size)), ("vary", "accept-encoding"))
    if size <= INLINE_BYTES:
        await send(start(reply.status, told))
        await send({"type": "http.response.body", "body": body[0] if len(body) == 1 else b"".join(body)})
        return True
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await send(start(reply.status, told))
            await _send_pieces(send, body)
            await send({"type": "http.response.body", "body": b""})  # waits until the others are on their way
    except TimeoutError:
        return False
    return True


async def begin_events(send: Send) -> None:
    """Begin an answer of events."""
    await send(start(200, [("content-type", EVENTS), ("cache-control", "no-store")]))


async def send_event(send: Send, body: Sequence[bytes]) -> bool:
    """Send one event; whether the caller took it in time."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await _send_pieces(
                send, (b"data: ", *body, b"\n\n") if sum(map(len, body)) > INLINE_BYTES else (_one(body),)
            )
    except TimeoutError:
        return False
    return True


def _one(body: Sequence[bytes]) -> bytes:
    return b"".join((b"data: ", *body, b"\n\n"))


async def _send_pieces(send: Send, body: Sequence[bytes]) -> None:
    for piece in _pieces(body):
        await send({"type": "http.response.body", "body": piece, "more_body": True})


def _pieces(body: Sequence[bytes]) -> Iterator[bytes | memoryview]:
    for part in body:
        if len(part) <= _PIECE:
            yield part
            continue
        whole = memoryview(part)
        for at in range(0, len(part), _PIECE):
            yield whole[at : at + _PIECE]
