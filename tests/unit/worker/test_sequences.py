"""Sequences: what the server fills in, whose they are, when they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import cast

import numpy as np
import pytest

from sealane.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from sealane.protocols.call import SequencePlace
from sealane.tensors import Array, Signature, TensorSpec
from sealane_worker import sequences
from sealane_worker.sequences import Asked, Sequences
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
    monkeypatch.setattr(sequences, "MAX_SEQUENCES", 3)
    full = Sequences(POLICY, SIGNATURE)
    for number in range(3):
        ask(full, model, 1, name=str(number + 1), start=True)
    with pytest.raises(ResourceExhausted, match="sequences are live"):
        ask(full, model, 1, name="9", start=True)
    ask(full, model, 1, name="1", end=True)
    assert ask(full, model, 1, name="9", start=True) == 1


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
