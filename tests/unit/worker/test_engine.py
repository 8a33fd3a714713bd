"""The engine checks calls, swaps versions without a gap, and counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from sealane.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from sealane.tensors import Array
from sealane_worker import engine as engine_module
from sealane_worker.box import BoxLimits
from sealane_worker.deployment import Assignment, Inference
from sealane_worker.engine import Engine
from sealane_worker.spec import ModelSpec

NAME = "projects/p/deployments/camera"


@pytest.fixture
def engine(quick: BoxLimits) -> Iterator[Engine]:
    """An engine that is closed at the end."""
    made = Engine(quick)
    yield made
    made.close()


def _assignment(spec: ModelSpec, epoch: int = 1, variant: str = "litert-int8") -> Assignment:
    return Assignment(NAME, "projects/p/models/digits", 1, variant, variant, epoch, spec)


def _inference(rows: Array, **changes: object) -> Inference:
    return replace(Inference(NAME, {"image": rows}, time.monotonic() + 5), **changes)  # type: ignore[arg-type]


def test_serves_and_counts(engine: Engine, int8_spec: ModelSpec, digits: tuple[Array, Array]) -> None:
    x, y = digits
    engine.load(_assignment(int8_spec))
    answers = engine.infer(_inference(x)).outputs["probabilities"].argmax(axis=1)
    assert (answers == y).mean() >= 0.95
    (served,) = engine.served()
    assert (served.statistics.succeeded, served.statistics.failed) == (1, 0)
    assert 0 < served.statistics.p50_us <= served.statistics.p99_us


def test_refuses_what_can_never_work(engine: Engine, int8_spec: ModelSpec, digits: tuple[Array, Array]) -> None:
    engine.load(_assignment(int8_spec, epoch=4))
    rows = digits[0][:1]
    with pytest.raises(InvalidArgument) as shape:
        engine.infer(_inference(np.zeros((1, 9, 8, 1), np.float32)))
    assert shape.value.reason == "INPUT_SHAPE_MISMATCH"
    with pytest.raises(InvalidArgument) as dtype:
        engine.infer(_inference(rows.astype(np.float64)))
    assert dtype.value.reason == "INPUT_DATATYPE_MISMATCH"
    with pytest.raises(FailedPrecondition, match='"classify" not found'):
        engine.infer(_inference(rows, signature="classify"))
    with pytest.raises(InvalidArgument, match="probabilities"):
        engine.infer(_inference(rows, outputs=("logits",)))
    with pytest.raises(FailedPrecondition) as stale:
        engine.infer(_inference(rows, epoch=3))
    assert stale.value.reason == "STALE_ROUTE"
    with pytest.raises(NotFound):
        engine.infer(_inference(rows, deployment="projects/p/deployments/other"))
    assert engine.get(NAME).statistics.count == 0


def test_a_new_variant_takes_over_without_a_failed_call(
    engine: Engine, int8_spec: ModelSpec, digits: tuple[Array, Array]
) -> None:
    engine.load(_assignment(int8_spec))
    stop, failures, calls = threading.Event(), [], [0]

    def keep_calling() -> None:
        while not stop.is_set():
            try:
                engine.infer(_inference(digits[0][:1]))
                calls[0] += 1
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=keep_calling) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    float_spec = ModelSpec("litert", int8_spec.path.with_name("litert-float.tflite"))
    engine.load(_assignment(float_spec, epoch=2, variant="litert-float"))
    time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert calls[0] > 10
    assert engine.get(NAME).assignment.variant == "litert-float"


def test_a_new_epoch_of_the_same_model_keeps_its_process(engine: Engine, int8_spec: ModelSpec) -> None:
    engine.load(_assignment(int8_spec, epoch=1))
    before = engine.get(NAME).statistics
    engine.load(_assignment(int8_spec, epoch=2))
    assert engine.get(NAME).assignment.epoch == 2
    assert engine.get(NAME).statistics == before
    with pytest.raises(FailedPrecondition) as stale:
        engine.load(_assignment(int8_spec, epoch=1))
    assert stale.value.reason == "STALE_EPOCH"


def test_unload_ends_serving(engine: Engine, int8_spec: ModelSpec, digits: tuple[Array, Array]) -> None:
    engine.load(_assignment(int8_spec))
    assert engine.unload(NAME)
    assert not engine.unload(NAME)
    with pytest.raises(NotFound):
        engine.infer(_inference(digits[0][:1]))


def test_what_was_sealed_to_one_variant_runs_on_no_other(
    engine: Engine, int8_spec: ModelSpec, digits: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.load(_assignment(int8_spec))
    bound = engine.variants(engine.model(NAME))
    assert engine.digest_of(engine.model(NAME), bound) == "litert-int8"
    engine.infer(_inference(digits[0][:1], bound=bound))
    honest = engine_module.infer

    def rolls(entry, inference):  # type: ignore[no-untyped-def]  # as if the version were replaced under the call
        monkeypatch.setattr(engine_module, "infer", honest)
        engine.load(_assignment(int8_spec, epoch=2, variant="another"))
        raise Unavailable("closed", reason="MODEL_CLOSED")

    monkeypatch.setattr(engine_module, "infer", rolls)
    for _ in range(2):  # replaced under the call; replaced before it
        with pytest.raises(Unavailable) as told:
            engine.infer(_inference(digits[0][:1], bound=bound))
        assert told.value.reason == "VARIANT_CHANGED"
    engine.unload(NAME)
    with pytest.raises(Unavailable) as told:
        engine.infer(_inference(digits[0][:1], bound=bound))
    assert told.value.reason == "VARIANT_CHANGED", "it went elsewhere: whoever sealed it seals it again"
    engine.load(_assignment(int8_spec, epoch=3))
    engine.infer(_inference(digits[0][:1]))
