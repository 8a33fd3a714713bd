"""Bodies of requests and answers: how large they may be, and their compression."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

from sealane.errors import InvalidArgument
from sealane.rpc.limits import DATA_MESSAGE_BYTES

#: Largest body, as it comes and without its compression.
BODY_BYTES = DATA_MESSAGE_BYTES
#: Largest JSON. Its numbers take ten times as much memory while they are read; large tensors travel in binary.
JSON_BYTES = 16 * 1024 * 1024
#: Smaller answers are not compressed.
COMPRESS_BYTES = 1024
_WINDOW = {"gzip": 31, "deflate": 15}
_PIECE = 64 * 1024


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
