"""Which of the envelopes made ahead are used, and how often."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest

from sealane.client import envelopes_ahead
from sealane.client.envelopes_ahead import EnvelopesAhead
from sealane.security.envelope import Prepared


def envelope(name: str) -> Prepared:
    return Prepared(name.encode(), 1, b"", b"", {})


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def made(ahead: EnvelopesAhead, kind: str, name: str = "first") -> None:
    done = threading.Event()

    def make() -> Prepared:
        done.set()
        return envelope(name)

    ahead.make(kind, make)
    assert done.wait(10)
    until(lambda: kind in ahead._kept and kind not in ahead._making)


def test_each_is_given_out_once() -> None:
    ahead = EnvelopesAhead()
    assert ahead.take("a") is None
    made(ahead, "a")
    barrier, taken = threading.Barrier(8), list[Prepared | None]()

    def take() -> None:
        barrier.wait()
        taken.append(ahead.take("a"))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(item.head for item in taken if item) == [b"first"]


def test_one_kind_is_not_given_for_another() -> None:
    ahead = EnvelopesAhead()
    made(ahead, "a")
    assert ahead.take("b") is None
    assert ahead.take("a") is not None


def test_one_is_made_at_a_time_and_none_where_one_is_kept() -> None:
    ahead, go, calls = EnvelopesAhead(), threading.Event(), list[str]()

    def make() -> Prepared:
        calls.append("called")
        assert go.wait(10)
        return envelope("first")

    ahead.make("a", make)
    ahead.make("a", make)  # one is being made
    go.set()
    until(lambda: "a" in ahead._kept and "a" not in ahead._making)
    ahead.make("a", make)  # one is kept
    made(ahead, "b")
    assert calls == ["called"]


def test_an_old_one_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = EnvelopesAhead()
    made(ahead, "a")
    made(ahead, "b")
    monkeypatch.setattr(envelopes_ahead, "FRESH_SECONDS", 0.0)
    assert ahead.take("a") is None
    made(ahead, "c")
    assert "b" not in ahead._kept, "its secrets lie about"


def test_one_that_fails_leaves_room_for_the_next() -> None:
    ahead = EnvelopesAhead()

    def make() -> Prepared:
        raise ValueError

    ahead.make("a", make)
    until(lambda: "a" not in ahead._making)
    assert ahead.take("a") is None
    made(ahead, "a", "second")
    assert ahead.take("a") == envelope("second")


def test_a_process_that_was_forked_off_does_not_use_its_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, parent = EnvelopesAhead(), os.getpid()
    made(ahead, "a")
    monkeypatch.setattr("os.getpid", lambda: parent + 1)
    assert ahead.take("a") is None
    made(ahead, "a", "second")
    assert ahead.take("a") == envelope("second")


def test_one_is_not_used_after_the_machine_slept(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = EnvelopesAhead()
    made(ahead, "a")
    later = time.time() + 3600
    monkeypatch.setattr("time.time", lambda: later)
    assert ahead.take("a") is None
