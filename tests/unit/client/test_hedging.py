"""Hedged calls: the second begins only when it is needed, and what is not needed is cancelled."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from sealane.client.hedging import hedge


class Failed(Exception):
    """Why a call failed."""


class Call:
    """A call that ends when the test says so."""

    def __init__(self) -> None:
        self.outcome: bytes | grpc.StatusCode | None = None
        self.cancelled = False
        self._callbacks: list[Callable[[object], None]] = []

    def end(self, outcome: bytes | grpc.StatusCode) -> Call:
        self.outcome = outcome
        for callback in self._callbacks:
            callback(self)
        return self

    def add_done_callback(self, callback: Callable[[object], None]) -> None:
        self._callbacks.append(callback)
        if self.outcome is not None:
            callback(self)

    def exception(self) -> Exception | None:
        return Failed(self.outcome) if isinstance(self.outcome, grpc.StatusCode) else None

    def result(self) -> bytes:
        assert isinstance(self.outcome, bytes)
        return self.outcome

    def code(self) -> grpc.StatusCode:
        return self.outcome if isinstance(self.outcome, grpc.StatusCode) else grpc.StatusCode.OK

    def cancel(self) -> None:
        self.cancelled = True


def never() -> Call:
    raise AssertionError("the second call is not needed")


AWAY, FINAL = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT


def test_a_quick_answer_needs_no_second_call() -> None:
    assert hedge(lambda: Call().end(b"one"), never, 10.0) == b"one"


def test_the_second_is_asked_when_the_first_is_slow_and_the_slow_one_is_cancelled() -> None:
    slow = Call()
    assert hedge(lambda: slow, lambda: Call().end(b"two"), 0.01) == b"two"
    assert slow.cancelled


def test_the_first_may_still_win() -> None:
    slow, second = Call(), Call()

    def begin() -> Call:
        slow.end(b"one")
        return second

    assert hedge(lambda: slow, begin, 0.01) == b"one"
    assert second.cancelled


def test_one_that_is_not_there_costs_no_waiting() -> None:
    assert hedge(lambda: Call().end(AWAY), lambda: Call().end(b"two"), 1e6) == b"two"


def test_a_final_failure_is_final() -> None:
    with pytest.raises(Failed):
        hedge(lambda: Call().end(FINAL), never, 10.0)
    slow = Call()
    with pytest.raises(Failed):
        hedge(lambda: slow, lambda: Call().end(FINAL), 0.01)
    assert slow.cancelled


def test_where_the_second_is_away_the_first_is_waited_for() -> None:
    slow = Call()

    def begin() -> Call:
        second = Call().end(AWAY)
        slow.end(b"one")
        return second

    assert hedge(lambda: slow, begin, 0.01) == b"one"


def test_where_both_are_away_the_last_failure_is_told() -> None:
    with pytest.raises(Failed):
        hedge(lambda: Call().end(AWAY), lambda: Call().end(AWAY), 10.0)
