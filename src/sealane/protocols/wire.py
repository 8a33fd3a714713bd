"""The little of protobuf's encoding that is written by hand, so that tensors are not copied into messages first."""

from __future__ import annotations

LENGTH_DELIMITED = 2
_FIXED = {1: 8, 5: 4}
#: Far more than any message that is split has; each one costs memory and time.
_FIELDS = 4096


def length_delimited(number: int, size: int) -> bytes:
    """What stands before the `size` bytes of field `number`."""
    return varint(number << 3 | LENGTH_DELIMITED) + varint(size)


def varint(value: int) -> bytes:
    """A number in as few bytes as it takes."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def split(body: bytes, number: int, most: int) -> tuple[bytes, list[memoryview]]:
    """A serialized message without the length-delimited field `number`, and that field's contents where they lie.

    Args:
        body: the message.
        number: of the field.
        most: times that the field may come.

    Raises:
        ValueError: it ends inside a field, or has too many; what else may be wrong with the rest is for its parser to
            find.
    """
    view, rest, found = memoryview(body), list[memoryview](), list[memoryview]()
    at, kept, end, fields = 0, 0, len(body), 0
    while at < end:
        fields += 1
        if fields > _FIELDS or len(found) > most:
            raise ValueError("too many fields")
        begun, tag = at, body[at]
        if tag < 0x80:  # most tags and lengths are of one byte, and a call costs more than all the rest here
            at += 1
        else:
            tag, at = _read(body, at)
        kind = tag & 7
        if kind == LENGTH_DELIMITED:
            size, content = _read(body, at)
            at = content + size
            if tag >> 3 == number and at <= end:
                rest.append(view[kept:begun])
                found.append(view[content:at])
                kept = at
        elif kind == 0:
            _, at = _read(body, at)
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise ValueError("a group, or no field at all")
    if at > end:
        raise ValueError("it ends inside a field")
    if len(found) > most:
        raise ValueError("too many fields")
    rest.append(view[kept:])
    return b"".join(rest), found


def _read(body: bytes, at: int) -> tuple[int, int]:
    """A varint, and where it ends."""
    if at < len(body) and body[at] < 0x80:  # most are of one byte
        return body[at], at + 1
    value = 0
    for index in range(10):
        if at + index >= len(body):
            break
        byte = body[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("a number that does not end")
