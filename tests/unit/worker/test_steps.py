"""Steps around a model: the chain, what callers see, numbers, classes, words, Python of the variant's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from sealane.errors import FailedPrecondition, InvalidArgument, Unimplemented
from sealane.tensors import NUMPY_OF, Array, Signature, TensorSpec
from sealane.type.v1 import manifest_pb2
from sealane_worker.model import steps as package
from sealane_worker.model.steps import Steps, wrap
from sealane_worker.model.steps.classes import highest
from sealane_worker.model.steps.values import NUMBERS, cast
from sealane_worker.runtimes import Runtime, RuntimeOptions

Arrays = Mapping[str, Array]


class Model:
    """A loaded runtime that is a function of arrays."""

    def __init__(self, function: Callable[[Arrays], dict[str, Array]]) -> None:
        self.function, self.closed = function, False

    def load(self, path: Path, options: RuntimeOptions) -> tuple[Signature, ...]:
        raise AssertionError("loaded twice")

    def run(self, inputs: Arrays, signature_name: str) -> dict[str, Array]:
        return self.function(inputs)

    def close(self) -> None:
        self.closed = True


def spec(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, datatype, shape)


def around(
    signature: Signature, *, before: tuple = (), after: tuple = (), folder: Path = Path("/nowhere"), executable=False
) -> tuple[Runtime, Signature]:
    """A model that gives back its inputs as outputs of the same order, with steps around it."""

    def echo(inputs: Arrays) -> dict[str, Array]:
        return {out.name: inputs[each.name] for each, out in zip(signature.inputs, signature.outputs, strict=False)}

    runtime, (outer,) = wrap(Model(echo), (signature,), Steps(before, after, executable), folder)
    return runtime, outer


def refused(signature: Signature, **steps: object) -> FailedPrecondition:
    with pytest.raises(FailedPrecondition) as caught:
        around(signature, **steps)  # type: ignore[arg-type]
    assert caught.value.reason == "MANIFEST_STEPS"
    return caught.value


SCORES = Signature((spec("x", "FP32", -1, 4),), (spec("scores", "FP32", -1, 4),))
ROWS = np.array([[0.1, 0.4, 0.4, -1], [5, 2, 9, 2]], np.float32)


def test_a_manifest_without_steps_leaves_the_runtime_alone() -> None:
    model = Model(lambda inputs: dict(inputs))
    runtime, signatures = wrap(model, (SCORES,), Steps(), Path())
    assert runtime is model
    assert signatures == (SCORES,)


def test_closing_closes_the_model() -> None:
    model = Model(lambda inputs: dict(inputs))
    runtime, _ = wrap(model, (SCORES,), Steps(after=({"softmax": {"tensor": "scores"}},)), Path())
    runtime.close()
    assert model.closed


def test_every_step_of_the_contract_is_known() -> None:
    assert set(package.KINDS) == {field.name for field in manifest_pb2.Step.DESCRIPTOR.fields}


def test_the_contracts_json_is_understood_with_every_field_set(tmp_path: Path) -> None:
    manifest = manifest_pb2.Manifest(
        before=[
            {
                "decode_image": {
                    "input": "photo",
                    "output": "x",
                    "channels": 3,
                    "height": 8,
                    "width": 8,
                    "max_pixels": 99,
                }
            },
            {
                "normalize": {
                    "tensor": "x",
                    "scale": 1 / 255,
                    "mean": [0.1, 0.2, 0.3],
                    "deviation": [0.5],
                    "channels_first": True,
                    "uint8_input": True,
                }
            },
        ],
        after=[{"top_k": {"input": "scores", "k": 2, "scores": "best", "classes": "number"}}],
    )
    parsed = json.loads(json_format.MessageToJson(manifest, preserving_proto_field_name=True))
    signature = Signature((spec("x", "FP32", -1, 3, 8, 8),), (spec("scores", "FP32", -1, 10),))
    chain = Steps(tuple(parsed["before"]), tuple(parsed["after"]))
    _, (outer,) = wrap(Model(lambda inputs: dict(inputs)), (signature,), chain, tmp_path)
    assert outer.inputs == (spec("photo", "BYTES", -1),)
    assert outer.outputs == (spec("best", "FP32", -1, 2), spec("number", "INT64", -1, 2))


# -- the chain


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ({}, "it is empty"),
        ({"sharpen": {}}, "a step is one of"),
        ({"softmax": {}, "cast": {}}, "a step is one of"),
        ({"softmax": {}}, "tensor must be said"),
        ({"softmax": {"tensor": "x", "axis": 1}}, "does not know ['axis']"),
        ({"softmax": {"tensor": "y"}}, "there is no tensor 'y' here, only ['scores']"),
        ({"top_k": {"input": "scores"}}, "k must be said"),
        ({"top_k": {"input": "scores", "k": 5}}, "has 4 classes"),
        ({"top_k": {"input": "scores", "k": 2, "classes": "scores"}}, "two tensors 'scores'"),
        ({"top_k": {"input": "scores", "k": "many"}}, "k is None"),
        ({"cast": {"tensor": "scores", "datatype": "BYTES"}}, "cannot be cast to"),
        ({"labels": {"input": "scores", "labels": ["a"]}}, "is FP32, this step works on INT64 or INT32"),
        ({"normalize": {"tensor": "scores", "mean": [1, 2, 3]}}, "numbers for 3 channels"),
        ({"normalize": {"tensor": "scores", "deviation": [0]}}, "or one is 0"),
        ({"normalize": {"tensor": "scores", "scale": "Infinity"}}, "scale must be a finite number"),
        ({"normalize": {"tensor": "scores", "mean": ["NaN"]}}, "not a finite number"),
        ({"normalize": {"tensor": "scores", "channels_first": True}}, "needs 4 dimensions"),
    ],
)
def test_a_step_that_cannot_work_is_refused_at_load_by_name(step: dict, says: str) -> None:
    error = refused(SCORES, after=({"rename": {"tensor": "scores", "to": "scores"}}, step))
    assert says in error.message
    assert error.message.startswith("step after[1]")
    assert error.field == "after[1]"


def test_steps_that_only_make_answers_are_refused_before_the_model() -> None:
    for step in ({"top_k": {"input": "x", "k": 1}}, {"labels": {"input": "x", "labels": ["a"]}}):
        assert "move it to `after`" in refused(SCORES, before=(step,)).message


def test_steps_go_to_the_signatures_they_fit() -> None:
    embed = Signature((spec("x", "FP32", -1, 4),), (spec("vector", "FP32", -1, 4),), "embed")
    classify = Signature((spec("x", "FP32", -1, 4),), (spec("scores", "FP32", -1, 4),), "classify")
    other = Signature((spec("text", "BYTES", -1),), (spec("scores", "FP32", -1, 4),), "other")
    model = Model(lambda inputs: {"scores": next(iter(inputs.values()))})
    chain = Steps(({"rename": {"tensor": "input", "to": "x"}},), ({"top_k": {"input": "scores", "k": 1}},))
    runtime, outer = wrap(model, (embed, classify, other), chain, Path())
    assert [one.inputs[0].name for one in outer] == ["input", "input", "text"]
    assert [len(one.outputs) for one in outer] == [1, 2, 2]
    assert runtime.run({"input": ROWS}, "classify")["classes"].tolist() == [[1], [2]]
    assert runtime.run({"input": ROWS}, "embed")["scores"].tolist() == ROWS.tolist()


def test_tensors_that_no_step_names_pass_unchanged() -> None:
    signature = Signature(
        (spec("x", "FP32", -1, 4), spec("id", "INT64", -1)), (spec("scores", "FP32", -1, 4), spec("id", "INT64", -1))
    )
    runtime, outer = around(signature, after=({"top_k": {"input": "scores", "k": 1}},))
    assert [one.name for one in outer.outputs] == ["scores", "classes", "id"]
    ids = np.array([7, 8])
    assert runtime.run({"x": ROWS, "id": ids}, "serving_default")["id"] is ids


# -- numbers


@pytest.mark.parametrize("first", [False, True])
def test_normalize_is_the_formula(first: bool) -> None:
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    shape = (-1, 3, 5, 6) if first else (-1, 5, 6, 3)
    signature = Signature((spec("x", "FP32", *shape),), (spec("y", "FP32", *shape),))
    fields = {"tensor": "x", "scale": 1 / 255, "mean": mean, "deviation": deviation}
    runtime, outer = around(
        signature, before=({"normalize": {**fields, "channels_first": first, "uint8_input": True}},)
    )
    assert outer.inputs == (spec("x", "UINT8", -1, 5, 6, 3),)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), np.uint8)
    wanted = (pixels / 255.0 - mean) / deviation
    made = runtime.run({"x": pixels}, "serving_default")["y"]
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, np.moveaxis(wanted, -1, 1) if first else wanted, atol=2e-6)


def test_normalize_without_uint8_takes_what_the_model_takes_and_leaves_it_alone() -> None:
    runtime, outer = around(SCORES, before=({"normalize": {"tensor": "x", "mean": [1], "deviation": [2]}},))
    assert outer.inputs == SCORES.inputs
    before = ROWS.copy()
    np.testing.assert_allclose(runtime.run({"x": ROWS}, "serving_default")["scores"], (ROWS - 1) / 2)
    assert np.array_equal(before, ROWS)


def test_a_free_number_of_channels_is_told_and_checked() -> None:
    signature = Signature((spec("x", "FP32", -1, -1),), (spec("y", "FP32", -1, -1),))
    runtime, outer = around(signature, before=({"normalize": {"tensor": "x", "mean": [1, 2, 3]}},))
    assert outer.inputs == (spec("x", "FP32", -1, 3),)
    with pytest.raises(InvalidArgument, match="takes 3"):
        runtime.run({"x": ROWS}, "serving_default")


def test_a_cast_before_the_model_needs_a_step_that_says_what_callers_send() -> None:
    step = {"cast": {"tensor": "x", "datatype": "FP32"}}
    error = refused(SCORES, before=(step,))
    assert "decode_image" in error.message


def test_a_cast_after_the_model() -> None:
    runtime, outer = around(SCORES, after=({"cast": {"tensor": "scores", "datatype": "UINT8"}},))
    assert outer.outputs == (spec("scores", "UINT8", -1, 4),)
    assert runtime.run({"x": ROWS}, "serving_default")["scores"].tolist() == [[0, 0, 0, 0], [5, 2, 9, 2]]


@given(st.sampled_from(NUMBERS), st.sampled_from(NUMBERS), st.data())
def test_a_cast_clips_to_the_datatype(source: str, target: str, data: st.DataObject) -> None:
    dtype, wanted = NUMPY_OF[source], NUMPY_OF[target]
    limits = [np.iinfo(dtype.str).min, np.iinfo(dtype.str).max] if dtype.kind in "iu" else [-1e30, 1e30, 3.7]
    numbers = data.draw(st.lists(st.sampled_from([*limits, 0, 1, 100]), min_size=1))
    with np.errstate(over="ignore"):
        array = np.array(numbers, np.float64).astype(dtype) if dtype.kind == "f" else np.array(numbers, dtype)
    made = cast(array, wanted)
    assert made.dtype == wanted
    if wanted.kind in "iu":
        low, high = np.iinfo(wanted.str).min, np.iinfo(wanted.str).max
        for before, after in zip(array.tolist(), made.tolist(), strict=True):
            exact = min(max(before, low), high)
            assert abs(after - int(exact)) <= (1 if dtype.kind != "f" else max(1, abs(high) >> 50))


def test_nan_becomes_zero_in_integers() -> None:
    assert cast(np.array([np.nan, np.inf, -np.inf], np.float32), np.dtype(np.int16)).tolist() == [0, 32767, -32768]


def test_softmax_is_right_for_great_scores_and_keeps_the_datatype() -> None:
    runtime, _ = around(SCORES, after=({"softmax": {"tensor": "scores"}},))
    made = runtime.run({"x": ROWS * 500}, "serving_default")["scores"]
    wide = np.exp(ROWS.astype(np.float64) * 500 - (ROWS * 500).max(axis=1, keepdims=True))
    np.testing.assert_allclose(made, wide / wide.sum(axis=1, keepdims=True), atol=1e-6)
    assert made.dtype == np.float32
    assert np.array_equal(ROWS, np.array([[0.1, 0.4, 0.4, -1], [5, 2, 9, 2]], np.float32))


# -- classes and words


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, -1.0, 2.5, np.nan]), min_size=7, max_size=7), min_size=1))
def test_the_highest_are_descending_and_ties_go_by_lower_class(rows: list[list[float]]) -> None:
    def order(row: list[float]) -> list[int]:
        return sorted(range(7), key=lambda c: (np.isnan(row[c]), 0.0 if np.isnan(row[c]) else -row[c], c))

    for k in (1, 3, 7):
        assert highest(np.array(rows, np.float32), k).tolist() == [order(row)[:k] for row in rows]


def test_top_k_and_labels_from_a_list() -> None:
    steps = (
        {"top_k": {"input": "scores", "k": 2}},
        {"labels": {"input": "classes", "labels": ["cat", "dog", "fön"]}},
    )
    runtime, outer = around(SCORES, after=steps)
    assert outer.outputs == (
        spec("scores", "FP32", -1, 2),
        spec("classes", "INT64", -1, 2),
        spec("labels", "BYTES", -1, 2),
    )
    made = runtime.run({"x": ROWS}, "serving_default")
    np.testing.assert_allclose(made["scores"], [[0.4, 0.4], [9, 5]])
    assert made["classes"].tolist() == [[1, 2], [2, 0]]
    assert made["labels"].tolist() == [[b"dog", "fön".encode()], ["fön".encode(), b"cat"]]


def test_classes_without_a_word_become_empty_ones() -> None:
    signature = Signature((spec("c", "INT32", -1),), (spec("c", "INT32", -1),))
    runtime, _ = around(signature, after=({"labels": {"input": "c", "labels": ["a"], "output": "w"}},))
    classes = np.array([-1, 0, 1, 2**31 - 1], np.int32)
    assert runtime.run({"c": classes}, "serving_default")["w"].tolist() == [b"", b"a", b"", b""]


def test_labels_of_a_file_of_the_variant(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes("\ufeffcat\r\n\r\nfön\r\n".encode())
    signature = Signature((spec("c", "INT64", -1),), (spec("c", "INT64", -1),))
    runtime, _ = around(signature, after=({"labels": {"input": "c", "file": "words.txt"}},), folder=tmp_path)
    made = runtime.run({"c": np.array([0, 1, 2, 3])}, "serving_default")
    assert made["labels"].tolist() == [b"cat", b"", "fön".encode(), b""]


def test_label_files_that_are_refused(tmp_path: Path) -> None:
    variant = tmp_path / "variant"
    variant.mkdir()
    (tmp_path / "outside.txt").write_text("secret")
    (variant / "link.txt").symlink_to(tmp_path / "outside.txt")
    (variant / "latin.txt").write_bytes(b"f\xf6n")
    (variant / "empty.txt").write_text("\n")
    signature = Signature((spec("c", "INT64", -1),), (spec("c", "INT64", -1),))
    reasons = {
        "../outside.txt": "none of the variant's",
        str(tmp_path / "outside.txt"): "none of the variant's",
        "link.txt": "none of the variant's",
        "absent.txt": "none of the variant's",
        "latin.txt": "not UTF-8",
        "empty.txt": "empty",
    }
    for file, says in reasons.items():
        error = refused(signature, after=({"labels": {"input": "c", "file": file}},), folder=variant)
        assert says in error.message
    assert "set one of them" in refused(signature, after=({"labels": {"input": "c"}},)).message


def test_too_few_classes_at_a_request() -> None:
    signature = Signature((spec("x", "FP32", -1, -1),), (spec("scores", "FP32", -1, -1),))
    runtime, _ = around(signature, after=({"top_k": {"input": "scores", "k": 5}},))
    with pytest.raises(InvalidArgument, match="4 classes and 5"):
        runtime.run({"x": ROWS}, "serving_default")


# -- Python of the variant's own


def python_step(function: str, outputs: list[dict] | None = None) -> dict:
    inputs = [{"name": "words", "datatype": "BYTES", "shape": ["-1"]}]
    made = outputs or [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
    return {"python": {"function": function, "inputs": inputs, "outputs": made}}


@pytest.fixture
def variant(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A variant with a package of its own; a module name that no other test uses."""
    import sys

    name = "own_" + "".join(c for c in request.node.name if c.isalnum())
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "package" / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(
        "import numpy as np\n"
        "from . import length\n"
        "from sealane.errors import InvalidArgument\n"
        "def lengths(tensors):\n"
        "    if b'' in tensors['words'].tolist():\n"
        "        raise InvalidArgument('a word is empty; send another')\n"
        "    return {'x': np.array([[length.of(w)] * 4 for w in tensors['words']], np.float32)}\n"
        "def doubles(tensors): return {'x': np.zeros((len(tensors['words']), 4))}\n"
        "def wrong_name(tensors): return {'y': np.zeros((1, 4), np.float32)}\n"
        "def wrong_shape(tensors): return {'x': np.zeros((1, 5), np.float32)}\n"
        "def nothing(tensors): return None\n"
        "def fails(tensors): return 1 / 0\n"
        "number = 7\n"
    )
    (folder / "length.py").write_text("def of(word): return len(word)\n")
    return tmp_path, name


