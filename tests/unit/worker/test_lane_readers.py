"""Readers in turn: everything is read in order, somebody always reads, and an end ends all of them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sealane.errors import Unavailable
from sealane_worker.lane_readers import READERS, Readers

Work = Callable[[], None]


class Source:
    """A stream that the test feeds."""

    def __init__(self) -> None:
        self.messages: queue.Queue[int | Exception | None] = queue.Queue()
        self.taken: list[int] = []
        self.reading = 0
        self.most = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.reading += 1
        self.most = max(self.most, self.reading)
        item = self.messages.get()
        self.reading -= 1
        if item is None:
            raise StopIteration
        if isinstance(item, Exception):
            raise item
        return item


def run(source: Source, pool: ThreadPoolExecutor, work: Callable[[int], list[Work]]) -> threading.Thread:
    def take(message: int) -> list[Work]:
        source.taken.append(message)
        return work(message)

    thread = threading.Thread(target=Readers(iter(source), pool, take).run)
    thread.start()
    return thread


def test_messages_are_taken_in_order_by_one_reader_at_a_time() -> None:
    source, done = Source(), []
    with ThreadPoolExecutor(4) as pool:
        thread = run(source, pool, lambda message: [lambda: done.append(message)])
        for number in range(500):
            source.messages.put(number)
        source.messages.put(None)
        thread.join(10)
        assert not thread.is_alive()
        until = time.monotonic() + 10
        while len(done) < 500:  # what was read last may be run after the stream has ended
            assert time.monotonic() < until, len(done)
            time.sleep(0.002)
    assert source.taken == list(range(500))
    assert sorted(done) == list(range(500))
    assert source.most == 1


def test_somebody_reads_on_however_many_calls_wait() -> None:
    source, go, begun = Source(), threading.Event(), []

    def wait(message: int) -> list[Work]:
        def work() -> None:
            begun.append(message)
            go.wait(10)

        return [work, work]

    with ThreadPoolExecutor(20) as pool:
        thread = run(source, pool, wait)
        for number in range(READERS + 5):
            source.messages.put(number)
        until = time.monotonic() + 10
        while len(begun) < 2 * (READERS + 5):
            assert time.monotonic() < until, begun
            time.sleep(0.002)
        go.set()
        source.messages.put(None)
        thread.join(10)


def test_a_broken_stream_is_told_at_once_though_a_call_runs_on() -> None:
    source, go, begun = Source(), threading.Event(), threading.Event()

    def wait(message: int) -> list[Work]:
        def work() -> None:
            begun.set()
            go.wait(10)

        return [work]

    told: list[Exception] = []

    def watch() -> None:
        try:
            Readers(iter(source), pool, wait).run()
        except Unavailable as error:
            told.append(error)

    with ThreadPoolExecutor(2) as pool:
        thread = threading.Thread(target=watch)
        thread.start()
        source.messages.put(1)
        assert begun.wait(10)
        source.messages.put(Unavailable("cut"))
        thread.join(10)
        assert [error.message for error in told] == ["cut"]
        go.set()


def test_a_message_that_cannot_be_taken_ends_the_stream() -> None:
    source = Source()

    def refuse(message: int) -> list[Work]:
        raise Unavailable("confused")

    with ThreadPoolExecutor(1) as pool:
        source.messages.put(1)
        with pytest.raises(Unavailable, match="confused"):
            Readers(iter(source), pool, refuse).run()


def test_work_that_fails_costs_no_reader() -> None:
    source, done = Source(), []

    def work(message: int) -> list[Work]:
        def fail() -> None:
            done.append(message)
            raise ValueError("a defect")

        return [fail]

    with ThreadPoolExecutor(4) as pool:
        thread = run(source, pool, work)
        for number in range(50):
            source.messages.put(number)
            until = time.monotonic() + 10
            while len(done) <= number:
                assert time.monotonic() < until, f"nobody reads after {number}"
                time.sleep(0.0005)
        source.messages.put(None)
        thread.join(10)
        assert not thread.is_alive()
