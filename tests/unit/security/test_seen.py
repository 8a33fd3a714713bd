"""The memory of sealed requests: bounded, and nothing is forgotten while it could run twice."""

from __future__ import annotations

import functools
import os
from typing import Protocol

import pytest

from sealane.clock import Clock, ManualClock
from sealane.errors import ResourceExhausted
from sealane.native import library
from sealane.security import suites
from sealane.security.native_opening import NativeMemory
from sealane.security.seen import CAPACITY, KEEP_SECONDS, SeenRequests

NOW = 1_800_000_000_000


A, B, C = (bytes([number]) * 16 for number in range(3))


class MemoryOf(Protocol):
    """Makes a memory."""

    def __call__(self, clock: Clock, *, capacity: int = CAPACITY, project_capacity: int | None = None) -> Memory: ...


class Memory(Protocol):
    """In Python, or in the native library."""

    def __len__(self) -> int: ...

    def add(self, request_id: bytes, project: str, issued_at_ms: int) -> bool: ...


@pytest.fixture(params=["python", "native"])
def memory(request: pytest.FixtureRequest) -> MemoryOf:
    if request.param == "python":
        return SeenRequests
    if library is None:
        pytest.skip("the native library is not installed: make native needs Rust")
    return functools.partial(NativeMemory, suites.generate(suites.X25519))


def test_an_id_is_new_once(memory: MemoryOf) -> None:
    seen = memory(ManualClock())
    assert seen.add(A, "p", NOW)
    assert not seen.add(A, "p", NOW)
    assert not seen.add(A, "q", NOW), "whoever sends it"


def test_a_full_memory_refuses_and_forgets_nothing(memory: MemoryOf) -> None:
    clock = ManualClock()
    seen = memory(clock, capacity=1000, project_capacity=1000)
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


def test_one_project_does_not_fill_the_memory_for_all(memory: MemoryOf) -> None:
    seen = memory(ManualClock(), capacity=10)
    for _ in range(5):
        seen.add(os.urandom(16), "greedy", NOW)
    with pytest.raises(ResourceExhausted):
        seen.add(os.urandom(16), "greedy", NOW)
    assert seen.add(os.urandom(16), "other", NOW)


def test_what_a_clock_that_was_set_back_would_let_in_again_was_not_forgotten_for_nothing(memory: MemoryOf) -> None:
    clock = ManualClock()
    seen = memory(clock)
    assert seen.add(A, "p", NOW)
    clock.advance(2 * KEEP_SECONDS)
    assert seen.add(B, "p", NOW + 240_000)
    assert not seen.add(A, "p", NOW), "its id is forgotten, and its time is remembered"
    assert seen.add(C, "p", NOW + 1)
