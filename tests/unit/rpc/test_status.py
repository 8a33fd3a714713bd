"""Errors keep their meaning over the wire."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest

from sealane import errors
from sealane.rpc.status import CODE_OF, MESSAGE_BYTES, from_code, from_status, to_status, translate
from sealane.rpc.transport import code_of, trailers_of


@pytest.mark.parametrize("kind", sorted(errors.BY_KIND))
def test_an_error_survives_the_round_trip(kind: str) -> None:
    sent = errors.BY_KIND[kind]("do this next", reason="WHY", field="a.b", retry_after=1.5, constraint="residency")
    got = from_status(to_status(sent, "r-1"))
    assert type(got) is errors.BY_KIND[kind]
    assert (got.message, got.reason, got.field, got.retry_after) == ("do this next", "WHY", "a.b", 1.5)
    assert got.metadata == {"constraint": "residency", "request_id": "r-1"}


def test_every_kind_has_a_code() -> None:
    assert set(CODE_OF) == set(errors.BY_KIND)


def test_what_is_not_ours_says_nothing() -> None:
    failure = translate(ValueError("password=hunter2"), "r-2")
    assert failure.kind == "INTERNAL" and "hunter2" not in failure.message
    assert translate(TimeoutError(), "r").kind == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("name", ["a" * 100_000, "%" * 100_000, "\N{GRINNING FACE}" * 100_000, "\n" * 3000])
def test_whatever_an_error_quotes_its_trailers_stay_below_what_clients_take(name: str) -> None:
    facts = {f"fact_{index}": name for index in range(50)}
    sent = errors.InvalidArgument(f"'{name}' is unknown; list the models", reason="R" * 5000, field=name, **facts)
    failure = translate(sent, "r-3")
    trailers = trailers_of(failure, name)
    size = len(quote(failure.message)) + sum(len(key) + 32 for key, _ in trailers)
    size += sum(len(base64.b64encode(value)) for _, value in trailers if isinstance(value, bytes))
    assert size < 8192
    got = from_code(code_of(failure), failure.message, next(v for _, v in trailers if isinstance(v, bytes)))
    assert got.kind == "INVALID_ARGUMENT"
    assert got.message.startswith("'" + name[:50]) and got.message.endswith("is unknown; list the models")
    assert got.field.startswith(name[:20])


def test_what_is_short_enough_is_told_as_it_is() -> None:
    for text in ("", "model 'm\N{LATIN SMALL LETTER E WITH ACUTE}' is unknown", "x" * MESSAGE_BYTES):
        assert translate(errors.NotFound(text), "r").message == text
