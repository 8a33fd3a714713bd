"""Equal requests of one caller share a run; nobody else's, and no failure that was another caller's own."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sealane.errors import DeadlineExceeded, InvalidArgument, SealaneError
from sealane.tensors import Array
from sealane_worker.single_flight import Key, SingleFlight, key_of
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
            return flights.run(key, time.monotonic() + 5, run)[1]
        except SealaneError as error:
            return error

    with ThreadPoolExecutor(len(keys)) as pool:
        asked = [pool.submit(ask, key) for key in keys]
        time.sleep(0.1)
        go.set()
        return runs[0], [item.result() for item in asked]


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
    flights = SingleFlight()
    runs, got = together(flights, [key()] * 3, DeadlineExceeded("its own"))
    assert runs == 1 and all(isinstance(item, DeadlineExceeded) for item in got)


def test_who_joined_one_that_gave_up_runs_for_himself() -> None:
    flights, begun = SingleFlight(), threading.Event()

    def gives_up() -> Ran:
        begun.set()
        time.sleep(0.05)
        raise DeadlineExceeded("its caller had no time")

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(flights.run, key(), time.monotonic() + 1, gives_up)
        begun.wait(5)
        ran, joined = flights.run(key(), time.monotonic() + 5, lambda: Ran(ANSWER, 0.0))
        assert not joined and ran.outputs is ANSWER
        assert isinstance(first.exception(), DeadlineExceeded)


def test_who_joins_waits_within_his_own_deadline() -> None:
    flights, begun, go = SingleFlight(), threading.Event(), threading.Event()

    def slow() -> Ran:
        begun.set()
        go.wait(5)
        return Ran(ANSWER, 0.0)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(flights.run, key(), time.monotonic() + 9, slow)
        begun.wait(5)
        with pytest.raises(DeadlineExceeded):
            flights.run(key(), time.monotonic() + 0.01, slow)
        go.set()
        assert first.result()[1] is False
