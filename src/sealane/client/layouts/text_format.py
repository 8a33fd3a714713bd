"""Protobuf's text format (protobuf.dev/reference/protobuf/textformat-spec) without descriptors, as ``config.pbtxt`` is.

A reader that knows no message keeps every field, so what is in a file and is not understood can be told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sealane.errors import InvalidArgument

MAX_DEPTH = 32
_TOKEN = re.compile(
    r"""(?P<space>(?:\s|\#[^\n]*)+)
    |(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<number>-?(?:0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?[fF]?|inf(?:inity)?\b|nan\b))
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>[{}<>\[\]:,;])""",
    re.VERBOSE | re.ASCII,
)
_ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_PLAIN = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
_CLOSING = {"{": "}", "<": ">"}


class Word(str):
    """An identifier: a value of an enum, ``true`` or ``false``."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Message:
    """Fields by name, each with its values in their order."""

    fields: Mapping[str, list[Value]]


Value = bytes | int | float | Word | Message
Scalar = bytes | int | float | Word


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int


def parse(text: str) -> Message:
    """The message of a text.

    Raises:
        InvalidArgument: no text format; the line is told (TEXT_FORMAT).
    """
    return _Parser(list(_tokens(text))).whole()


def dump(fields: Mapping[str, list[Value]], indent: str = "") -> str:
    """A message as text, fields in the order given."""
    lines = []
    for name, values in fields.items():
        for value in values:
            if isinstance(value, Message):
                lines.append(f"{indent}{name} {{\n{dump(value.fields, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar(value)}\n")
    return "".join(lines)


def _scalar(value: Scalar) -> str:
    if isinstance(value, bytes):
        return '"' + "".join(_escaped(byte) for byte in value) + '"'
    return str(value)


def _escaped(byte: int) -> str:
    return chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}"


def _tokens(text: str) -> Iterator[_Token]:
    at, line = 0, 1
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _wrong(line, f"{text[at : at + 10]!r} is not understood")
        if found.lastgroup != "space":
            yield _Token(str(found.lastgroup), found[0], line)
        line += found[0].count("\n")
        at = found.end()
    yield _Token("end", "", line)


class _Parser:
    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def whole(self) -> Message:
        return self._message("", 0)

    def _message(self, closing: str, depth: int) -> Message:
        if depth > MAX_DEPTH:
            raise _wrong(self._next.line, "messages are nested too deeply")
        fields: dict[str, list[Value]] = {}
        while self._next.text != closing or (not closing and self._next.kind != "end"):
            name = self._take()
            # Numbers such as inf and nan are names of fields too.
            if not re.fullmatch(r"[A-Za-z_]\w*", name.text, re.ASCII):
                raise _wrong(name.line, f"a field's name is expected and not {name.text!r}")
            colon = self._skip(":")
            values = fields.setdefault(name.text, [])
            if self._skip("["):
                values += self._list(depth)
            else:
                values.append(self._value(depth, scalar=colon))
            self._skip(",", ";")
        self._take()
        return Message(fields)

    def _list(self, depth: int) -> Iterator[Value]:
        if self._skip("]"):
            return
        while True:
            yield self._value(depth, scalar=True)
            if self._skip("]"):
                return
            if not self._skip(","):
                raise _wrong(self._next.line, f"a comma or ] is expected and not {self._next.text!r}")

    def _value(self, depth: int, *, scalar: bool) -> Value:
        token = self._take()
        if token.kind == "sign" and token.text in _CLOSING:
            return self._message(_CLOSING[token.text], depth + 1)
        if not scalar:
            raise _wrong(token.line, f"a colon or a message is expected and not {token.text!r}")
        if token.kind == "text":
            parts = [_unescaped(token)]
            while self._next.kind == "text":
                parts.append(_unescaped(self._take()))
            return b"".join(parts)
        if token.kind == "number":
            return _number(token)
        if token.kind == "word":
            return Word(token.text)
        raise _wrong(token.line, f"a value is expected and not {token.text!r}")

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._next
        self._at += token.kind != "end"
        return token

    def _skip(self, *signs: str) -> bool:
        if self._next.kind == "sign" and self._next.text in signs:
            self._at += 1
            return True
        return False


def _number(token: _Token) -> int | float:
    text = token.text
    if re.fullmatch(r"-?0[xX][0-9a-fA-F]+", text):
        return int(text, 16)
    if re.fullmatch(r"-?0[0-7]+", text):
        return int(text, 8)
    if re.fullmatch(r"-?(0|[1-9][0-9]*)", text):
        return int(text)
    try:
        if re.fullmatch(r"-?[0-9]+", text):
            raise ValueError("an octal number with other digits")
        return float(text if text.lstrip("-").startswith(("inf", "nan")) else text.rstrip("fF"))
    except ValueError:
        raise _wrong(token.line, f"{text!r} is no number") from None


def _unescaped(token: _Token) -> bytes:
    def one(found: re.Match[bytes]) -> bytes:
        octal, hexadecimal, short, long, plain = found.groups()
        if octal or hexadecimal:
            return bytes([int(octal, 8) & 0xFF if octal else int(hexadecimal, 16)])
        if short or long:
            try:
                return chr(int(short or long, 16)).encode()
            except (ValueError, OverflowError, UnicodeEncodeError):
                raise _wrong(token.line, "an escape names no character") from None
        return _PLAIN.get(plain, plain)

    return _ESCAPE.sub(one, token.text[1:-1].encode())


def _wrong(line: int, why: str) -> InvalidArgument:
    return InvalidArgument(f"line {line}: {why}; correct the file", reason="TEXT_FORMAT", line=str(line))
