"""Bodies on their way in: what they may take together, and heavy work off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sealane.errors import Cancelled, ResourceExhausted
from sealane.rest import bodies

#: Bodies of all requests together that are being read or worked on, and answers that are on their way.
ALL_BYTES = 512 * 1024 * 1024
#: More is (de)compressed by a thread, so many at once, and JSON of more is read and written by another process.
INLINE_BYTES = 64 * 1024
THREADS = 2

Receive = Callable[[], Awaitable[Mapping[str, object]]]
T = TypeVar("T")


class Inflow:
    """Reads bodies; what they take together is bounded."""

    def __init__(self, limit: int = ALL_BYTES) -> None:
        self.left = limit

    async def read(self, receive: Receive, headers: Mapping[str, str]) -> bytes:
        """The whole body of a request; :meth:`done` gives its place back.

        Raises:
            InvalidArgument: it is larger than any request.
            ResourceExhausted: too much is on its way already.
            Cancelled: the caller went away.
        """
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared[:20]) > bodies.BODY_BYTES:
            raise bodies.too_large()
        pieces, size, more, whole = [], 0, True, False
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Cancelled("the caller went away")
                piece = message.get("body", b"")
                assert isinstance(piece, bytes)
                size += len(piece)
                pieces.append(piece)
                more = bool(message.get("more_body", False))
                self.take(len(piece))
                if size > bodies.BODY_BYTES:
                    raise bodies.too_large()
            whole = True
        finally:
            if not whole:
                self.done(size)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def take(self, size: int) -> None:
        """Count bytes in.

        Raises:
            ResourceExhausted: there are too many; they are counted all the same.
        """
        self.left -= size
        if self.left < 0:
            raise ResourceExhausted("too many bytes at once; back off and retry", reason="OVERLOAD", retry_after=0.5)

    def done(self, size: int) -> None:
        """A body of this size is not needed any more."""
        self.left += size


class Heavy:
    """Runs work inline where it is little, and otherwise on a thread of its own, a few at once."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "http")

    async def run(self, size: int, work: Callable[[], T]) -> T:
        """What `work` gives; `size` is the number of bytes that it reads or writes."""
        if size <= INLINE_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Take no more work."""
        self._threads.shutdown(wait=False, cancel_futures=True)
