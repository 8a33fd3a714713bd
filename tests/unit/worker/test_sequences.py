"""Sequences: what the server fills in, whose they are, when they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from sealane.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, SealaneError, Unavailable
from sealane.protocols.call import SequencePlace
from sealane.tensors import Array, Signature, TensorSpec
from sealane_worker import sequence_room
from sealane_worker.sequences import Asked, Places, Sequences
from sealane_worker.spec import Ran, Sequencing

#: A sum over a sequence: y = x + total, told also whether it begins and which sequence it is.
SIGNATURE = Signature(
    (
        TensorSpec("x", "FP32", (-1, 1)),
        TensorSpec("start", "INT32", (1,)),
        TensorSpec("id", "UINT64", (1,)),
        TensorSpec("total", "FP32", (-1, 1)),
    ),
    (TensorSpec("y", "FP32", (-1, 1)), TensorSpec("new_total", "FP32", (-1, 1))),
)
POLICY = Sequencing(60.0, {"start": "START", "id": "CORRID"}, {"total": "new_total"})


class Summing:
    """The model."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.fail = False

    def __call__(self, inputs: Mapping[str, Array], outputs: tuple[str, ...]) -> Ran:
        if self.fail:
            raise Unavailable("crashed")
        self.seen.append((int(cast(int, inputs["start"][0])), int(cast(int, inputs["id"][0]))))
        total = np.asarray(inputs["x"], np.float32) + np.asarray(inputs["total"], np.float32)
        given: dict[str, Array] = {"y": total, "new_total": total}
        return Ran({name: given[name] for name in outputs} if outputs else given, 0.001)


def ask(
    table: Sequences, model: Summing, value: float, name: str = "7", caller: str = "a", **flags: bool
) -> float:  # fmt: skip
    inputs: dict[str, Array] = {"x": np.full((1, 1), value, np.float32)}
    place = SequencePlace(name, **flags)
    ran = table.run(Asked(caller, place, time.monotonic() + 5, inputs), model)
    assert set(ran.outputs) == {"y"}
    return float(cast(float, ran.outputs["y"][0, 0]))


def test_callers_neither_send_nor_get_what_is_filled_in() -> None:
    outer = Sequences(POLICY, SIGNATURE).signature
    assert [spec.name for spec in outer.inputs] == ["x"]
    assert [spec.name for spec in outer.outputs] == ["y"]


def test_state_goes_from_request_to_request_until_the_end() -> None:
    table, model = Sequences(POLICY, SIGNATURE), Summing()
    assert [ask(table, model, 1, start=True), ask(table, model, 2), ask(table, model, 3, end=True)] == [1, 3, 6]
    assert model.seen == [(1, 7), (0, 7), (0, 7)]
    with pytest.raises(InvalidArgument, match="must specify the START flag"):
        ask(table, model, 1)
    assert ask(table, model, 5, start=True) == 5
    assert ask(table, model, 5, start=True) == 5, "a new start forgets what was"


def test_another_callers_sequence_of_the_same_id_is_another_one() -> None:
    table, model = Sequences(POLICY, SIGNATURE), Summing()
    ask(table, model, 1, start=True)
    with pytest.raises(InvalidArgument, match="START"):
        ask(table, model, 1, caller="b")
    assert ask(table, model, 10, caller="b", start=True) == 10
    assert ask(table, model, 1) == 2


def test_a_wanted_output_alone_keeps_the_state() -> None:
    table, model = Sequences(POLICY, SIGNATURE), Summing()
    inputs: dict[str, Array] = {"x": np.ones((1, 1), np.float32)}
    for index in range(3):
        place = SequencePlace("7", start=index == 0)
        ran = table.run(Asked("a", place, time.monotonic() + 5, inputs, ("y",)), model)
    assert float(cast(float, ran.outputs["y"][0, 0])) == 3 and set(ran.outputs) == {"y"}


def test_a_failure_leaves_the_sequence_as_it_was() -> None:
    table, model = Sequences(POLICY, SIGNATURE), Summing()
    ask(table, model, 1, start=True)
    model.fail = True
    with pytest.raises(Unavailable):
        ask(table, model, 100)
    model.fail = False
    assert ask(table, model, 1) == 2


def test_idle_sequences_end_and_there_are_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Summing()
    brief = Sequences(Sequencing(0.0, POLICY.controls, POLICY.states), SIGNATURE)
    ask(brief, model, 1, start=True)
    with pytest.raises(InvalidArgument, match="idle for too long"):
        ask(brief, model, 1)
    monkeypatch.setattr(sequence_room, "MAX_SEQUENCES", 8)
    full = Sequences(POLICY, SIGNATURE)
    assert fill(full, "a") == 4
    ask(full, model, 1, name="0", caller="a", end=True)
    assert ask(full, model, 1, name="9", caller="a", start=True) == 1


def fill(table: Sequences, caller: str, size: int = 1) -> int:
    """Begin sequences until one is refused; how many there are."""
    for number in range(100):
        inputs: dict[str, Array] = {"x": np.ones((size, 1), np.float32)}
        try:
            table.run(Asked(caller, SequencePlace(str(number), start=True), time.monotonic() + 5, inputs), Summing())
        except ResourceExhausted as error:
            assert error.retry_after
            return number
    raise AssertionError("there is no end")


def test_no_caller_keeps_others_from_beginning_a_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_room, "MAX_SEQUENCES", 64)
    table = Sequences(POLICY, SIGNATURE)
    assert [fill(table, caller) for caller in "abcde"] == [32, 16, 8, 4, 2]
    monkeypatch.setattr(sequence_room, "MAX_OF_A_CALLER", 10)
    table = Sequences(POLICY, SIGNATURE)
    assert [fill(table, caller) for caller in "ab"] == [10, 10]


