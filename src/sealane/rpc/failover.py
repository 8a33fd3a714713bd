"""One channel to a service of which several processes run and one serves.

An address may name several, with commas between them. A call goes to the one that answered last; where that one is
away, or says that another leads (``NOT_LEADER``), the next call goes to the next one. What repeats calls is
:mod:`sealane.rpc.channel`, by their contract; nothing is sent twice here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import grpc


class Turn:
    """Whose turn it is among several addresses. Shared by channels to one service, and kept while they come and go."""

    def __init__(self) -> None:
        self._at = 0
        self._lock = threading.Lock()

    def of(self, count: int) -> int:
        """Which of `count` addresses is called now."""
        return self._at % count

    def failed(self, at: int, count: int) -> None:
        """Address number `at` did not serve: it is the next one's turn, unless somebody found that out before."""
        with self._lock:
            if self._at % count == at:
                self._at += 1


class FailoverChannel(grpc.Channel):
    """A channel over channels, one for each address."""

    def __init__(self, channels: Sequence[grpc.Channel], turn: Turn | None = None) -> None:
        self._channels = tuple(channels)
        self._turn = turn or Turn()

    def pick(self) -> tuple[int, grpc.Channel]:
        """Number and channel of the address whose turn it is."""
        at = self._turn.of(len(self._channels))
        return at, self._channels[at]

    def ended(self, at: int, code: grpc.StatusCode | None) -> None:
        """A call to address number `at` has ended."""
        if code is grpc.StatusCode.UNAVAILABLE:
            self._turn.failed(at, len(self._channels))

    def unary_unary(self, method: str, *codecs: Any, **options: Any) -> Any:
        """See :class:`grpc.Channel`."""
        return _Unary(self, lambda channel: channel.unary_unary(method, *codecs, **options))

    def unary_stream(self, method: str, *codecs: Any, **options: Any) -> Any:
        """See :class:`grpc.Channel`."""
        return _Stream(self, lambda channel: channel.unary_stream(method, *codecs, **options))

    def stream_unary(self, method: str, *codecs: Any, **options: Any) -> Any:
        """See :class:`grpc.Channel`."""
        return _Unary(self, lambda channel: channel.stream_unary(method, *codecs, **options))

    def stream_stream(self, method: str, *codecs: Any, **options: Any) -> Any:
        """See :class:`grpc.Channel`."""
        return _Stream(self, lambda channel: channel.stream_stream(method, *codecs, **options))

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False) -> None:
        """Hear how the channel whose turn it is now stands."""
        self.pick()[1].subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """Hear no more."""
        for channel in self._channels:
            channel.unsubscribe(callback)

    def close(self) -> None:
        """Close all."""
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> FailoverChannel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Method:
    """A method, on whichever channel it is called."""

    def __init__(self, over: FailoverChannel, make: Callable[[grpc.Channel], Any]) -> None:
        self._over = over
        self._make = make
        self._made: dict[int, Any] = {}

    def _now(self) -> tuple[int, Any]:
        at, channel = self._over.pick()
        if at not in self._made:
            self._made[at] = self._make(channel)
        return at, self._made[at]

    def _watched(self, at: int, call: Any) -> Any:
        if not call.add_callback(lambda: self._over.ended(at, call.code())):
            self._over.ended(at, call.code())  # it has ended already
        return call


class _Unary(_Method):
    def __call__(self, request: object, **options: Any) -> Any:
        """Call and wait for the answer."""
        return self.with_call(request, **options)[0]

    def with_call(self, request: object, **options: Any) -> Any:
        """Call and wait for the answer; with the call."""
        at, method = self._now()
        try:
            return method.with_call(request, **options)
        except grpc.RpcError as error:
            self._over.ended(at, error.code())
            raise

    def future(self, request: object, **options: Any) -> Any:
        """Call without waiting."""
        at, method = self._now()
        return self._watched(at, method.future(request, **options))


class _Stream(_Method):
    def __call__(self, request: object, **options: Any) -> Any:
        """Open the stream."""
        at, method = self._now()
        return self._watched(at, method(request, **options))
