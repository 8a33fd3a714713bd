"""Protobuf's text format: read as protobuf reads it, written so that it reads the same, refused with the line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealane.client.layouts.text_format import Message, Value, Word, dump, parse
from sealane.client.layouts.triton_fields import Fields
from sealane.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ('a: 1 b: -2, c: "x"; d: TYPE_FP32', {"a": [1], "b": [-2], "c": [b"x"], "d": [Word("TYPE_FP32")]}),
        ("a: 0x1F a: 017 a: 1.5f a: -inf a: 2e3", {"a": [31, 15, 1.5, float("-inf"), 2000.0]}),
        ("a: [1, 2] a: 3 b: []", {"a": [1, 2, 3], "b": []}),
        ("m { x: 1 } m: < x: 2 > m [{ x: 3 }, {}]", {"m": [Message({"x": [n]}) for n in (1, 2, 3)] + [Message({})]}),
        (r"""s: "a\n\"" 'b\101\x42' "\u00e9" """, {"s": ['a\n"bAB\u00e9'.encode()]}),
        ("true: true # said\ninf: inf", {"true": [Word("true")], "inf": [float("inf")]}),
    ],
)
def test_what_protobuf_allows_is_read(text: str, fields: dict[str, list[Value]]) -> None:
    assert parse(text) == Message(fields)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb", 2),
        ("a 1", 1),
        ("m {\n x: 1\n", 3),
        ("m { x: 1 >", 1),
        ("}", 1),
        ("a: [1, 2", 1),
        ("a: [1 2]", 1),
        ('a: "open\n"', 1),
        ("a: $", 1),
        ("a: 08", 1),
        ("[ext.name]: 1", 1),
        ('a: "\\uD800"', 1),
        ("m {" * 100, 1),
    ],
)
def test_what_is_none_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(text)
    assert (caught.value.reason, caught.value.metadata["line"]) == ("TEXT_FORMAT", str(line))


names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
scalars = st.one_of(
    st.binary(max_size=20),
    st.integers(-(2**63), 2**64),
    st.floats(allow_nan=False),
    st.sampled_from([Word("TYPE_FP32"), Word("true")]),
)
messages = st.recursive(
    st.dictionaries(names, st.lists(scalars, min_size=1, max_size=3), max_size=4).map(Message),
    lambda inner: st.dictionaries(names, st.lists(st.one_of(inner, scalars), min_size=1, max_size=3), max_size=3).map(
        Message
    ),
    max_leaves=12,
)


@settings(deadline=None)  # a busy machine is no failure
@given(messages)
def test_what_is_written_reads_the_same(message: Message) -> None:
    assert parse(dump(message.fields)) == message


@given(st.text(max_size=60))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    try:
        parse(text)
    except InvalidArgument as error:
        assert error.reason == "TEXT_FORMAT"


@pytest.mark.parametrize(
    "act",
    [
        lambda fields: fields.text("number"),
        lambda fields: fields.number("text"),
        lambda fields: fields.number("word"),
        lambda fields: fields.numbers("text"),
        lambda fields: fields.reals("word"),
        lambda fields: fields.flag("text"),
        lambda fields: fields.word("number"),
        lambda fields: fields.datatype("word"),
        lambda fields: fields.messages("number"),
    ],
)
def test_a_field_of_another_kind_is_refused_with_its_path(act: object) -> None:
    fields = Fields(parse('m { text: "x" number: 1 word: SOME }'))
    (inner,) = fields.messages("m")
    with pytest.raises(InvalidArgument, match=r"^m\.\w+ of config\.pbtxt has to be"):
        act(inner)  # type: ignore[operator]


def test_what_nobody_asked_for_is_known() -> None:
    fields = Fields(parse("a: 1 b { c: 1 d: 2 } b { e: 3 }"))
    fields.number("a")
    for part in fields.messages("b"):
        part.number("c")
    assert list(fields.unread()) == ["b[0].d", "b[1].e"]