def test_states_have_a_budget_over_all_signatures_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_room, "MAX_BYTES", 4000)
    places = Places()
    one, other = Sequences(POLICY, SIGNATURE, places), Sequences(POLICY, SIGNATURE, places)
    assert fill(one, "a", size=100) == 5, "each keeps 400 bytes, and a caller at most half of what there is"
    assert len(one) == 5, "the one that was refused is not begun"
    assert fill(other, "a", size=100) == 0
    assert fill(other, "b", size=100) == 2
    for number in range(5):
        ask(one, Summing(), 1, name=str(number), end=True)
    assert fill(one, "c", size=100) == 4, "what has ended keeps nothing"


def test_a_state_keeps_no_larger_answer_in_memory() -> None:
    kept: list[Array] = []
    policy = Sequencing(60.0, {}, {"total": "new_total"})

    def model(inputs: Mapping[str, Array], outputs: tuple[str, ...]) -> Ran:
        kept.append(inputs["total"])
        batch = np.ones((1000, 1), np.float32)
        return Ran({"y": batch[:1], "new_total": batch[:1]}, 0.001)

    table = Sequences(policy, SIGNATURE)
    inputs: dict[str, Array] = {"x": np.ones((1, 1), np.float32)}
    for start in (True, False):
        table.run(Asked("a", SequencePlace("7", start=start), time.monotonic() + 5, inputs), model)
    assert kept[1].base is None and kept[1].shape == (1, 1)


def in_turn(table: Sequences, *places: SequencePlace) -> list[float | str]:
    """Ask the second while the first runs, and so on; what each got: its output, or the reason of its refusal."""
    begun, go = threading.Event(), threading.Event()
    results: list[float | str] = [""] * len(places)

    def slow(inputs: Mapping[str, Array], outputs: tuple[str, ...]) -> Ran:
        begun.set()
        go.wait(10)
        if float(cast(float, inputs["x"][0, 0])) < 0:
            raise Unavailable("crashed", reason="CRASHED")
        return Summing()(inputs, outputs)

    def one(index: int, place: SequencePlace) -> None:
        value = -1.0 if place.id == "bad" and index == 0 else 1.0
        inputs: dict[str, Array] = {"x": np.full((1, 1), value, np.float32)}
        try:
            ran = table.run(Asked("a", replace(place, id="7"), time.monotonic() + 10, inputs), slow)
            results[index] = float(cast(float, ran.outputs["y"][0, 0]))
        except SealaneError as error:
            results[index] = error.reason

    threads = [threading.Thread(target=one, args=item) for item in enumerate(places)]
    threads[0].start()
    assert begun.wait(10)
    for thread in threads[1:]:
        thread.start()
        time.sleep(0.05)  # it waits for its turn by then; where it does not yet, it finds what it would find after
    go.set()
    for thread in threads:
        thread.join()
    return results


def test_a_request_that_waited_for_the_end_is_not_of_the_ended_sequence() -> None:
    table = Sequences(POLICY, SIGNATURE)
    ask(table, Summing(), 5, start=True)
    assert in_turn(table, SequencePlace("7", end=True), SequencePlace("7")) == [6.0, "SEQUENCE_NOT_STARTED"]
    ask(table, Summing(), 5, start=True)
    assert in_turn(table, SequencePlace("7", end=True), SequencePlace("7", start=True)) == [6.0, 1.0]
    assert ask(table, Summing(), 1) == 2, "the one that was begun behind the end goes on"


def test_a_sequence_whose_beginning_failed_is_not_begun() -> None:
    table, model = Sequences(POLICY, SIGNATURE), Summing()
    model.fail = True
    with pytest.raises(Unavailable):
        ask(table, model, 1, start=True)
    model.fail = False
    assert len(table) == 0
    with pytest.raises(InvalidArgument, match="START"):
        ask(table, model, 1)
    waited = in_turn(table, SequencePlace("bad", start=True), SequencePlace("7"))
    assert waited == ["CRASHED", "SEQUENCE_NOT_STARTED"]
    ask(table, model, 1, start=True)
    model.fail = True
    with pytest.raises(Unavailable):
        ask(table, model, 1, start=True)
    model.fail = False
    with pytest.raises(InvalidArgument, match="START"):
        ask(table, model, 1)


def test_requests_of_one_sequence_run_one_after_the_other() -> None:
    table, running, most = Sequences(POLICY, SIGNATURE), 0, 0
    lock = threading.Lock()

    def slow(inputs: Mapping[str, Array], outputs: tuple[str, ...]) -> Ran:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1
        return Summing()(inputs, outputs)

    model = Summing()
    ask(table, model, 0, start=True)
    one: dict[str, Array] = {"x": np.ones((1, 1), np.float32)}
    asked = Asked("a", SequencePlace("7"), time.monotonic() + 10, one)
    threads = [threading.Thread(target=table.run, args=(asked, slow)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert ask(table, model, 0) == 12


def test_a_request_without_a_sequence_or_with_an_id_that_does_not_fit_is_refused() -> None:
    table, model = Sequences(POLICY, SIGNATURE), Summing()
    with pytest.raises(InvalidArgument, match="correlation ID"):
        table.run(Asked("a", None, time.monotonic() + 1, {}), model)
    with pytest.raises(InvalidArgument, match="UINT64"):
        ask(table, model, 1, name="camera-7", start=True)


def test_a_manifest_that_names_other_tensors_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="nothing"):
        Sequences(Sequencing(1.0, {"nothing": "START"}), SIGNATURE)
