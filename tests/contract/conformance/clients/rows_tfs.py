"""The rows of TensorFlow Serving: what each client does, and what must come of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from calling import Row, Tensor, equal, real, refused, values

A, B = [1.0, 2.0, 3.0, 4.0], [10.0, 0.5, 2.0, 1.0]
ROWS: dict[str, Row] = {}


@dataclass(frozen=True)
class Prediction:
    """One Predict. `form` is content or values; `repeat` sends a list of values that is shorter than the shape."""

    model: str
    inputs: Mapping[str, Tensor]
    version: int = 0
    label: str = ""
    signature: str = ""
    outputs: tuple[str, ...] = ()
    form: str = "content"
    repeat: bool = False
    seconds: float = 30.0
    coding: str = ""
    token: str = "good"
    cancel: float = 0.0


@dataclass(frozen=True)
class Predicted:
    """What came back; `version` and `signature` are None where the form tells none."""

    outputs: dict[str, np.ndarray]
    model: str | None = None
    version: int | None = None
    signature: str | None = None


@dataclass(frozen=True)
class Served:
    """One model of a configuration."""

    name: str
    base_path: str
    versions: tuple[int, ...]
    labels: Mapping[str, int]


def row(function: Callable) -> Callable:
    """Name a row after its function."""
    ROWS[function.__name__] = function
    return function


def pair(**told: object) -> Prediction:
    """A request to the model with two inputs and two outputs."""
    return Prediction("pair", {"a": real(A, B), "b": real(B, A)}, **told)


def slow(client, x: float = 1.0, **told: object) -> Prediction:
    """A request to a model that takes its time."""
    return Prediction(f"slow-{client.site.place}", {"x": real([x])}, **told)


def check_pair(answer: Predicted) -> None:
    a, b = np.array([A, B], np.float32), np.array([B, A], np.float32)
    equal(sorted(answer.outputs), ["product", "total"])
    equal(answer.outputs["total"], a + b)
    equal(answer.outputs["product"], a * b)
    equal(answer.version in (1, None), True)
    equal(answer.signature in ("serving_default", None), True)


# -- Predict -----------------------------------------------------------------------------------------


@row
def predict_content(client) -> None:
    """tensor_content; an ONNX model answers as `serving_default`."""
    check_pair(client.predict(pair()))


@row
def predict_values(client) -> None:
    """The `*_val` fields; JSON over HTTP, by columns."""
    check_pair(client.predict(pair(form="values")))


@row
def predict_rows(client) -> None:
    """JSON by rows, several inputs by name."""
    check_pair(client.predict(pair(form="rows")))


@row
def predict_repeated_value(client) -> None:
    """A list of values shorter than the shape repeats its last."""
    request = Prediction("echo-fp32", {"x": ("FP32", np.full((2, 3), 7.0, np.float32))}, form="values", repeat=True)
    equal(client.predict(request).outputs["y"], np.full((2, 3), 7.0, np.float32))


@row
def output_filter(client) -> None:
    equal(list(client.predict(pair(outputs=("product",))).outputs), ["product"])


@row
def version_number(client) -> None:
    check_pair(client.predict(pair(version=1)))


@row
def versions_and_labels(client) -> None:
    """No version is the highest that is available; the answer tells which it was."""
    shelf = replace(pair(), model="shelf")
    for told in ({"version": 1}, {"version": 2}, {}):
        answer = client.predict(replace(shelf, **told))
        equal(answer.version in (told.get("version", 2), None), True)
    for label, version in client.site.labels.items():
        answer = client.predict(replace(shelf, label=label))
        equal(answer.version in (version, None), True)


@row
def signature(client) -> None:
    """A signature of a model with several, by its name."""
    answer = client.predict(Prediction("estimator", {"x": real(A)}, signature="classify"))
    equal(answer.outputs["scores"], np.array([A[:3]], np.float32))
    equal(answer.signature in ("classify", None), True)


@row
def ensemble(client) -> None:
    answer = client.predict(Prediction("chain", {"left": real(A), "right": real(B)}))
    equal(answer.outputs["again"], np.array([A], np.float32) + np.array([B], np.float32))


@row
def deadline(client) -> None:
    client.predict(slow(client))  # what was left before is done: a busy model would refuse at once
    refused(lambda: client.predict(slow(client, seconds=0.05)), "DEADLINE_EXCEEDED")
    check_pair(client.predict(pair()))


@row
def cancellation(client) -> None:
    refused(lambda: client.predict(slow(client, cancel=0.05)), "CANCELLED")
    check_pair(client.predict(pair()))


@row
def large(client) -> None:
    """Eight images of 600,000 bytes in one call."""
    images = np.random.default_rng(7).integers(0, 256, (8, 200, 1000, 3), np.uint8)
    answer = client.predict(Prediction("pixels", {"image": ("UINT8", images)}))
    np.testing.assert_allclose(answer.outputs["mean"], images.mean((1, 2, 3)), rtol=1e-3)


@row
def compression_gzip(client) -> None:
    check_pair(client.predict(pair(coding="gzip")))


@row
def compression_deflate(client) -> None:
    check_pair(client.predict(pair(coding="deflate")))


def _datatype(datatype: str, client) -> None:
    request = Prediction(f"echo-{datatype.lower()}", {"x": (datatype, values(datatype))})
    for form in client.forms(datatype):
        equal(client.predict(replace(request, form=form)).outputs["y"], values(datatype))


for _name in ("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"):
    ROWS[f"datatype_{_name}"] = partial(_datatype, _name)
for _name in ("FP16", "BF16", "FP32", "FP64", "BYTES"):
    ROWS[f"datatype_{_name}"] = partial(_datatype, _name)


# -- examples ----------------------------------------------------------------------------------------


@row
def classify(client) -> None:
    found = client.classify("estimator", "classify", [A, B])
    wanted = [list(zip(("low", "middle", "high"), line[:3], strict=True)) for line in (A, B)]
    equal([[(label, float(score)) for label, score in line] for line in found], wanted)


@row
def regress(client) -> None:
    equal([float(value) for value in client.regress("estimator", "regress", [A, B])], [sum(A), sum(B)])


@row
def multi_inference(client) -> None:
    classes, numbers = client.multi("estimator", [("classify", "classify"), ("regress", "regress")], [A])
    equal([label for label, _ in classes[0]], ["low", "middle", "high"])
    equal([float(value) for value in numbers], [sum(A)])


# -- models ------------------------------------------------------------------------------------------


@row
def metadata(client) -> None:
    found = client.metadata("estimator")
    equal(set(found) >= {"serving_default", "classify", "regress"}, True)
    equal(found["classify"], (["x"], ["classes", "scores"]))


@row
def status(client) -> None:
    equal(client.status("pair"), {1: "AVAILABLE"})


@row
def status_of_all_versions(client) -> None:
    equal(client.status("shelf"), {1: "AVAILABLE", 2: "AVAILABLE"})
    equal(client.status("shelf", 1), {1: "AVAILABLE"})


@row
def reload_config(client) -> None:
    """Replaces what is served: one model more, then less. At a worker it says where to go."""
    shelf = Served("shelf", "pair", (1, 2), client.site.labels)
    if client.site.place == "worker":
        refused(lambda: client.reload([shelf]), "UNIMPLEMENTED", "at the gateway")
        return
    equal(client.reload([shelf, Served("library", "pair", (1,), {"first": 1})])[0], 0)
    _until(lambda: client.status("library") == {1: "AVAILABLE"}, "served")
    check_pair(client.predict(replace(pair(), model="library", label="first")))
    equal(client.reload([shelf])[0], 0)
    _until(lambda: client.status("library") == {}, "gone")
    equal(client.status("shelf"), {1: "AVAILABLE", 2: "AVAILABLE"})


@row
def reload_error_inside(client) -> None:
    """What cannot be served is told in the answer, and nothing changes."""
    shelf = Served("shelf", "pair", (1, 2), client.site.labels)
    code, text = client.reload([shelf, Served("library", "pair", (9,), {})])
    equal((code, "9" in text), (5, True))
    equal(client.status("shelf"), {1: "AVAILABLE", 2: "AVAILABLE"})


def _until(holds: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + 40
    while not holds():
        if time.monotonic() > limit:
            raise AssertionError(f"not {what} in 40 s")
        time.sleep(0.1)


# -- what must be refused ----------------------------------------------------------------------------


@row
def unknown_model(client) -> None:
    refused(
        lambda: client.predict(replace(pair(), model="nobody")),
        "NOT_FOUND",
        "Servable not found for request: Latest(nobody)",
    )


@row
def unknown_version(client) -> None:
    refused(lambda: client.predict(pair(version=7)), "NOT_FOUND", "Servable not found for request: Specific(pair, 7)")


@row
def unknown_label(client) -> None:
    refused(lambda: client.predict(pair(label="nothing")), "INVALID_ARGUMENT", "Unrecognized servable version label")


@row
def unknown_signature(client) -> None:
    request = Prediction("estimator", {"x": real(A)}, signature="nothing")
    text = 'name: "nothing" not found in signature def' if client.rest else 'Serving signature key "nothing" not found.'
    refused(lambda: client.predict(request), "FAILED_PRECONDITION", text)


@row
def unknown_output(client) -> None:
    refused(
        lambda: client.predict(pair(outputs=("nothing",))),
        "INVALID_ARGUMENT",
        "output tensor alias not found in signature: nothing",
    )


@row
def output_twice(client) -> None:
    refused(lambda: client.predict(pair(outputs=("total", "total"))), "INVALID_ARGUMENT", "duplicate", "total")


@row
def missing_input(client) -> None:
    texts = ("input size does not match signature: 1!=2", "Missing but required: {b}.")
    if client.rest:
        texts = ("Missing named input: b",)
    refused(lambda: client.predict(Prediction("pair", {"a": real(A)})), "INVALID_ARGUMENT", *texts)


@row
def wrong_shape(client) -> None:
    _refused_input(client, real([1.0, 2.0]))


@row
def wrong_datatype(client) -> None:
    _refused_input(client, ("BYTES", np.array([[b"a", b"b", b"c", b"d"]], dtype=np.object_)))


@row
def batch_of_nothing(client) -> None:
    _refused_input(client, ("FP32", np.zeros((0, 4), np.float32)), also_b=True)


@row
def zero_size(client) -> None:
    """A tensor without elements is refused with its shape."""
    request = Prediction("echo-fp32", {"x": ("FP32", np.zeros((1, 0), np.float32))})
    refused(lambda: client.predict(request), "INVALID_ARGUMENT", "[1, 0]")


def _refused_input(client, tensor: Tensor, also_b: bool = False) -> None:
    request = Prediction("pair", {"a": tensor, "b": tensor if also_b else real(B)})
    refused(lambda: client.predict(request), "INVALID_ARGUMENT")
    check_pair(client.predict(pair()))


@row
def status_of_unknown_version(client) -> None:
    refused(lambda: client.status("pair", 7), "NOT_FOUND", "Could not find version 7 of model pair")


@row
def metadata_field_unknown(client) -> None:
    refused(lambda: client.metadata("pair", "nothing"), "INVALID_ARGUMENT", "nothing")


@row
def no_token(client) -> None:
    refused(lambda: client.predict(pair(token="none")), "UNAUTHENTICATED")


@row
def bad_token(client) -> None:
    refused(lambda: client.predict(pair(token="bad")), "UNAUTHENTICATED")
    check_pair(client.predict(pair()))
