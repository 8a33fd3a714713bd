"""Models in memory: what each framework's becomes, and that what answers otherwise is not pushed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from sealane.client import model_files, push_sources
from sealane.client.exports import comparison, examples, export, onnx_models, sklearn_estimators
from sealane.client.exports.written import Written
from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.registry.v1 import variant_service_pb2 as pb
from sealane.tensors import Signature, TensorSpec

X, Y = load_digits(return_X_y=True)
X, Y = X[:400], Y[:400]


def twice(weight: float = 2.0) -> onnx.ModelProto:
    """A times a weight, plus b."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["a", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("a", "b")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.full(2, weight, np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("model", "outputs"),
    [
        (LogisticRegression(max_iter=500), ["label", "probabilities"]),
        (make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)), ["label", "probabilities"]),
        (RandomForestClassifier(5, random_state=1), ["label", "probabilities"]),
        (make_pipeline(StandardScaler(), Ridge()), ["variable"]),
        (LinearSVC(max_iter=5000), ["label", "probabilities"]),
        (make_pipeline(StandardScaler(), PCA(3)), ["variable"]),
        (KMeans(3, random_state=1), ["label", "scores"]),
    ],
    ids=lambda item: type(item).__name__,
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_estimators_become_onnx_with_plain_tensors(model: object, outputs: list[str]) -> None:
    model.fit(X, Y)  # type: ignore[attr-defined]
    exported = export(model, X[:7])
    assert exported.compared
    local = model_files.inspect(exported.path)
    (signature,) = local.signatures
    assert (local.format, local.variant) == (pb.FORMAT_ONNX, "onnx")
    assert signature.inputs == (TensorSpec("X", "FP32", (-1, 64)),)
    assert [spec.name for spec in signature.outputs] == outputs
    assert exported.examples[0]["X"].dtype == np.float32


def test_an_estimator_that_is_not_fitted_or_not_known_to_the_converter_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="fit it first"):
        export(LogisticRegression())

    class Own(LogisticRegression):
        """Of the caller's own."""

    with pytest.raises(InvalidArgument, match="converter registered") as caught:
        export(Own(max_iter=500).fit(X, Y))
    assert caught.value.reason == "MODEL_NOT_EXPORTABLE"


def test_without_the_converter_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(FailedPrecondition, match=r"pip install 'sealane\[sklearn\]'"):
        export(LogisticRegression(max_iter=500).fit(X, Y))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_model_that_answers_otherwise_once_exported_is_refused_with_how_far(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(X, Y)
    other = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3)).fit(X, Y)
    # As a converter with a mistake: it writes another model than the one that it was given.
    own = sklearn_estimators._answers
    monkeypatch.setattr(sklearn_estimators, "_answers", lambda _, rows: own(other, rows))
    with pytest.raises(FailedPrecondition, match="answers the example otherwise") as caught:
        export(model, X[:50])
    assert caught.value.reason == "EXPORT_DIFFERS"


