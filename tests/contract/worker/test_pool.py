"""Models that share the memory of a worker: on demand, the least recently used give way, one load for all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hostile_box import ask, find_hostile, said, spec_of

from sealane.errors import DataLoss, DeadlineExceeded, FailedPrecondition, ResourceExhausted, SealaneError
from sealane_worker import pool as pool_module
from sealane_worker.box import BoxLimits, BoxState
from sealane_worker.model.queueing import Batching
from sealane_worker.pool import Host, Pool, PooledModel
from sealane_worker.spec import ModelSpec, Serving, WarmRequest

LIMITS = BoxLimits(load=20, hang=5, backoff_first=0.02)


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """The toy model."""
    find_hostile(monkeypatch)
    return spec_of(tmp_path)


@pytest.fixture
def models() -> Iterator[list[PooledModel]]:
    """Those put in here are closed at the end."""
    made: list[PooledModel] = []
    yield made
    for model in made:
        model.close()


@pytest.fixture
def room_for(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Pool]:
    """Makes a pool with memory for so many models and half of another one."""
    model = Pool(Host(LIMITS)).add(spec)
    one = model.footprint_bytes()
    model.close()
    monkeypatch.setattr(pool_module, "PROCESS_BYTES", one)
    return lambda count: Pool(Host(LIMITS, budget_bytes=one * count + one // 2))


def echo(model: PooledModel, seconds: float = 20.0) -> str:
    return said(model.run(ask("echo hi", seconds=seconds)))[0]


def test_the_least_recently_used_gives_way_and_comes_back_when_asked(
    spec: ModelSpec, models: list[PooledModel], room_for: Callable[[int], Pool]
) -> None:
    pool = room_for(2)
    models += [pool.add(spec) for _ in range(2)]
    first, second = models
    echo(second)
    echo(first)
    models.append(pool.add(spec))
    assert [model.resident for model in models] == [True, False, True]
    assert (second.state, second.footprint_bytes()) == (BoxState.IDLE, 0)
    assert echo(second) == "done hi"
    assert second.loads == 2
    assert [model.resident for model in models] == [False, True, True]


def test_a_pinned_model_stays_and_says_so_to_those_who_do_not_fit(
    spec: ModelSpec, models: list[PooledModel], room_for: Callable[[int], Pool]
) -> None:
    pool = room_for(1)
    models.append(pool.add(spec, pinned=True))
    with pytest.raises(ResourceExhausted) as refused:
        pool.add(spec)
    assert refused.value.reason == "MEMORY_EXHAUSTED"
    assert "pinned or busy" in refused.value.message
    models[0].pinned = False
    models.append(pool.add(spec))
    assert not models[0].resident


def test_one_that_works_is_waited_for_and_then_gives_way(
    spec: ModelSpec, models: list[PooledModel], room_for: Callable[[int], Pool]
) -> None:
    pool = room_for(1)
    models.append(pool.add(spec))
    with ThreadPoolExecutor(1) as threads:
        working = threads.submit(models[0].run, ask("sleep 0.5"))
        while not models[0].box or not models[0].box.in_flight:
            time.sleep(0.001)
        models.append(pool.add(spec))
        assert said(working.result())[0].startswith("done"), "it was not cut off"
    assert [model.resident for model in models] == [False, True]


def test_a_load_that_nobody_waits_for_any_more_leaves_no_process(spec: ModelSpec) -> None:
    pool = Pool(Host(LIMITS))
    model = pool.add(spec)
    model.give_way()
    spec.path.write_text("sleep 0.5")
    with pytest.raises(DeadlineExceeded):
        echo(model, 0.05)
    model.close()
    until = time.monotonic() + 10
    while any(thread.name == "model-load" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert (model.box, pool.resident_bytes(), model.state) == (None, 0, BoxState.CLOSED)


def test_a_herd_of_callers_loads_a_model_once(spec: ModelSpec, models: list[PooledModel]) -> None:
    models.append(Pool(Host(LIMITS)).add(spec))
    models[0].give_way()
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda _: echo(models[0]), range(20)))
    assert answers == ["done hi"] * 20
    assert models[0].loads == 2


def test_a_caller_waits_for_a_load_no_longer_than_its_deadline(tmp_path: Path, spec: ModelSpec) -> None:
    model = Pool(Host(LIMITS)).add(spec)
    model.give_way()
    spec.path.write_text("sleep 1")
    with pytest.raises(DeadlineExceeded) as late:
        echo(model, 0.1)
    assert late.value.reason == "MODEL_LOADING"
    assert echo(model) == "done hi", "the load went on, and the next caller has it"
    assert model.loads == 2
    model.close()


def test_a_load_that_fails_fails_all_that_wait_and_is_tried_anew(spec: ModelSpec) -> None:
    model = Pool(Host(LIMITS)).add(spec)
    model.give_way()
    spec.path.write_text("read /etc/shadow-that-is-not-there")
    with ThreadPoolExecutor(5) as threads:
        outcomes = list(threads.map(lambda _: _kind(model), range(5)))
    assert set(outcomes) == {"INVALID_ARGUMENT"}
    spec.path.write_text("")
    assert echo(model) == "done hi"
    model.close()


def test_giving_way_under_traffic_loses_no_request(spec: ModelSpec) -> None:
    model = Pool(Host(LIMITS)).add(spec)
    stop, failures, answers = threading.Event(), list[str](), [0]

    def call() -> None:
        while not stop.is_set():
            try:
                echo(model)
                answers[0] += 1
            except SealaneError as error:
                failures.append(f"{error.reason} {error.message}")

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        time.sleep(0.1)
        model.give_way()
    stop.set()
    for thread in threads:
        thread.join()
    model.close()
    assert failures == []
    assert answers[0] > 10
    assert model.state is BoxState.CLOSED


def test_recorded_requests_and_batch_sizes_are_run_before_ready(int8_spec: ModelSpec) -> None:
    recorded = tuple(WarmRequest({"image": np.zeros((rows, 8, 8, 1), np.float32)}) for rows in (3, 1))
    serving = Serving(batching=Batching(max_batch_size=8, preferred_batch_size=(4, 8)))
    model = Pool(Host(LIMITS)).add(replace(int8_spec, warm_up=recorded, serving=serving))
    assert (model.loaded.warmed_requests, model.loaded.warmed_rows) == (2, (1, 3, 4, 8))
    assert model.loaded.load_seconds > 0
    model.close()


def test_a_recorded_request_that_the_model_refuses_stops_the_load(int8_spec: ModelSpec) -> None:
    wrong = (WarmRequest({"picture": np.zeros((1, 8, 8, 1), np.float32)}),)
    with pytest.raises(FailedPrecondition) as refused:
        Pool(Host(LIMITS)).add(replace(int8_spec, warm_up=wrong))
    assert refused.value.reason == "WARM_UP_FAILED"
    assert "request 0" in refused.value.message


def _kind(model: PooledModel) -> str:
    try:
        echo(model)
    except SealaneError as error:
        return error.kind
    return "OK"


def test_files_are_verified_again_before_they_are_loaded_again(spec: ModelSpec) -> None:
    files = Taken()
    model = Pool(Host(LIMITS)).add(replace(spec, files=files))
    model.give_way()
    assert (echo(model), files.said) == ("done hi", ["take", "give back", "take"])
    model.give_way()
    files.changed = True
    with pytest.raises(DataLoss):
        echo(model)
    model.close()
    assert files.said[3:] == ["give back", "take", "give back"]


def test_files_are_given_back_however_a_load_ends(spec: ModelSpec) -> None:
    files = Taken()
    wrong = replace(spec, files=files, warm_up=(WarmRequest({"picture": np.zeros((1, 8, 8, 1), np.float32)}),))
    with pytest.raises(FailedPrecondition):
        Pool(Host(LIMITS)).add(wrong)
    assert files.said[0] == "take" and files.said[-1] == "give back"


class Taken:
    """Files that say what is asked of them."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.changed = False

    def take(self) -> None:
        self.said.append("take")
        if self.changed:
            raise DataLoss("the file changed", reason="BLOB_CORRUPT")

    def give_back(self) -> None:
        self.said.append("give back")


def test_loading_and_leaving_over_and_over_keeps_nothing(spec: ModelSpec) -> None:
    model = Pool(Host(LIMITS)).add(spec)
    counts = []
    for _ in range(6):
        model.give_way()
        echo(model)
        counts.append((len(list(Path("/proc/self/fd").iterdir())), threading.active_count()))
    model.close()
    assert all(after <= before for before, after in zip(counts[1], counts[-1], strict=True)), counts
