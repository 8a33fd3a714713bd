"""Equal requests of one caller share a run; nobody else's, and no failure that was another caller's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sealane.errors import MODEL_CRASHED, Cancelled, DeadlineExceeded, InvalidArgument, SealaneError, Unavailable
from sealane.rpc.call import Cancellation
from sealane.tensors import Array
from sealane_worker.single_flight import Key, SingleFlight, Waiter, key_of
from sealane_worker.spec import Ran

ANSWER: dict[str, Array] = {"y": np.ones(1, np.float32)}


def together(flights: SingleFlight, keys: list[Key], failure: SealaneError | None = None) -> tuple[int, list[object]]:
    """Ask at the same time; how often the model ran, and what each got."""
    runs, go = [0], threading.Event()
    lock = threading.Lock()

    def run() -> Ran:
        with lock:
            runs[0] += 1
        go.wait(5)
        time.sleep(0.02)
        if failure is not None:
            raise failure
        return Ran(ANSWER, 0.001)

    def ask(key: Key) -> object:
        try:
            return flights.run(key, Waiter(time.monotonic() + 5), run)[1]
        except SealaneError as error:
            return error

    with ThreadPoolExecutor(len(keys)) as pool:
        asked = [pool.submit(ask, key) for key in keys]
        time.sleep(0.1)
        go.set()
        results = [item.result() for item in asked]
    return runs[0], results


def key(value: float = 1.0, caller: str = "a", what: str = "m") -> Key:
    return key_of((caller,), (what,), {"x": np.full((2, 2), value, np.float32)})


def test_equal_requests_run_once() -> None:
    runs, joined = together(SingleFlight(), [key()] * 8)
    assert runs == 1
    assert sorted(joined, key=bool) == [False] + [True] * 7


@pytest.mark.parametrize("other", [key(2.0), key(caller="b"), key(what="another model")])
def test_what_differs_runs_by_itself(other: Key) -> None:
    assert together(SingleFlight(), [key(), other])[0] == 2


def test_keys_tell_names_shapes_types_and_elements_apart() -> None:
    ones = np.ones((2, 3), np.float32)
    texts = np.array([b"ab", b"c"], dtype=object)
    others: list[dict[str, Array]] = [
        {"x": ones}, {"y": ones}, {"x": ones.reshape(3, 2)}, {"x": ones.astype(np.float64)}, {"x": ones, "y": ones},
        {"x": texts}, {"x": np.array([b"a", b"bc"], dtype=object)}, {"x": ones.T},
    ]  # fmt: skip
    keys = [key_of(("a",), (), item) for item in others]
    # A transposed array has the elements of the reshaped one here, and is equal to it.
    assert len(set(keys)) == len(keys) - 1 and keys[2] == keys[7]


def test_a_failure_about_the_inputs_is_shared_and_another_is_not() -> None:
    runs, got = together(SingleFlight(), [key()] * 4, InvalidArgument("bad"))
    assert runs == 1 and all(isinstance(item, InvalidArgument) for item in got)
    runs, got = together(SingleFlight(), [key()] * 4, Unavailable("crashed", reason=MODEL_CRASHED))
    assert runs == 1 and all(isinstance(item, Unavailable) for item in got), "nor does it crash the model four times"
    runs, got = together(SingleFlight(), [key()] * 3, DeadlineExceeded("its own"))
    assert runs == 3 and all(isinstance(item, DeadlineExceeded) for item in got)


def test_who_joined_one_that_gave_up_runs_for_himself() -> None:
    flights, begun = SingleFlight(), threading.Event()

    def gives_up() -> Ran:
        begun.set()
        time.sleep(0.05)
        raise DeadlineExceeded("its caller had no time")

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(flights.run, key(), Waiter(time.monotonic() + 1), gives_up)
        begun.wait(5)
        ran, joined = flights.run(key(), Waiter(time.monotonic() + 5), lambda: Ran(ANSWER, 0.0))
        assert not joined and ran.outputs is ANSWER
        assert isinstance(first.exception(), DeadlineExceeded)


def test_who_joins_waits_within_his_own_deadline() -> None:
    flights, begun, go = SingleFlight(), threading.Event(), threading.Event()

    def slow() -> Ran:
        begun.set()
        go.wait(5)
        return Ran(ANSWER, 0.0)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(flights.run, key(), Waiter(time.monotonic() + 9), slow)
        begun.wait(5)
        with pytest.raises(DeadlineExceeded):
            flights.run(key(), Waiter(time.monotonic() + 0.01), slow)
        go.set()
        assert first.result()[1] is False


def until_asleep(threads: int) -> None:
    """Until so many threads have had the time to come to their wait; too little makes a test weaker, not wrong."""
    for _ in range(threads):
        time.sleep(0.05)


def test_who_joined_and_leaves_waits_no_longer() -> None:
    flights, begun, go = SingleFlight(), threading.Event(), threading.Event()

    def slow() -> Ran:
        begun.set()
        go.wait(30)
        return Ran(ANSWER, 0.0)

    leaves = Cancellation()

    def on_cancel(callback: Callable[[], None]) -> None:
        if not leaves.watch(callback):
            callback()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(flights.run, key(), Waiter(time.monotonic() + 60), slow)
        assert begun.wait(10)
        second = pool.submit(flights.run, key(), Waiter(time.monotonic() + 60, on_cancel), slow)
        until_asleep(1)
        leaves.cancel()
        assert isinstance(second.exception(timeout=30), Cancelled)
        assert not first.done(), "whom he had joined runs on"
        with pytest.raises(Cancelled):  # gone before he joined
            flights.run(key(), Waiter(time.monotonic() + 60, on_cancel), slow)
        go.set()
        assert first.result()[1] is False


def test_of_those_who_joined_one_that_gave_up_one_runs_and_the_others_join_him() -> None:
    flights, begun, give_up = SingleFlight(), threading.Event(), threading.Event()
    lock, running, most = threading.Lock(), 0, 0

    def gives_up() -> Ran:
        begun.set()
        give_up.wait(30)
        raise Cancelled("its caller left")

    def run() -> Ran:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.2)
        with lock:
            running -= 1
        return Ran(ANSWER, 0.0)

    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(flights.run, key(), Waiter(time.monotonic() + 60), gives_up)
        assert begun.wait(10)
        others = [pool.submit(flights.run, key(), Waiter(time.monotonic() + 60), run) for _ in range(5)]
        until_asleep(4)
        give_up.set()
        assert isinstance(first.exception(timeout=30), Cancelled)
        assert all(other.result(timeout=30)[0].outputs is ANSWER for other in others)
    assert most == 1, "equal requests never run at the same time"