@pytest.mark.parametrize(
    ("off", "differs"), [(0.0, False), (9e-5, False), (3e-4, True), (np.nan, True), (np.inf, True)]
)
def test_the_tolerance_is_absolute_and_relative(off: float, differs: bool, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(twice().SerializeToString())
    rows = {"a": np.array([[0.0, 100.0]], np.float32), "b": np.zeros((1, 2), np.float32)}
    answers = np.array([[off, 200.0 + (off * 200 if np.isfinite(off) else 0)]])
    written = Written(tmp_path / "m.onnx", rows, {"y": answers})
    if not differs:
        assert comparison.compare(written)
        return
    with pytest.raises(FailedPrecondition) as caught:
        comparison.compare(written)
    assert caught.value.reason == "EXPORT_DIFFERS"
    told = float(caught.value.metadata["largest_difference"])
    assert np.isnan(told) or told >= off


def test_without_onnx_runtime_nothing_is_compared_and_the_export_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    exported = export(Ridge().fit(X, Y), X[:3])
    assert not exported.compared
    assert exported.path.is_file()


def test_an_onnx_model_is_written_and_asked() -> None:
    exported = export(twice(), (np.ones((1, 2)), [[3, 4]]))
    assert exported.compared
    assert [array.dtype for array in exported.examples[0].values()] == [np.float32, np.float32]
    with pytest.raises(InvalidArgument, match="2 inputs"):
        export(twice(), np.ones((1, 2)))
    with pytest.raises(InvalidArgument, match=r"names \['a', 'c'\]"):
        export(twice(), {"a": np.ones((1, 2)), "c": np.ones((1, 2))})


def test_large_weights_of_an_onnx_model_go_beside_it_and_stay_in_the_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_models, "MAX_BYTES_INSIDE", 1000)
    model = twice()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((1000, 2), 3, np.float32), "w"))
    before = model.SerializeToString(deterministic=True)
    rows = np.ones((1000, 2), np.float32)
    exported = export(model, {"a": rows, "b": rows})
    assert exported.compared
    assert set(model_files.inspect(exported.path).files) == {"model.onnx", "model.onnx.data"}
    assert exported.path.stat().st_size < 1000
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("model", [object(), 7, {"a": 1}, b"bytes", np.ones(3)])
def test_what_is_no_model_is_refused_with_what_is_accepted(model: object) -> None:
    with pytest.raises(InvalidArgument, match=r"a path, a Keras 3 model, a tf\.Module, a PyTorch nn\.Module") as caught:
        push_sources.prepare(model, {})
    assert (caught.value.reason, caught.value.field) == ("MODEL_NOT_EXPORTABLE", "model")


def test_an_example_of_a_file_is_recorded_too(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(twice().SerializeToString())
    recorded = {"a": np.zeros((1, 2), np.float32), "b": np.zeros((1, 2), np.float32)}
    given = {"b": [[1, 2]], "a": np.ones((1, 2))}
    _, requests = push_sources.prepare(tmp_path / "m.onnx", {"example": given, "examples": [recorded]})
    assert [float(request["b"].sum()) for request in requests] == [3.0, 0.0]
    with pytest.raises(InvalidArgument, match="reshape"):
        push_sources.prepare(tmp_path / "m.onnx", {"example": {"a": [[1.0]], "b": [[1.0]]}})


class Frame:
    """Stands for a pandas frame."""

    def to_numpy(self) -> object:
        return np.ones((2, 3))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (Frame(), np.float64),
        ([[1, 2]], np.int64),
        (["one", "two"], np.object_),
        (np.array([b"x"], np.object_), np.object_),
    ],
)
def test_examples_are_read_from_what_callers_have(value: object, dtype: type) -> None:
    assert examples.array_of(value, "x").dtype == dtype


@pytest.mark.parametrize("value", [[[1], [1, 2]], np.array([object()]), np.array([1j])])
def test_examples_that_are_no_tensors_are_refused(value: object) -> None:
    with pytest.raises(InvalidArgument) as caught:
        examples.array_of(value, "x")
    assert caught.value.field == "example"


@pytest.mark.parametrize(
    ("array", "datatype", "taken"),
    [
        (np.array([1.5]), "FP32", True),
        (np.array([3]), "FP32", True),
        (np.array([3]), "UINT8", True),
        (np.array([300]), "UINT8", False),
        (np.array([1.5]), "INT32", False),
        (np.array([(1 << 24) + 1]), "FP32", False),
        (np.array([b"x"], np.object_), "FP32", False),
    ],
)
def test_an_example_is_converted_where_no_value_is_lost(array: examples.Array, datatype: str, taken: bool) -> None:
    signature = Signature((TensorSpec("x", datatype, (-1,)),), ())
    if taken:
        assert examples.as_request(array, signature)["x"].shape == (1,)
    else:
        with pytest.raises(InvalidArgument):
            examples.as_request(array, signature)


def test_the_exports_import_no_framework() -> None:
    code = "import sealane.client.exports, sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()).isdisjoint({"tensorflow", "keras", "torch", "sklearn", "skl2onnx", "onnx"})
