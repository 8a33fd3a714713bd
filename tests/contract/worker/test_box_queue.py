"""What the queue in a model process does for callers: batches, deadlines, cancellation, instances, isolation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hostile_box import ask, find_hostile, said, say, spec_of

from sealane.errors import DeadlineExceeded, Internal, ResourceExhausted, SealaneError, Unavailable
from sealane.tensors import Array
from sealane_worker.box import Box, BoxLimits
from sealane_worker.model.queueing import Batching
from sealane_worker.spec import ModelSpec, Ran, Run, Serving

Start = Callable[..., Box]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: BoxLimits) -> Iterator[Start]:
    """Starts boxes of the toy model with a batching."""
    find_hostile(monkeypatch)
    boxes: list[Box] = []

    def made(batching: Batching | None = None, instances: int = 1) -> Box:
        boxes.append(Box.start(spec_of(tmp_path, batching, instances=instances), quick))
        return boxes[-1]

    yield made
    for box in boxes:
        box.close()


@contextmanager
def busy(box: Box, seconds: float = 0.3, instances: int = 1) -> Iterator[ThreadPoolExecutor]:
    """A model that is occupied while the block queues requests behind it; they are all waited for."""
    with ThreadPoolExecutor(40) as pool:
        occupied = [pool.submit(box.run, ask(f"sleep {seconds}")) for _ in range(instances)]
        deadline = time.monotonic() + 5
        while box.in_flight < instances:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(0.05)  # the model has it by now
        yield pool
        for item in occupied:
            item.result()


def test_a_new_runtime_is_one_module_and_an_entry_point(start: Start) -> None:
    assert say(start(), "echo hello") == "done hello"


def test_what_waits_together_runs_together_and_each_gets_its_own(start: Start) -> None:
    box = start(Batching(max_batch_size=8, preferred_batch_size=(8,)))
    with busy(box) as pool:
        waiting = [pool.submit(box.run, ask(f"echo {index}")) for index in range(8)]
    answers = [item.result() for item in waiting]
    assert [said(ran) for ran in answers] == [[f"done {index}"] for index in range(8)]
    assert max(ran.batch_rows for ran in answers) > 1
    assert {int(ran.outputs["rows"][0]) for ran in answers} == {ran.batch_rows for ran in answers}
    assert all(ran.queue_seconds > 0 for ran in answers)


def test_a_batch_size_of_one_never_puts_requests_together(start: Start) -> None:
    box = start(Batching(max_batch_size=1))
    with busy(box) as pool:
        waiting = [pool.submit(box.run, ask(f"echo {index}")) for index in range(8)]
    assert {item.result().batch_rows for item in waiting} == {1}


def test_one_that_fails_in_a_batch_does_not_spoil_the_others(start: Start) -> None:
    box = start(Batching(max_batch_size=8, preferred_batch_size=(4,)))
    with busy(box) as pool:
        waiting = [pool.submit(box.run, ask(text)) for text in ("echo a", "no-such-verb", "echo b", "echo c")]
    answers = [_outcome(item) for item in waiting]
    assert [answers[0], answers[2], answers[3]] == ["done a", "done b", "done c"]
    assert isinstance(answers[1], Internal)
    assert (answers[1].reason, "KeyError" in answers[1].message) == ("MODEL_FAILED", False)


def test_the_highest_priority_overtakes(start: Start) -> None:
    box = start(Batching(max_batch_size=1, priority_levels=2, default_priority_level=2))
    with busy(box) as pool:
        low = [pool.submit(box.run, ask("sleep 0.1")) for _ in range(3)]
        time.sleep(0.05)
        high = pool.submit(box.run, ask("echo high", priority=1))
    assert high.result().queue_seconds < min(item.result().queue_seconds for item in low)


def test_a_dead_request_is_never_run(start: Start, tmp_path: Path) -> None:
    box = start()
    box_calls = say(box, "echo first")
    with busy(box, 0.4) as pool:
        late = pool.submit(box.run, ask("die", seconds=0.1))
        assert isinstance(_outcome(late), DeadlineExceeded)
    assert box_calls == "done first"
    assert say(box, "echo alive") == "done alive", "the model was never told to die"


def test_a_caller_that_leaves_takes_its_request_along(start: Start) -> None:
    box = start(Batching(max_batch_size=1))
    with busy(box, 0.4) as pool:
        gone = [pool.submit(box.run, ask("sleep 5", seconds=0.1)) for _ in range(3)]
        assert all(isinstance(_outcome(item), DeadlineExceeded) for item in gone)
        patient = pool.submit(box.run, ask("echo next", seconds=4))
    assert _outcome(patient) == "done next", "nobody waits behind those who have gone"


def test_a_full_queue_says_so_and_when_to_come_again(start: Start) -> None:
    box = start(Batching(max_batch_size=1, max_queue_size=2))
    with busy(box) as pool:
        waiting = [pool.submit(box.run, ask("echo x")) for _ in range(6)]
    outcomes = [_outcome(item) for item in waiting]
    refused = [item for item in outcomes if isinstance(item, ResourceExhausted)]
    assert outcomes.count("done x") == 2
    assert len(refused) == 4
    assert {item.reason for item in refused} == {"QUEUE_FULL"}
    assert all(item.retry_after for item in refused)


def test_instances_run_side_by_side(start: Start) -> None:
    box = start(Batching(max_batch_size=1), 4)
    with busy(box, 1.0, instances=3):
        assert say(box, "echo beside", 0.8) == "done beside"


def test_more_callers_than_slots_wait_their_turn(start: Start) -> None:
    box = start(Batching(max_batch_size=1))
    with ThreadPoolExecutor(80) as pool:
        answers = list(pool.map(lambda index: say(box, f"echo {index}"), range(200)))
    assert answers == [f"done {index}" for index in range(200)]
    assert box.in_flight == 0


def test_a_model_that_dies_fails_what_it_had_and_nothing_later(start: Start) -> None:
    box = start()
    with busy(box) as pool:
        waiting = [pool.submit(box.run, ask("die" if index == 3 else "sleep 0.01")) for index in range(8)]
    outcomes = [_outcome(item) for item in waiting]
    assert {type(item) for item in outcomes if isinstance(item, SealaneError)} == {Unavailable}
    deadline = time.monotonic() + 20
    while not isinstance(_outcome_of(box, "echo again"), str):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_a_model_prints_is_logged_in_bounds(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    box = start()
    with caplog.at_level("INFO"):
        for index in range(60):
            say(box, f"print line-{index}")
        deadline = time.monotonic() + 5
        while "line-19" not in {record.__dict__.get("text") for record in caplog.records}:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.3)
    printed = [record for record in caplog.records if str(record.__dict__.get("text", "")).startswith("line-")]
    assert len(printed) == 20


@pytest.mark.parametrize("size", [0, 1, 16_000, 17_000, 3_000_000, 50_000_000])
def test_tensors_of_any_size_cross_unchanged(start: Start, size: int) -> None:
    box, text = start(), "x" * size
    assert say(box, f"echo {text}") == f"done {text}"
    assert say(box, "echo after") == "done after"


def test_what_no_ring_holds_is_refused_by_its_size(start: Start) -> None:
    box = start()
    with pytest.raises(ResourceExhausted) as refused:
        say(box, "echo " + "x" * (200 << 20))
    assert refused.value.reason == "REQUEST_TOO_LARGE"
    assert say(box, "echo after") == "done after"


def test_large_tensors_side_by_side_never_mix(quick: BoxLimits, digits: tuple[Array, Array]) -> None:
    light = Path(__file__).parents[3] / "examples/digits/light"
    box = Box.start(ModelSpec("litert", light / "litert-float.tflite", serving=Serving(instances=2)), quick)
    x = digits[0].astype(np.float32)
    wanted = {size: box.run(_images(np.resize(x, (size, 8, 8, 1)))).outputs["probabilities"] for size in (70, 300, 999)}
    failures: list[str] = []

    def call(size: int) -> None:
        for _ in range(15):
            got = box.run(_images(np.resize(x, (size, 8, 8, 1)))).outputs["probabilities"]
            if got.shape != wanted[size].shape or not np.allclose(got, wanted[size], atol=1e-5):
                failures.append(f"{size} mixed up")

    threads = [threading.Thread(target=call, args=(size,)) for size in wanted for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    box.close()
    assert failures == []


def _images(x: Array) -> Run:
    return Run({"image": x}, "serving_default", time.monotonic() + 20)


def _outcome(item: Future[Ran]) -> str | SealaneError:
    try:
        return said(item.result())[0]
    except SealaneError as error:
        return error


def _outcome_of(box: Box, text: str) -> str | SealaneError:
    try:
        return say(box, text)
    except SealaneError as error:
        return error