def test_python_of_the_variants_own(variant: tuple[Path, str]) -> None:
    folder, name = variant
    runtime, outer = around(SCORES, before=(python_step(f"{name}:lengths"),), folder=folder, executable=True)
    assert outer.inputs == (spec("words", "BYTES", -1),)
    words = np.array([b"a", b"four"], np.object_)
    assert runtime.run({"words": words}, "serving_default")["scores"].tolist() == [[1] * 4, [4] * 4]
    with pytest.raises(InvalidArgument, match="a word is empty"):
        runtime.run({"words": np.array([b""], np.object_)}, "serving_default")


def test_python_is_refused_where_executable_formats_are(variant: tuple[Path, str]) -> None:
    folder, name = variant
    with pytest.raises(FailedPrecondition, match="SEALANE_WORKER_EXECUTABLE") as caught:
        around(SCORES, before=(python_step(f"{name}:lengths"),), folder=folder)
    assert caught.value.reason == "EXECUTABLE_REFUSED"


@pytest.mark.parametrize("function", ["doubles", "wrong_name", "wrong_shape", "nothing"])
def test_what_python_returns_is_held_against_its_declaration(variant: tuple[Path, str], function: str) -> None:
    folder, name = variant
    runtime, _ = around(SCORES, before=(python_step(f"{name}:{function}"),), folder=folder, executable=True)
    with pytest.raises(FailedPrecondition, match=function) as caught:
        runtime.run({"words": np.array([b"a"], np.object_)}, "serving_default")
    assert caught.value.reason == "STEP_RETURNED"


