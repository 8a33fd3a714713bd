"""Requests run together only where the rows of a model leave each other alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.tensors import Array, Signature, TensorSpec
from sealane_worker.model.queueing import Batching
from sealane_worker.model.rows import batchable
from sealane_worker.runtimes import RuntimeOptions

X = TensorSpec("x", "FP32", (-1, 4))
Y = TensorSpec("y", "FP32", (-1, 4))
WANTED = Batching(max_batch_size=8)


class Function:
    """A runtime that is a function of its inputs."""

    def __init__(self, function: Callable[[Mapping[str, Array]], Array]) -> None:
        self._function = function

    def load(self, path: Path, options: RuntimeOptions) -> tuple[Signature, ...]:
        return ()

    def run(self, inputs: Mapping[str, Array], signature_name: str) -> dict[str, Array]:
        return {"y": self._function(inputs)}

    def close(self) -> None:
        pass


def asked(
    function: Callable[[Mapping[str, Array]], Array], batching: Batching | None = None, *inputs: TensorSpec
) -> frozenset[str]:
    return batchable(Function(function), (Signature(inputs or (X,), (Y,), "s"),), batching or Batching())


def test_rows_that_leave_each_other_alone_run_together() -> None:
    assert asked(lambda tensors: np.tanh(tensors["x"] * 3)) == {"s"}
    assert asked(lambda tensors: tensors["i"] * 2, None, TensorSpec("i", "INT64", (-1, 4))) == {"s"}


@pytest.mark.parametrize(
    "function",
    [
        lambda tensors: tensors["x"] - tensors["x"].mean(axis=0),
        lambda tensors: np.cumsum(tensors["x"], axis=0),
        lambda tensors: tensors["x"][::-1],
        lambda tensors: tensors["x"][:1],
        lambda tensors: tensors["x"] @ tensors["x"].T,
    ],
)
def test_rows_that_do_not_never_run_together_and_a_manifest_that_wants_it_is_refused(
    function: Callable[[Mapping[str, Array]], Array],
) -> None:
    assert asked(function) == frozenset()
    with pytest.raises(FailedPrecondition) as refused:
        asked(function, WANTED)
    assert refused.value.reason == "MANIFEST_BATCHING"


def test_what_cannot_be_asked_runs_together_only_where_the_manifest_says_so() -> None:
    texts, free = TensorSpec("t", "BYTES", (-1,)), TensorSpec("x", "FP32", (-1, -1))

    def shy(_: Mapping[str, Array]) -> Array:
        raise InvalidArgument("not such values")

    for function, spec in ((lambda tensors: tensors["t"], texts), (lambda tensors: tensors["x"], free), (shy, X)):
        assert asked(function, None, spec) == frozenset()
        assert asked(function, WANTED, spec) == {"s"}


def test_one_row_at_a_time_is_never_asked() -> None:
    def never(_: Mapping[str, Array]) -> Array:
        raise AssertionError

    assert asked(never, Batching(max_batch_size=1)) == frozenset()
    assert (
        batchable(Function(never), (Signature((TensorSpec("x", "FP32", (1, 4)),), (Y,), "s"),), WANTED) == frozenset()
    )
