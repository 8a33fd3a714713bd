"""Typed reading of a ``config.pbtxt``, which remembers what nobody asked for."""

from __future__ import annotations

from collections.abc import Iterator

from sealane.client.layouts import folders
from sealane.client.layouts.text_format import Message, Value, Word
from sealane.compat.openinference.v2 import model_config_pb2
from sealane.errors import InvalidArgument


class Fields:
    """A message of the file.

    Args:
        message: as it was parsed.
        path: where it stands, for error messages.
    """

    def __init__(self, message: Message, path: str = "") -> None:
        self._values = message.fields
        self._path = path
        self._asked: set[str] = set()
        self._parts: list[Fields] = []

    def unread(self) -> Iterator[str]:
        """Paths of the fields that nobody asked for."""
        for name in self._values:
            if name not in self._asked:
                yield self._path + name
        for part in self._parts:
            yield from part.unread()

    def has(self, name: str) -> bool:
        """Whether the field is set."""
        return name in self._values

    def ignore(self, *names: str) -> None:
        """Take fields for read: they say nothing that is missed."""
        self._asked.update(names)

    def text(self, name: str) -> str:
        """A string; empty where it is not set."""
        value = self._last(name)
        if value is None:
            return ""
        if not isinstance(value, bytes):
            raise self._wrong(name, "a string")
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise self._wrong(name, "text in UTF-8") from None

    def number(self, name: str) -> int:
        """A whole number; 0 where it is not set."""
        value = self._last(name)
        if value is None:
            return 0
        if type(value) is not int:
            raise self._wrong(name, "a whole number")
        return value

    def numbers(self, name: str) -> list[int]:
        """Whole numbers."""
        self._asked.add(name)
        values = self._values.get(name, [])
        found = [value for value in values if type(value) is int]
        if len(found) < len(values):
            raise self._wrong(name, "whole numbers")
        return found

    def reals(self, name: str) -> list[float]:
        """Numbers."""
        self._asked.add(name)
        values = self._values.get(name, [])
        found = [float(value) for value in values if isinstance(value, int | float)]
        if len(found) < len(values):
            raise self._wrong(name, "numbers")
        return found

    def flag(self, name: str) -> bool:
        """A truth value; False where it is not set."""
        value = self._last(name)
        if value in (None, "false", "False", "f", 0):
            return False
        if value in ("true", "True", "t", 1):
            return True
        raise self._wrong(name, "true or false")

    def word(self, name: str, default: str = "") -> str:
        """A value of an enum by its name."""
        value = self._last(name)
        if value is None:
            return default
        if not isinstance(value, Word):
            raise self._wrong(name, "the name of a value")
        return str(value)

    def datatype(self, name: str) -> str:
        """An element type in the names of the Open Inference Protocol."""
        value = self._last(name)
        if type(value) is int:
            value = Word(next((word for word, number in model_config_pb2.DataType.items() if number == value), ""))
        known = model_config_pb2.DataType.keys()
        if not isinstance(value, Word) or value not in known or value == "TYPE_INVALID":
            raise self._wrong(name, "an element type such as TYPE_FP32")
        return "BYTES" if value == "TYPE_STRING" else value.removeprefix("TYPE_")

    def message(self, name: str) -> Fields | None:
        """A message; None where it is not set."""
        found = self.messages(name)
        return found[-1] if found else None

    def messages(self, name: str) -> list[Fields]:
        """Messages."""
        self._asked.add(name)
        values = self._values.get(name, [])
        made = []
        for place, value in enumerate(values):
            if not isinstance(value, Message):
                raise self._wrong(name, "a message")
            where = f"{self._path}{name}[{place}]." if len(values) > 1 else f"{self._path}{name}."
            made.append(Fields(value, where))
        self._parts += made
        return made

    def entries(self, name: str) -> dict[str, Fields]:
        """A map from strings to messages."""
        return {entry.text("key"): entry.message("value") or Fields(Message({})) for entry in self.messages(name)}

    def _last(self, name: str) -> Value | None:
        self._asked.add(name)
        values = self._values.get(name)
        return values[-1] if values else None

    def _wrong(self, name: str, wanted: str) -> InvalidArgument:
        return folders.invalid(f"{self._path}{name} of config.pbtxt has to be {wanted}; correct it")
