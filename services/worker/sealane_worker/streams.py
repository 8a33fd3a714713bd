"""ModelStreamInfer: the requests of a stream run beside each other, their answers go out in the order of the requests.

Each request is a call of its own, with its own deadline, quota and trace. Those of one sequence wait for each other.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from sealane.errors import Cancelled, InvalidArgument, SealaneError, Unavailable
from sealane.protocols.openinference_stream import GRPC_ERRORS, stream_answer, stream_error
from sealane.protocols.peek import InferOptions, peek_options
from sealane.rpc.call import Call, Cancellation
from sealane.rpc.dispatch import Dispatcher, carried

#: Requests of one stream that are under way, and their bytes; one larger request goes alone.
UNDER_WAY = 8
BYTES_UNDER_WAY = 64 << 20

INFER = "/inference.GRPCInferenceService/ModelInfer"

_Answer = Future[bytes]


@dataclass(frozen=True, slots=True)
class _Begun:
    """A request under way."""

    answer: _Answer
    options: InferOptions
    size: int


class _Window:
    """How many requests of a stream may be under way."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = self._bytes = 0
        self._closed = False

    def enter(self, size: int) -> bool:
        """Wait for a place; false where the stream is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._fits(size))
            self._count += 1
            self._bytes += size
            return not self._closed

    def leave(self, size: int) -> None:
        """A request was answered."""
        with self._changed:
            self._count -= 1
            self._bytes -= size
            self._changed.notify()

    def close(self) -> None:
        """The stream is over."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _fits(self, size: int) -> bool:
        return not self._count or (self._count < UNDER_WAY and self._bytes + size <= BYTES_UNDER_WAY)


class _UnderWay:
    """The calls under way that a stream carries; all of them hear when its caller is gone, and none is kept longer."""

    def __init__(self, stream: Call) -> None:
        self._lock = threading.Lock()
        self._calls: set[Cancellation] | None = set()
        stream.on_cancel(self._cancel)

    @contextlib.contextmanager
    def one(self) -> Iterator[Cancellation]:
        """For one call, while it runs.

        Raises:
            Cancelled: the stream is over.
        """
        call = Cancellation()
        with self._lock:
            if self._calls is None:
                raise Cancelled("the stream is over")
            self._calls.add(call)
        try:
            yield call
        finally:
            with self._lock:
                if self._calls is not None:
                    self._calls.discard(call)

    def _cancel(self) -> None:
        with self._lock:
            calls, self._calls = self._calls, None
        for call in calls or ():
            call.cancel()


class Streams:
    """Runs streams.

    Args:
        threads: most requests of all streams that run at the same time. They have threads of their own: what waits in
            streams must not keep the lanes' calls from theirs.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="stream-call")
        self._dispatcher: Dispatcher | None = None

    def attach(self, dispatcher: Dispatcher) -> None:
        """Say what serves the requests; it serves the streams too, so it is there later."""
        self._dispatcher = dispatcher

    def run(self, bodies: Iterator[bytes], call: Call) -> Iterator[bytes]:
        """The serialized answers to the serialized requests of one stream.

        Raises:
            SealaneError: of the first request that failed, where the caller asked for it so.
        """
        answers: queue.SimpleQueue[_Begun | None] = queue.SimpleQueue()
        window = _Window()
        feed = threading.Thread(
            target=self._feed, args=(bodies, call, answers, window), name="stream-requests", daemon=True
        )
        feed.start()
        in_band = call.metadata.get(GRPC_ERRORS, "").lower() != "true"
        try:
            while (begun := answers.get()) is not None:
                try:
                    yield stream_answer(begun.answer.result())
                except SealaneError as error:
                    if not in_band:
                        raise
                    yield stream_error(error.message, begun.options.request_id)
                window.leave(begun.size)
        finally:
            window.close()

    def _feed(
        self,
        bodies: Iterator[bytes],
        call: Call,
        answers: queue.SimpleQueue[_Begun | None],
        window: _Window,
    ) -> None:
        """Begin the requests in their order until the caller has sent all or is gone."""
        sequences: dict[str, _Answer] = {}
        under_way = _UnderWay(call)
        try:
            for body in bodies:
                if not window.enter(len(body)):
                    return
                try:
                    options = peek_options(body)
                except InvalidArgument as error:
                    answers.put(_Begun(_failed(error), InferOptions(), len(body)))
                    continue
                before = sequences.get(options.sequence) if options.sequence else None
                answer = self._pool.submit(self._one, call, body, before, under_way)
                if options.sequence:
                    sequences = {name: item for name, item in sequences.items() if not item.done()}
                    sequences[options.sequence] = answer
                answers.put(_Begun(answer, options, len(body)))
        except Exception:  # supervisor: grpcio ends the requests of a caller that left by an exception of its own kind
            return
        finally:
            answers.put(None)

    def _one(self, call: Call, body: bytes, before: _Answer | None, under_way: _UnderWay) -> bytes:
        if before is not None:
            before.exception()  # waits; begun before this one, it needs no thread that this one holds
        if call.remaining <= 0:
            raise Cancelled("the stream is over")
        if self._dispatcher is None:
            raise Unavailable("not ready; try again in a moment")
        route = self._dispatcher.route(INFER)
        with under_way.one() as cancellation:
            return self._dispatcher.unary(route, carried(call, route.method, body, cancellation.watch))


def _failed(error: SealaneError) -> _Answer:
    answer: _Answer = Future()
    answer.set_exception(error)
    return answer
