"""SEAL-7: a million request ids, at about twice the rate that a worker runs."""

from __future__ import annotations

import multiprocessing
import os
import tracemalloc
from pathlib import Path

import pytest
from native_library import NEEDS_LIBRARY

from sealane.clock import ManualClock
from sealane.security import suites
from sealane.security.native_opening import NativeMemory
from sealane.security.seen import CAPACITY, KEEP_SECONDS, SeenRequests


def _traced() -> int:
    """Bytes that Python has asked for since this was first called."""
    if not tracemalloc.is_tracing():
        tracemalloc.start()
    return tracemalloc.get_traced_memory()[0]


def _resident() -> int:
    """Bytes of this process that are in memory: Python does not see what a library asks for."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _mib_of_a_full_memory() -> float:
    """What as many ids as may be kept take in the library."""
    seen = NativeMemory(suites.generate(suites.X25519), ManualClock(), project_capacity=CAPACITY)
    base = _resident()
    for _ in range(CAPACITY):
        assert seen.add(os.urandom(16), "p", 1)
    return (_resident() - base) / 2**20


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=NEEDS_LIBRARY)], ids=["python", "native"])
def test_a_million_ids_are_each_remembered_for_their_time_in_bounded_memory(native: bool) -> None:
    """At 1,900 ids a second, which is more than a worker runs; the figure of SEAL-7."""
    clock, rate, total = ManualClock(), 1900, 1_000_000
    seen: SeenRequests | NativeMemory = SeenRequests(clock, project_capacity=CAPACITY)
    if native:
        seen = NativeMemory(suites.generate(suites.X25519), clock, project_capacity=CAPACITY)
    sent: dict[bytes, float] = {}

    def ms() -> int:
        return int(clock.now() * 1000)

    forgotten_early = repeated_late = most = 0
    base = _traced()
    sample: list[bytes] = []
    for count in range(total):
        identifier = os.urandom(16)
        assert seen.add(identifier, "p", ms())
        if count % 100 == 0:
            sample.append(identifier)
            sent[identifier] = clock.monotonic()
        if count % rate == rate - 1:
            clock.advance(1.0)
            most = max(most, len(seen))
            for old in sample[-400:]:
                if clock.monotonic() - sent[old] <= KEEP_SECONDS and seen.add(old, "p", ms()):
                    forgotten_early += 1
    for old in sample[: len(sample) // 2]:
        repeated_late += seen.add(old, "p", ms())
    grown = (_traced() - base) / 2**20
    tracemalloc.stop()
    if native:  # a process of its own: this one has memory to spare, of which it would be given some
        with multiprocessing.get_context("spawn").Pool(1) as process:
            grown = process.apply(_mib_of_a_full_memory)
        assert grown > 1, "sixteen bytes of each id at the least"
    where = "native" if native else "Python"
    print(
        f"figure: {where}: {total} ids at {rate} a second: {forgotten_early} forgotten within {KEEP_SECONDS:.0f} s, "
        f"{most} kept at most (bound {CAPACITY}), {grown:.0f} MiB"
    )
    assert forgotten_early == 0
    assert most <= CAPACITY and grown <= 64
    assert repeated_late == len(sample) // 2, "what can no longer open is forgotten"
