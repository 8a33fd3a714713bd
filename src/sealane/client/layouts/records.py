"""TFRecord files of ``PredictionLog`` messages: the requests that TensorFlow Serving runs before a version serves.

A record is u64 length, u32 masked CRC-32C of the length, the message, u32 masked CRC-32C of the message, little
endian (tensorflow.org/tutorials/load_data/tfrecord).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from google.protobuf.message import DecodeError

from sealane.client.layouts.folders import invalid
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import InvalidArgument
from sealane.protocols import peek, tfserving, wire
from sealane.protocols.call import InferenceCall

#: Where TensorFlow Serving looks for them in a version's folder.
FILE = "assets.extra/tf_serving_warmup_requests"
MAX_RECORDS = 1000
MAX_BYTES = 64 << 20
_PREDICT_LOG, _REQUEST = 6, 1
_KINDS = {2: "classify", 3: "regress", 4: "multi-inference", 5: "session run", 7: "streamed predict"}
_MASK_DELTA = 0xA282EAD8
_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected (RFC 3720, B.4)


def _table() -> tuple[int, ...]:
    made = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        made.append(value)
    return tuple(made)


_TABLE = _table()


def masked_crc(data: bytes) -> int:
    """CRC-32C, turned and shifted so that a checksum of checksums is not fooled."""
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return (crc >> 15 | crc << 17 & 0xFFFFFFFF) + _MASK_DELTA & 0xFFFFFFFF


def split(content: bytes) -> Iterator[bytes]:
    """The messages of a TFRecord file.

    Raises:
        InvalidArgument: it is too long or cut, has too many records, or a checksum is wrong (WARM_UP_INVALID).
    """
    if len(content) > MAX_BYTES:
        raise _broken(f"it has more than {MAX_BYTES} bytes")
    at = count = 0
    while at < len(content):
        count += 1
        if count > MAX_RECORDS:
            raise _broken(f"it has more than {MAX_RECORDS} records")
        head, rest = content[at : at + 12], len(content) - at - 16
        size = int.from_bytes(head[:8], "little")
        if rest < 0 or size > rest:
            raise _broken(f"record {count} is cut")
        data, tail = content[at + 12 : at + 12 + size], content[at + 12 + size : at + 16 + size]
        if _u32(head[8:]) != masked_crc(head[:8]) or _u32(tail) != masked_crc(data):
            raise _broken(f"the checksum of record {count} is wrong")
        yield data
        at += 16 + size


def join(messages: Iterable[bytes]) -> bytes:
    """A TFRecord file of messages."""
    made = bytearray()
    for data in messages:
        head = struct.pack("<Q", len(data))
        made += head + struct.pack("<I", masked_crc(head)) + data + struct.pack("<I", masked_crc(data))
    return bytes(made)


def read(content: bytes) -> tuple[list[InferenceCall], tuple[str, ...]]:
    """The Predict requests of a file, and the kinds of other requests in it.

    Raises:
        InvalidArgument: as :func:`split`, or a message is no request.
    """
    calls, others = [], set()
    for place, message in enumerate(split(content), 1):
        try:
            for field in peek.fields(message, 0, len(message)):
                if field.number == _PREDICT_LOG:
                    log = message[field.start : field.end]
                    calls += [_request(log[part.start : part.end]) for part in _requests(log)]
                elif field.number in _KINDS:
                    others.add(_KINDS[field.number])
        except (DecodeError, InvalidArgument, struct.error, IndexError) as error:
            raise _broken(f"record {place} is no PredictionLog that can be read ({str(error)[:200]})") from error
    return calls, tuple(sorted(others))


def predict_log(request: tfs.PredictRequest) -> bytes:
    """A ``PredictionLog`` with a Predict request."""
    body = request.SerializeToString()
    log = wire.length_delimited(_REQUEST, len(body)) + body
    return wire.length_delimited(_PREDICT_LOG, len(log)) + log


def _requests(log: bytes) -> list[peek.Field]:
    return [part for part in peek.fields(log, 0, len(log)) if part.number == _REQUEST]


def _request(body: bytes) -> InferenceCall:
    return tfserving.decode_request(tfs.PredictRequest.FromString(body))


def _u32(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _broken(why: str) -> InvalidArgument:
    error = invalid(f"{FILE} is no TFRecord file of recorded requests: {why}; record it again or take it away")
    return InvalidArgument(error.message, reason="WARM_UP_INVALID", field=FILE)
