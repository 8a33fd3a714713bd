"""A caller that leaves: the wait ends at once, what waits is never run, and refusals come while the model runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hostile_box import ask, find_hostile, say, spec_of

from sealane.errors import Cancelled, ResourceExhausted, SealaneError
from sealane.rpc.call import Cancellation
from sealane_worker.box import Box, BoxLimits
from sealane_worker.model.queueing import Batching
from sealane_worker.spec import Ran, Run


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: BoxLimits) -> Iterator[Box]:
    """A model that runs one request at a time."""
    find_hostile(monkeypatch)
    box = Box.start(spec_of(tmp_path, Batching(max_batch_size=1)), quick)
    yield box
    box.close()


def cancellable(run: Run) -> tuple[Run, Cancellation]:
    """The run, and what ends the wait for it."""
    cancellation = Cancellation()

    def on_cancel(callback: Callable[[], None]) -> None:
        if not cancellation.watch(callback):
            callback()

    return replace(run, on_cancel=on_cancel), cancellation


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.001)


def outcome(future: Future[Ran]) -> SealaneError | Ran:
    try:
        return future.result(10)
    except SealaneError as error:
        return error


def test_the_wait_for_a_run_ends_before_the_run(box: Box) -> None:
    run, cancellation = cancellable(ask("sleep 0.5"))
    begun = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(box.run, run)
        until(lambda: box.in_flight == 1)
        time.sleep(0.05)  # the model has it by now
        cancellation.cancel()
        assert isinstance(outcome(waiting), Cancelled)
        assert box.in_flight == 1, "the model still runs: the wait ended before it"
        assert time.monotonic() - begun < 10
    assert say(box, "echo next") == "done next"


def test_what_waits_behind_a_run_is_never_begun(box: Box) -> None:
    with ThreadPoolExecutor(8) as pool:
        occupied = pool.submit(box.run, ask("sleep 0.4"))
        until(lambda: box.in_flight == 1)
        time.sleep(0.05)
        waiting = [cancellable(ask("die")) for _ in range(3)]
        futures = [pool.submit(box.run, run) for run, _ in waiting]
        until(lambda: box.in_flight == 4)
        for _, cancellation in waiting:
            cancellation.cancel()
        assert {type(outcome(future)) for future in futures} == {Cancelled}
        assert isinstance(outcome(occupied), Ran)
    assert say(box, "echo alive") == "done alive", "the model was never told to die"


def test_a_caller_who_is_gone_already_gets_nothing_run(box: Box) -> None:
    run, cancellation = cancellable(ask("sleep 0.2"))
    cancellation.cancel()
    with pytest.raises(Cancelled):
        box.run(run)


def test_a_box_that_ends_does_not_wait_for_answers_that_callers_left_behind(box: Box, quick: BoxLimits) -> None:
    run, cancellation = cancellable(ask("sleep 0.2"))
    cancellation.cancel()
    with pytest.raises(Cancelled):
        box.run(run)
    assert box.in_flight == 1
    begun = time.monotonic()
    box.close()
    assert box.in_flight == 0 and time.monotonic() - begun < quick.drain / 2


def test_a_caller_without_a_slot_leaves_at_once(box: Box) -> None:
    with ThreadPoolExecutor(60) as pool:
        occupied = [pool.submit(box.run, ask("sleep 0.3", seconds=1.0)) for _ in range(48)]
        until(lambda: box.in_flight == 48)
        run, cancellation = cancellable(ask("echo never", seconds=60.0))
        waiting = pool.submit(box.run, run)
        time.sleep(0.05)
        cancellation.cancel()
        assert isinstance(outcome(waiting), Cancelled)
        for future in occupied:
            outcome(future)


def test_a_refusal_comes_while_the_model_runs(box: Box) -> None:
    for _ in range(60):
        say(box, "sleep 0.02")  # enough for the queue to know what a run takes
    with ThreadPoolExecutor(40) as pool:
        occupied = [pool.submit(box.run, ask("sleep 1.5")) for _ in range(2)]
        waiting = [pool.submit(box.run, ask("sleep 0.02")) for _ in range(30)]
        until(lambda: box.in_flight == 32)
        time.sleep(0.05)
        error = outcome(pool.submit(box.run, ask("echo no", seconds=0.4)))
        assert isinstance(error, ResourceExhausted), error
        assert error.retry_after
        assert not all(future.done() for future in occupied)
        for future in (*occupied, *waiting):
            outcome(future)


def test_cancelling_tells_each_once_and_late_comers_at_once() -> None:
    cancellation, told = Cancellation(), threading.Semaphore(0)
    assert cancellation.watch(told.release)
    cancellation.cancel()
    cancellation.cancel()
    assert not cancellation.watch(told.release)
    assert told.acquire(blocking=False)
    assert not told.acquire(blocking=False)
