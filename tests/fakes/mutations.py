"""Requests as a fuzzer makes them: messages with fields of every kind, and small damage to their bytes."""

from __future__ import annotations

import random

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

#: Names that are well formed, in a project of the caller and in another, and texts that are not.
TEXTS = (
    "projects/p",
    "projects/p/models/m/versions/1",
    "projects/default/models/digits",
    "projects/q",
    "x",
    "",
    "\x00é",
    "a" * 300,
)


def mutated(seed: bytes, dice: random.Random) -> bytes:
    """A seed with up to six damages; none at all is possible."""
    data = bytearray(seed)
    for _ in range(dice.randint(0, 6)):
        place = dice.randrange(len(data) + 1)
        action = dice.randrange(6)
        if action == 0 and place < len(data):
            data[place] ^= 1 << dice.randrange(8)
        elif action == 1:
            data[place:place] = dice.randbytes(dice.randint(1, 8))
        elif action == 2:
            del data[place : place + dice.randint(1, 8)]
        elif action == 3:
            data[place:place] = dice.choice((b"\xff" * 10, b"\x00", b"\x7f\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x0f"))
        elif action == 4:
            data += data[place:]
        else:
            data = data[:place]
    return bytes(data[:65_536])


def filled(message: Message, dice: random.Random, depth: int = 2) -> Message:
    """A request with fields of every kind, some of them names that are well formed."""
    for field in message.DESCRIPTOR.fields:
        if dice.random() < 0.2 or (field.message_type is not None and field.message_type.GetOptions().map_entry):
            continue
        if field.message_type is not None:
            if depth:
                inner = getattr(message, field.name)
                filled(inner.add() if field.is_repeated else inner, dice, depth - 1)
        elif field.is_repeated:
            getattr(message, field.name).append(_value(field, dice))
        else:
            setattr(message, field.name, _value(field, dice))
    return message


def _value(field: FieldDescriptor, dice: random.Random) -> object:
    if field.type == FieldDescriptor.TYPE_STRING:
        return dice.choice(TEXTS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return dice.randbytes(dice.randint(0, 40))
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return dice.choice((0.0, -1.5, float("nan"), float("inf")))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return True
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return dice.choice((0, 1, 77))
    return dice.choice((0, 1, 2**31 - 1))
