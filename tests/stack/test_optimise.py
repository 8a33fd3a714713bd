"""The optimise job for real: train, convert, measure, and serve the SavedModel in a box."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from sealane.errors import Aborted, FailedPrecondition, InvalidArgument
from sealane_worker.box import Box
from sealane_worker.optimise import OptimiseRun, OptimiseSpec, acceptable
from sealane_worker.spec import ModelSpec, Run

pytestmark = pytest.mark.tensorflow


def _spec(trained: Path, out: Path) -> OptimiseSpec:
    return OptimiseSpec(
        str(trained / "saved_model"), str(trained / "calibration.npz"), str(trained / "test.npz"), str(out)
    )


def test_int8_is_small_and_as_accurate(trained: Path, tmp_path: Path) -> None:
    told: list[float] = []
    variants = OptimiseRun(_spec(trained, tmp_path)).result(lambda fraction, _: told.append(fraction))
    saved_model, in_float, int8 = variants
    assert saved_model.accuracy >= 0.95
    assert int8.accuracy >= saved_model.accuracy - 0.02
    assert int8.size_bytes <= 0.4 * in_float.size_bytes
    assert 0 < int8.p50_us <= int8.p99_us
    assert acceptable(variants, 0.02) == ("litert-float", "litert-int8")
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_savedmodel_and_int8_agree_in_their_boxes(trained: Path, tmp_path: Path) -> None:
    OptimiseRun(_spec(trained, tmp_path)).result(lambda fraction, message: None)
    with np.load(trained / "test.npz") as archive:
        rows = archive["x"]
    answers = []
    for model in (
        ModelSpec("tensorflow", trained / "saved_model"),
        ModelSpec("litert", tmp_path / "litert-int8.tflite"),
    ):
        box = Box.start(model)
        (spec,) = box.signatures["serving_default"].inputs
        assert (spec.name, spec.shape) == ("image", (-1, 8, 8, 1))
        run = Run({"image": rows}, "serving_default", time.monotonic() + 30)
        answers.append(box.run(run).outputs["probabilities"].astype(np.float64))
        box.close()
    assert np.abs(answers[0] - answers[1]).mean() < 0.02
    assert (answers[0].argmax(axis=1) == answers[1].argmax(axis=1)).mean() >= 0.98


def test_cancel_ends_the_process(trained: Path, tmp_path: Path) -> None:
    run = OptimiseRun(_spec(trained, tmp_path))
    with pytest.raises(Aborted):
        run.result(lambda fraction, message: run.cancel())
    assert not (tmp_path / "RESULT.json").exists()


def test_bad_data_and_bad_models_are_told(trained: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"no")
    spec = OptimiseSpec(str(trained / "saved_model"), str(broken), str(broken), str(tmp_path / "out"))
    with pytest.raises(InvalidArgument, match="npz"):
        OptimiseRun(spec).result(lambda fraction, message: None)
    empty = OptimiseSpec(
        str(tmp_path), str(trained / "calibration.npz"), str(trained / "test.npz"), str(tmp_path / "out")
    )
    with pytest.raises(FailedPrecondition, match="SavedModel"):
        OptimiseRun(empty).result(lambda fraction, message: None)
