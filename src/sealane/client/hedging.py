"""Hedged calls: a second place is asked when the first is slow (Dean and Barroso, "The Tail at Scale", 2013). Pure."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable
from typing import Protocol

import grpc

#: Nobody is there, or somebody who stops: what is under way here is cancelled only after it was of use.
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class Begun(Protocol):
    """A call under way, as grpcio has it."""

    def add_done_callback(self, callback: Callable[[object], None]) -> None:
        """Have `callback` called when it has ended."""
        ...

    def exception(self) -> Exception | None:
        """Why it failed; None where it answered."""
        ...

    def result(self) -> bytes:
        """Its answer."""
        ...

    def code(self) -> grpc.StatusCode:
        """How it ended."""
        ...

    def cancel(self) -> object:
        """End it; nothing where it has ended."""
        ...


def hedge(
    first: Callable[[], Begun], second: Callable[[], Begun], after: float, may: Callable[[], bool] = lambda: True
) -> bytes:
    """The first good answer of two calls, of which the second begins only when it is needed; the other is cancelled.

    Args:
        first: begins a call.
        second: begins the same call at another place: when the first has said nothing for `after` seconds, or is not
            there.
        after: seconds.
        may: whether a second call may begin because the first is slow; one that is not there asks nobody.

    Raises:
        Exception: of the call that failed, where the other does not help: it is not there, or its failure is final.
    """
    ended: queue.SimpleQueue[Begun] = queue.SimpleQueue()
    begun: list[Begun] = []
    over: list[Begun] = []

    def begin(make: Callable[[], Begun]) -> None:
        call = make()
        begun.append(call)
        call.add_done_callback(lambda _: ended.put(call))

    def wait(seconds: float | None = None) -> Begun | None:
        with contextlib.suppress(queue.Empty):
            over.append(ended.get(timeout=seconds))
            return over[-1]
        return None

    try:
        begin(first)
        call = wait(after)
        if call is None:
            if may():
                begin(second)
            call = wait()
        while call is not None and (failure := call.exception()) is not None:
            if call.code() in _AWAY and len(begun) == 1:
                begin(second)
            if call.code() not in _AWAY or len(over) == len(begun):
                raise failure
            call = wait()
        assert call is not None  # without a limit in time there is always one
        return call.result()
    finally:
        for item in begun:
            item.cancel()