def test_what_python_raises_is_the_models_failure(variant: tuple[Path, str]) -> None:
    folder, name = variant
    runtime, _ = around(SCORES, before=(python_step(f"{name}:fails"),), folder=folder, executable=True)
    with pytest.raises(ZeroDivisionError):
        runtime.run({"words": np.array([b"a"], np.object_)}, "serving_default")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("lengths", "module:function"),
        ("{}:../x", "module:function"),
        ("{}:absent", "cannot be imported"),
        ("{}.absent:f", "cannot be imported"),
        ("{}:number", "not a function"),
        ("json:loads", "is an installed one"),
        ("sys:exit", "is an installed one"),
    ],
)
def test_python_that_cannot_be_loaded_is_refused(variant: tuple[Path, str], function: str, says: str) -> None:
    folder, name = variant
    step = python_step(function.format(name))
    assert says in refused(SCORES, before=(step,), folder=folder, executable=True).message


def test_python_must_declare_what_the_model_takes(variant: tuple[Path, str]) -> None:
    folder, name = variant
    for datatype, shape in (("FP64", ["-1", "4"]), ("FP32", ["-1", "5"])):
        step = python_step(f"{name}:lengths", [{"name": "x", "datatype": datatype, "shape": shape}])
        assert "declare it so" in refused(SCORES, before=(step,), folder=folder, executable=True).message


def test_text_of_python_cannot_be_cast_and_that_is_found_at_load(variant: tuple[Path, str]) -> None:
    folder, name = variant
    step = python_step(f"{name}:lengths", [{"name": "x", "datatype": "BYTES", "shape": ["-1", "4"]}])
    chain = (step, {"cast": {"tensor": "x", "datatype": "FP32"}})
    assert "is BYTES" in refused(SCORES, before=chain, folder=folder, executable=True).message


def test_without_opencv_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cv2", None)
    signature = Signature((spec("x", "UINT8", -1, 8, 8, 3),), (spec("y", "UINT8", -1, 8, 8, 3),))
    with pytest.raises(Unimplemented, match=r"sealane\[images\]"):
        around(signature, before=({"resize": {"tensor": "x", "height": 8, "width": 8}},))
