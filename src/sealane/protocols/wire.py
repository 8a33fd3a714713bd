"""The little of protobuf's encoding that is written by hand, so that tensors are not copied into messages first."""

from __future__ import annotations

_LENGTH = 2


def length_delimited(number: int, size: int) -> bytes:
    """What stands before the `size` bytes of field `number`."""
    return varint(number << 3 | _LENGTH) + varint(size)


def varint(value: int) -> bytes:
    """A number in as few bytes as it takes."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
