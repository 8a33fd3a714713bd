"""Compressed bodies: what comes out is what went in, and never more than the limit."""

from __future__ import annotations

import gzip
import zlib

import pytest

from sealane.errors import InvalidArgument
from sealane.rest import bodies
from sealane.rest.bodies import coding_of, deflate, inflate, wanted_coding


@pytest.mark.parametrize("size", [0, 1, 1_000_000])
def test_compression_is_undone(size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    assert inflate(gzip.compress(body), "gzip") == inflate(zlib.compress(body), "deflate") == body
    for coding in ("gzip", "deflate"):
        assert inflate(deflate([body, body], coding), coding) == body + body


def test_a_bomb_is_refused_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_BYTES", 100_000)
    assert len(inflate(gzip.compress(b"\0" * 100_000), "gzip")) == 100_000
    for bomb in (gzip.compress(b"\0" * 100_001), gzip.compress(b"\0" * 50_000_000)):
        with pytest.raises(InvalidArgument) as caught:
            inflate(bomb, "gzip")
        assert caught.value.reason == "REQUEST_TOO_LARGE"


@pytest.mark.parametrize(
    ("accepted", "size", "coding"),
    [
        ("gzip", 5000, "gzip"),
        ("gzip", 50, ""),
        ("br, deflate;q=0.5, gzip", 5000, "deflate"),
        ("gzip;q=0, deflate", 5000, "deflate"),
        ("gzip; q=0", 5000, ""),
        ("identity", 5000, ""),
        ("", 5000, ""),
    ],
)
def test_an_answer_is_compressed_as_the_caller_reads_it(accepted: str, size: int, coding: str) -> None:
    assert wanted_coding({"accept-encoding": accepted}, size) == coding


def test_unknown_compression_is_refused() -> None:
    assert coding_of({}) == coding_of({"content-encoding": "identity"}) == ""
    assert coding_of({"content-encoding": "GZIP"}) == "gzip"
    with pytest.raises(InvalidArgument):
        coding_of({"content-encoding": "br"})
