"""Whether a variant takes and gives what its version says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sealane.tensors import Signature, TensorSpec
from sealane_worker.declared import difference

X, Y = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 2))
ONE = Signature((X,), (Y,))
SERVE = Signature((X,), (Y,), "serve")


def test_the_same_is_the_same() -> None:
    assert difference([ONE, SERVE], [SERVE, ONE]) == ""
    assert difference([ONE], [replace(ONE, method="tensorflow/serving/predict")]) == ""


def test_more_of_a_variant_does_no_harm() -> None:
    assert difference([ONE], [ONE, SERVE]) == ""
    assert difference([ONE], [replace(ONE, outputs=(replace(Y, shape=(-1, -1)),))]) == ""
    fixed = replace(ONE, inputs=(replace(X, shape=(1, 4)),), outputs=(replace(Y, shape=(1, 2)),))
    assert difference([fixed], [ONE]) == ""


DIFFERENT = {
    "datatype": (replace(ONE, inputs=(replace(X, datatype="INT8"),)), "input 'x' is INT8"),
    "fixed rows": (replace(ONE, inputs=(replace(X, shape=(1, 4)),)), "input 'x' has shape [1, 4]"),
    "width": (replace(ONE, outputs=(replace(Y, shape=(-1, 3)),)), "output 'y' has shape [-1, 3]"),
    "rank": (replace(ONE, outputs=(replace(Y, shape=(-1,)),)), "output 'y' has shape"),
    "another name": (replace(ONE, inputs=(replace(X, name="z"),)), "input 'x' of the version is missing"),
    "one more input": (replace(ONE, inputs=(X, replace(X, name="z"))), "input 'z' is not in the version"),
    "another signature": (replace(ONE, name="predict"), "no signature 'serving_default'"),
}


@pytest.mark.parametrize(("told", "words"), DIFFERENT.values(), ids=DIFFERENT)
def test_the_first_difference_is_named_with_a_remedy(told: Signature, words: str) -> None:
    found = difference([ONE], [told])
    assert words in found and "push it" in found


def test_a_conversion_may_keep_the_default_signature_alone() -> None:
    assert "'serve'" in difference([SERVE, ONE], [ONE])
    assert difference([SERVE, ONE], [ONE], converted=True) == ""
    assert difference([SERVE, ONE], [SERVE], converted=True)
    assert difference([SERVE], [ONE], converted=True)
