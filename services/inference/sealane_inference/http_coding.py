"""Bodies on their way in and out: limits, compression, and heavy work off the event loop."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sealane.errors import Cancelled, InvalidArgument, ResourceExhausted
from sealane.rpc.limits import DATA_MESSAGE_BYTES

#: Largest body, as it comes and without its compression.
BODY_BYTES = DATA_MESSAGE_BYTES
#: Largest JSON. Its numbers take ten times as much memory while they are read; large tensors travel in binary.
JSON_BYTES = 16 * 1024 * 1024
#: Bodies of all requests together that are being read or worked on, and answers that are on their way.
ALL_BYTES = 512 * 1024 * 1024
#: More is (de)compressed by a thread, so many at once, and JSON of more is read and written by another process.
INLINE_BYTES = 64 * 1024
THREADS = 2
#: Smaller answers are not compressed.
COMPRESS_BYTES = 1024
_WINDOW = {"gzip": 31, "deflate": 15}
_PIECE = 64 * 1024

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
        if declared.isdigit() and int(declared[:20]) > BODY_BYTES:
            raise too_large()
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
                if size > BODY_BYTES:
                    raise too_large()
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


def too_large() -> InvalidArgument:
    """The refusal of a body above the limit."""
    return InvalidArgument(
        f"the request is larger than {BODY_BYTES} bytes; send fewer rows a call", reason="REQUEST_TOO_LARGE"
    )


def coding_of(headers: Mapping[str, str]) -> str:
    """How the body is compressed; empty if it is not.

    Raises:
        InvalidArgument: in a way that is not known here.
    """
    coding = headers.get("content-encoding", "").strip().lower()
    if coding in ("", "identity"):
        return ""
    if coding not in _WINDOW:
        raise InvalidArgument(
            "Unsupported compression type; send gzip, deflate or no compression", reason="CONTENT_ENCODING"
        )
    return coding


def inflate(body: bytes, coding: str) -> bytes:
    """A body without its compression; the limit holds for what comes out.

    Raises:
        InvalidArgument: not compressed so, cut off, or larger than any request.
    """
    reader = zlib.decompressobj(_WINDOW[coding])
    pieces, size = [], 0
    try:
        for start in range(0, len(body), _PIECE):
            piece = reader.decompress(body[start : start + _PIECE], BODY_BYTES - size + 1)
            size += len(piece)
            if size > BODY_BYTES:
                raise too_large()
            pieces.append(piece)
    except zlib.error:
        raise _malformed(coding) from None
    if not reader.eof or reader.unused_data:
        raise _malformed(coding)
    return b"".join(pieces)


def wanted_coding(headers: Mapping[str, str], size: int) -> str:
    """How to compress an answer of `size` bytes; empty for not at all."""
    if size < COMPRESS_BYTES:
        return ""
    for item in headers.get("accept-encoding", "").lower().split(","):
        name, _, quality = item.strip().partition(";")
        if name.strip() in _WINDOW and quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            return name.strip()
    return ""


def deflate(pieces: Sequence[bytes], coding: str) -> bytes:
    """An answer, compressed: quickly, since tensors do not get much smaller by more effort."""
    writer = zlib.compressobj(1, zlib.DEFLATED, _WINDOW[coding])
    return b"".join([*(writer.compress(piece) for piece in pieces), writer.flush()])


def _malformed(coding: str) -> InvalidArgument:
    return InvalidArgument(
        f"the body is no whole {coding}; compress it as content-encoding says", reason="MALFORMED_REQUEST"
    )
