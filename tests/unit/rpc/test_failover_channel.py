"""A channel over several addresses of which one serves, on real servers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from sealane.rpc.failover import FailoverChannel, Turn


class Server:
    """Answers with its name, or refuses while another leads."""

    def __init__(self, name: str) -> None:
        self.name, self.leads, self.calls = name.encode(), True, 0
        self._server = grpc.server(ThreadPoolExecutor(4))
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self._unary),
            "Stream": grpc.unary_stream_rpc_method_handler(self._stream),
            "Both": grpc.stream_stream_rpc_method_handler(self._stream),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", handlers),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()

    def _unary(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.calls += 1
        if not self.leads:
            context.abort(grpc.StatusCode.UNAVAILABLE, "another leads")
        return self.name

    def _stream(self, request: object, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield self._unary(b"", context)


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    made = [Server("a"), Server("b")]
    yield made
    for server in made:
        server.stop()


@pytest.fixture
def channel(servers: list[Server]) -> Iterator[FailoverChannel]:
    with over(servers) as made:
        yield made


def over(servers: list[Server], turn: Turn | None = None) -> FailoverChannel:
    return FailoverChannel([grpc.insecure_channel(f"127.0.0.1:{server.port}") for server in servers], turn)


def test_who_leads_is_found_and_stayed_with(servers: list[Server], channel: FailoverChannel) -> None:
    call = channel.unary_unary("/s/Unary")
    assert call(b"", timeout=5) == b"a"
    servers[0].leads = False
    with pytest.raises(grpc.RpcError):
        call(b"", timeout=5)
    assert [call(b"", timeout=5) for _ in range(5)] == [b"b"] * 5
    assert servers[0].calls == 2, "who refused is not asked again"


def test_one_that_has_died_is_left(servers: list[Server], channel: FailoverChannel) -> None:
    call = channel.unary_unary("/s/Unary")
    assert call(b"", timeout=5) == b"a"
    servers[0].stop()
    with pytest.raises(grpc.RpcError):
        call(b"", timeout=5)
    assert call(b"", timeout=5) == b"b"


@pytest.mark.parametrize("method", ["Stream", "Both"])
def test_streams_and_calls_find_out_for_each_other(
    servers: list[Server], channel: FailoverChannel, method: str
) -> None:
    open_ = channel.unary_stream if method == "Stream" else channel.stream_stream
    stream = open_(f"/s/{method}")
    sent = b"" if method == "Stream" else iter([b""])
    servers[0].leads = False
    with pytest.raises(grpc.RpcError):
        next(stream(sent, timeout=5))
    assert eventually_b(channel)
    sent = b"" if method == "Stream" else iter([b""])
    assert next(stream(sent, timeout=5)) == b"b"


def eventually_b(channel: FailoverChannel) -> bool:
    """The end of a stream is told by a thread of its own."""
    return any(channel.pick()[0] == 1 or pause(0.01) for _ in range(500))


def pause(seconds: float) -> None:
    import time

    time.sleep(seconds)


def test_a_future_counts_too(servers: list[Server], channel: FailoverChannel) -> None:
    servers[0].leads = False
    call = channel.unary_unary("/s/Unary")
    assert call.future(b"", timeout=5).exception() is not None
    assert eventually_b(channel)
    assert call.future(b"", timeout=5).result() == b"b"


def test_other_failures_leave_the_turn_where_it_is(channel: FailoverChannel) -> None:
    with pytest.raises(grpc.RpcError):
        channel.unary_unary("/s/Unknown")(b"", timeout=5)
    assert channel.pick()[0] == 0


def test_a_new_channel_knows_what_the_one_before_found_out(servers: list[Server]) -> None:
    turn = Turn()
    servers[0].leads = False
    with over(servers, turn) as first, pytest.raises(grpc.RpcError):
        first.unary_unary("/s/Unary")(b"", timeout=5)
    with over(servers, turn) as second:
        assert second.unary_unary("/s/Unary")(b"", timeout=5) == b"b"


def test_many_that_fail_at_once_move_the_turn_once() -> None:
    turn = Turn()
    for _ in range(5):
        turn.failed(0, 3)
    assert turn.of(3) == 1
    turn.failed(2, 3)
    assert turn.of(3) == 1
    turn.failed(1, 3)
    turn.failed(2, 3)
    assert turn.of(3) == 0
