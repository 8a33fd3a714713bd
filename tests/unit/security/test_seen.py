"""The memory of sealed requests: bounded, and nothing is forgotten while it could run twice."""

from __future__ import annotations

import os

import pytest

from sealane.clock import ManualClock
from sealane.errors import ResourceExhausted
from sealane.security.seen import KEEP_SECONDS, SeenRequests

NOW = 1_800_000_000_000


def test_an_id_is_new_once() -> None:
    seen = SeenRequests(ManualClock())
    assert seen.add(b"a", "p", NOW)
    assert not seen.add(b"a", "p", NOW)
    assert not seen.add(b"a", "q", NOW), "whoever sends it"


def test_a_full_memory_refuses_and_forgets_nothing() -> None:
    clock = ManualClock()
    seen = SeenRequests(clock, capacity=1000, project_capacity=1000)
    ids = [os.urandom(16) for _ in range(1000)]
    for identifier in ids:
        assert seen.add(identifier, "p", NOW)
    for seconds in (0, 60, 59):
        clock.advance(seconds)
        with pytest.raises(ResourceExhausted) as told:
            seen.add(os.urandom(16), "p", NOW)
        assert told.value.reason == "REPLAY_MEMORY" and told.value.retry_after
        assert not any(seen.add(identifier, "p", NOW) for identifier in ids)
    clock.advance(told.value.retry_after + 0.1)
    assert seen.add(os.urandom(16), "p", NOW + 200_000), "it may be sent again when it says so"
    assert len(seen) == 1


def test_one_project_does_not_fill_the_memory_for_all() -> None:
    seen = SeenRequests(ManualClock(), capacity=10)
    for _ in range(5):
        seen.add(os.urandom(16), "greedy", NOW)
    with pytest.raises(ResourceExhausted):
        seen.add(os.urandom(16), "greedy", NOW)
    assert seen.add(os.urandom(16), "other", NOW)


def test_what_a_clock_that_was_set_back_would_let_in_again_was_not_forgotten_for_nothing() -> None:
    clock = ManualClock()
    seen = SeenRequests(clock)
    assert seen.add(b"a", "p", NOW)
    clock.advance(2 * KEEP_SECONDS)
    assert seen.add(b"b", "p", NOW + 240_000)
    assert not seen.add(b"a", "p", NOW), "its id is forgotten, and its time is remembered"
    assert seen.add(b"c", "p", NOW + 1)
