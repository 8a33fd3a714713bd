"""A model in its own process: it answers, and its death is an event, not an outage."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sealane.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, Unavailable
from sealane.tensors import Array
from sealane_worker import box as box_module
from sealane_worker.box import Box, BoxLimits, BoxState
from sealane_worker.child import Child
from sealane_worker.spec import ModelSpec, Run


def _run(rows: Array, seconds: float = 5.0) -> Run:
    return Run({"image": rows}, "serving_default", time.monotonic() + seconds)


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "did not come true within 10 s"
        time.sleep(0.01)


def test_answers_from_many_threads_with_any_batch(
    int8_spec: ModelSpec, quick: BoxLimits, digits: tuple[Array, Array]
) -> None:
    box = Box.start(int8_spec, quick)
    x, y = digits
    signature = box.signatures["serving_default"]
    assert [(spec.name, spec.datatype, spec.shape) for spec in signature.inputs] == [("image", "FP32", (-1, 8, 8, 1))]
    assert [(spec.name, spec.shape) for spec in signature.outputs] == [("probabilities", (-1, 10))]

    def part(index: int) -> Array:
        size = (1, 2, 3, 5, 8, 13)[index % 6]  # more batch sizes than interpreters are kept
        answer: Array = box.run(_run(x[index : index + size])).outputs["probabilities"].argmax(axis=1)[:1]
        return answer

    with ThreadPoolExecutor(8) as pool:
        answers = np.concatenate(list(pool.map(part, range(len(x)))))
    assert (answers == y).mean() >= 0.95
    assert box.footprint_bytes() > 10 << 20
    box.close()
    assert not Path(f"/proc/{box.pid}").exists()
    with pytest.raises(Unavailable) as closed:
        box.run(_run(x[:1]))
    assert closed.value.reason == "MODEL_CLOSED"


def test_a_killed_model_comes_back_and_three_deaths_quarantine_it(
    int8_spec: ModelSpec, quick: BoxLimits, digits: tuple[Array, Array]
) -> None:
    box = Box.start(int8_spec, quick)
    rows = digits[0][:1]
    for _ in range(2):
        dead = box.pid
        os.kill(dead, signal.SIGKILL)
        with pytest.raises(Unavailable) as crashed:
            box.run(_run(rows))
        assert crashed.value.reason in {"MODEL_CRASHED", "MODEL_RESTARTING"}
        _until(lambda dead=dead: box.state is BoxState.READY and box.pid != dead)  # type: ignore[misc]
        assert box.run(_run(rows)).outputs["probabilities"].shape == (1, 10)
    os.kill(box.pid, signal.SIGKILL)
    _until(lambda: box.state is BoxState.QUARANTINED)
    with pytest.raises(FailedPrecondition) as quarantined:
        box.run(_run(rows))
    assert quarantined.value.reason == "MODEL_QUARANTINED"
    box.close()


def test_a_stopped_model_costs_each_caller_its_deadline_and_is_then_replaced(
    int8_spec: ModelSpec, quick: BoxLimits, digits: tuple[Array, Array]
) -> None:
    box = Box.start(int8_spec, replace(quick, hang=0.2))
    rows, hung = digits[0][:1], box.pid
    os.kill(hung, signal.SIGSTOP)
    errors: list[BaseException] = []

    def call() -> None:
        try:
            box.run(_run(rows, 0.15))
        except DeadlineExceeded as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(3)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 3
    assert time.monotonic() - started < 10, "nobody waits for the hung process"
    _until(lambda: box.state is BoxState.READY and box.pid != hung)
    assert box.run(_run(rows)).outputs["probabilities"].shape == (1, 10)
    box.close()


def test_a_late_answer_is_never_given_to_the_next_caller(
    int8_spec: ModelSpec, quick: BoxLimits, digits: tuple[Array, Array]
) -> None:
    box = Box.start(int8_spec, replace(quick, hang=30))
    first, second = digits[0][:1], digits[0][1:2]
    want = box.run(_run(second)).outputs["probabilities"]
    os.kill(box.pid, signal.SIGSTOP)
    with pytest.raises(DeadlineExceeded):
        box.run(_run(first, 0.05))
    os.kill(box.pid, signal.SIGCONT)
    np.testing.assert_array_equal(box.run(_run(second)).outputs["probabilities"], want)
    box.close()


def test_a_request_whose_time_is_over_is_not_run(
    int8_spec: ModelSpec, quick: BoxLimits, digits: tuple[Array, Array]
) -> None:
    box = Box.start(int8_spec, quick)
    with pytest.raises(DeadlineExceeded):
        box.run(_run(digits[0][:1], -1.0))
    box.close()


def test_bad_inputs_are_the_callers_fault_and_leave_the_process_alive(int8_spec: ModelSpec, quick: BoxLimits) -> None:
    box = Box.start(int8_spec, quick)
    pid = box.pid
    with pytest.raises(InvalidArgument, match="metadata"):
        box.run(_run(np.zeros((1, 7, 8, 1), np.float32)))
    assert box.run(_run(np.zeros((1, 8, 8, 1), np.float32))).outputs["probabilities"].shape == (1, 10)
    assert box.pid == pid
    box.close()


def test_what_cannot_be_loaded_says_what_to_do(tmp_path: Path, quick: BoxLimits) -> None:
    (tmp_path / "model.tflite").write_bytes(b"not a model")
    with pytest.raises(FailedPrecondition, match="convert it again"):
        Box.start(ModelSpec("litert", tmp_path), quick)
    with pytest.raises(InvalidArgument, match="unknown"):
        Box.start(ModelSpec("pickle", tmp_path), quick)


def test_a_restart_for_which_the_machine_has_nothing_left_is_tried_again(
    int8_spec: ModelSpec, quick: BoxLimits, digits: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Box.start(int8_spec, quick)
    dead, tries = box.pid, [0]

    def short(*arguments: object) -> Child:
        tries[0] += 1
        if tries[0] == 1:
            raise OSError(errno.EMFILE, "too many open files")
        return Child(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(box_module, "Child", short)
    os.kill(dead, signal.SIGKILL)
    _until(lambda: box.state is BoxState.READY and box.pid != dead)
    assert tries == [2]
    assert box.run(_run(digits[0][:1])).outputs["probabilities"].shape == (1, 10)
    box.close()
