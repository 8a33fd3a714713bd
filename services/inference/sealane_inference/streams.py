"""ModelStreamInfer at the gateway: the requests of a stream are forwarded beside each other, each to its own worker.

Their answers go out in the order of the requests; requests of one sequence wait for each other. Each request is a call
of its own, with its own deadline, quota and trace.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from sealane.errors import InvalidArgument, SealaneError, Unavailable
from sealane.protocols.openinference_stream import GRPC_ERRORS, stream_answer, stream_error
from sealane.protocols.peek import peek_options
from sealane.rpc.async_dispatch import AsyncDispatcher
from sealane.rpc.call import Call
from sealane.rpc.dispatch import carried

INFER = "/inference.GRPCInferenceService/ModelInfer"
#: Requests of one stream that are under way.
UNDER_WAY = 32
#: The same until the first answer of the stream says how large its answers are.
FIRST_UNDER_WAY = 4
#: Bytes of them, and of their answers that wait for those before them; one larger request goes alone.
BYTES_UNDER_WAY = 64 << 20

_Outcome = bytes | SealaneError


@dataclass(slots=True)
class _Begun:
    """A request under way."""

    task: asyncio.Task[_Outcome]
    request_id: str
    sequence: str
    size: int


@dataclass(slots=True)
class _Room:
    """What a stream may have under way, going by what came and went on it before."""

    request: int = 0
    answer: int = 0
    answered: bool = False

    def fits(self, begun: Sequence[_Begun]) -> bool:
        """Whether one more request may be read; what is not known yet is taken to be as large as the largest was."""
        if not begun:
            return True
        if len(begun) >= (UNDER_WAY if self.answered else FIRST_UNDER_WAY):
            return False
        return sum(self._size(item) for item in begun) + max(self.request, self.answer) <= BYTES_UNDER_WAY

    def _size(self, item: _Begun) -> int:
        if not item.task.done():
            return max(item.size, self.answer)
        outcome = item.task.result()
        return len(outcome) if isinstance(outcome, bytes) else 0

    def told(self, outcome: _Outcome) -> None:
        """A request was answered."""
        self.answered = True
        self.answer = max(self.answer, len(outcome) if isinstance(outcome, bytes) else 0)


class Streams:
    """Runs streams."""

    def __init__(self) -> None:
        self._dispatcher: AsyncDispatcher | None = None

    def attach(self, dispatcher: AsyncDispatcher) -> None:
        """Say what serves the requests; it serves the streams too, so it is there later."""
        self._dispatcher = dispatcher

    async def run(self, bodies: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        """The serialized answers to the serialized requests of one stream.

        Raises:
            SealaneError: of the first request that failed, where the caller asked for it so.
        """
        in_band = call.metadata.get(GRPC_ERRORS, "").lower() != "true"
        begun: deque[_Begun] = deque()
        room = _Room()
        reading: asyncio.Task[bytes | None] | None = None
        over = False
        try:
            while begun or not over:
                if reading is None and not over and room.fits(begun):
                    reading = asyncio.ensure_future(_next(bodies))
                waits = {task for task in (reading, begun[0].task if begun else None) if task is not None}
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if reading is not None and reading.done():
                    body, reading = reading.result(), None
                    over = body is None
                    if body is not None:
                        room.request = max(room.request, len(body))
                        begun.append(self._begin(call, body, begun))
                while begun and begun[0].task.done():
                    first = begun.popleft()
                    outcome = first.task.result()
                    room.told(outcome)
                    if isinstance(outcome, bytes):
                        yield stream_answer(outcome)
                    elif in_band:
                        yield stream_error(outcome.message, first.request_id)
                    else:
                        raise outcome
        finally:
            for task in (reading, *(item.task for item in begun)):
                if task is not None:
                    task.cancel()

    def _begin(self, call: Call, body: bytes, before: deque[_Begun]) -> _Begun:
        try:
            options = peek_options(body)
        except InvalidArgument as error:
            return _Begun(asyncio.ensure_future(_failed(error)), "", "", len(body))
        earlier = next((item.task for item in reversed(before) if item.sequence == options.sequence), None)
        task = asyncio.ensure_future(self._one(call, body, earlier if options.sequence else None))
        return _Begun(task, options.request_id, options.sequence, len(body))

    async def _one(self, stream: Call, body: bytes, before: asyncio.Task[_Outcome] | None) -> _Outcome:
        if before is not None:
            await asyncio.wait({before})
        if self._dispatcher is None:
            return Unavailable("not ready; try again in a moment")
        call = carried(stream, self._dispatcher.method(INFER), body)

        async def source(_: Call) -> bytes:
            return body

        return await self._dispatcher.unary(call, source)


async def _next(bodies: AsyncIterator[bytes]) -> bytes | None:
    return await anext(bodies, None)


async def _failed(error: SealaneError) -> _Outcome:
    return error
