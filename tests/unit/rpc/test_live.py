"""Streams end with the token that they were opened with."""

from __future__ import annotations

import asyncio
import time

from google.protobuf import empty_pb2

from sealane.clock import ManualClock
from sealane.rpc.call import Call, Identity, Peer
from sealane.rpc.live import LiveStreams
from sealane.rpc.policy import Access, Method
from sealane.security.revocations import Revocations
from sealane.security.tokens import LEEWAY_SECONDS

_METHOD = Method("/x.Y/Z", empty_pb2.Empty, empty_pb2.Empty, True, True, Access("models:read"), idempotent=False)


def stream(expires: float) -> tuple[Call, asyncio.Event]:
    ended = asyncio.Event()
    call = Call(_METHOD, {}, Peer("", "TLSv1.3"), time.monotonic() + 600)
    call.identity, call.cancel = Identity("a", expires=expires), ended.set
    return call, ended


async def test_a_stream_ends_when_its_token_does() -> None:
    clock = ManualClock()
    live = LiveStreams(Revocations(clock), clock)
    call, ended = stream(clock.now() + 100)
    clock.advance(100 + LEEWAY_SECONDS - 0.05)
    live.before(call)
    assert not ended.is_set() and call.revoked is None
    clock.advance(0.1)
    await asyncio.wait_for(ended.wait(), 10)
    assert call.revoked is not None and call.revoked.reason == "TOKEN_EXPIRED"
    live.after(call, call.revoked)


async def test_a_token_that_is_over_when_the_stream_begins_ends_it_at_once() -> None:
    clock = ManualClock()
    call, ended = stream(clock.now() - LEEWAY_SECONDS - 1)
    LiveStreams(Revocations(clock), clock).before(call)
    assert ended.is_set()


async def test_streams_of_peers_and_streams_that_are_over_are_left_alone() -> None:
    clock = ManualClock()
    live = LiveStreams(Revocations(clock), clock)
    (peer, peer_ended), (over, over_ended) = stream(0.0), stream(clock.now() - LEEWAY_SECONDS + 0.05)
    live.before(peer)
    live.before(over)
    live.after(over, None)
    clock.advance(1)
    await asyncio.sleep(0.2)
    assert not peer_ended.is_set() and not over_ended.is_set()
