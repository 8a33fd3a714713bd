"""Errors keep their meaning over the wire."""

from __future__ import annotations

import pytest

from sealane import errors
from sealane.rpc.status import CODE_OF, from_status, to_status, translate


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
