"""A project that floods a worker leaves room for the others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sealane.errors import ResourceExhausted
from sealane.rpc.call import Identity
from sealane.rpc.fairness import FairShare


def call(project: str) -> SimpleNamespace:
    """A call as far as it matters here."""
    return SimpleNamespace(identity=Identity("me", project) if project is not None else None)


def filled(share: FairShare, project: str, most: int = 100) -> int:
    """How many calls of a project are let in."""
    for count in range(most):
        try:
            share.before(call(project))  # type: ignore[arg-type]
        except ResourceExhausted as refused:
            assert refused.reason == "FAIR_SHARE"
            assert refused.retry_after
            return count
    return most


def test_a_project_alone_has_nearly_everything_and_leaves_room_for_the_next() -> None:
    share = FairShare(48)
    assert filled(share, "a") == 44
    assert filled(share, "b") == 24, "the next one gets its half at once"


def test_the_one_that_flooded_gets_no_more_until_it_is_down_to_its_share() -> None:
    share = FairShare(48)
    filled(share, "a")
    share.before(call("b"))  # type: ignore[arg-type]
    for _ in range(20):
        share.after(call("a"), None)  # type: ignore[arg-type]
        with pytest.raises(ResourceExhausted):
            share.before(call("a"))  # type: ignore[arg-type]
    share.after(call("a"), None)  # type: ignore[arg-type]
    share.before(call("a"))  # type: ignore[arg-type]


def test_who_leaves_gives_its_share_back() -> None:
    share = FairShare(12)
    for project in ("a", "b", "c"):
        assert filled(share, project, 4) == 4
    for _ in range(4):
        share.after(call("b"), None)  # type: ignore[arg-type]
    assert filled(share, "a") == 2
    assert filled(FairShare(2), "") == 100, "peers and public calls have no project"
