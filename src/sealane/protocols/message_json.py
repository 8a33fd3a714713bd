"""Messages of the foreign protocols as the JSON objects that their HTTP forms have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from sealane.protocols.json_values import Json


def proto3(message: Message) -> dict[str, Json]:
    """By the rules of proto3: every field, 64-bit numbers as text. TensorFlow Serving has it so."""
    told: dict[str, Json] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return told


def plain(message: Message) -> dict[str, Json]:
    """Every field, all numbers as numbers. Triton has it so."""
    told: dict[str, Json] = {}
    for descriptor in cast(Sequence[FieldDescriptor], message.DESCRIPTOR.fields):
        if descriptor.has_presence and not message.HasField(descriptor.name):
            continue
        value = getattr(message, descriptor.name)
        if _is_map(descriptor):
            values = cast(Descriptor, descriptor.message_type).fields_by_name["value"]
            told[descriptor.name] = {str(key): _value(values, value[key]) for key in value}
        elif descriptor.is_repeated:
            told[descriptor.name] = [_value(descriptor, item) for item in value]
        else:
            told[descriptor.name] = _value(descriptor, value)
    return told


def _is_map(descriptor: FieldDescriptor) -> bool:
    return descriptor.message_type is not None and bool(descriptor.message_type.GetOptions().map_entry)


def _value(descriptor: FieldDescriptor, value: Json) -> Json:
    if isinstance(value, Message):
        return plain(value)
    if descriptor.enum_type is not None and isinstance(value, int):
        known = descriptor.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
