"""Examples and what is made of outputs, for models that were exported for it and for all others."""

from __future__ import annotations

import numpy as np
import pytest

from sealane.compat.tfserving.v1 import example_pb2
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import InvalidArgument
from sealane.protocols import tfserving_examples as examples
from sealane.protocols.call import InferenceAnswer, InferenceCall, Target
from sealane.protocols.tfserving_tensors import CLASSIFY, REGRESS
from sealane.tensors import Array, Signature, TensorSpec

TARGET = Target("m")
PARSING = Signature(
    (TensorSpec("inputs", "BYTES", (-1,)),),
    (TensorSpec("classes", "BYTES", (-1, -1)), TensorSpec("scores", "FP32", (-1, -1))),
    method=CLASSIFY,
)
DENSE = Signature(
    (TensorSpec("age", "INT64", (-1, 1)), TensorSpec("face", "FP32", (-1, 2, -1)), TensorSpec("name", "BYTES", (-1,))),
    (TensorSpec("price", "FP32", (-1, 1)),),
)


def row(age: int = 3, face: tuple[float, ...] = (1, 2, 3, 4), name: bytes = b"x") -> example_pb2.Example:
    message = example_pb2.Example()
    message.features.feature["age"].int64_list.value.append(age)
    message.features.feature["face"].float_list.value.extend(face)
    message.features.feature["name"].bytes_list.value.append(name)
    return message


def listed(*rows: example_pb2.Example) -> tfs.Input:
    return tfs.Input(example_list=tfs.ExampleList(examples=rows))


def answer(**outputs: Array) -> InferenceAnswer:
    return InferenceAnswer(InferenceCall(TARGET, {}), "1", "serving_default", outputs)


def test_a_model_that_parses_examples_gets_them_serialized() -> None:
    call = examples.decode_examples(examples.Task(TARGET, CLASSIFY), listed(row(1), row(2)), PARSING)
    parsed = [example_pb2.Example.FromString(item) for item in call.inputs["inputs"]]
    assert parsed == [row(1), row(2)]


def test_any_other_model_gets_each_input_from_its_feature() -> None:
    source = listed(row(1), row(2, (5, 6, 7, 8), b"y"))
    call = examples.decode_examples(examples.Task(TARGET, REGRESS), source, DENSE)
    np.testing.assert_array_equal(call.inputs["age"], [[1], [2]])
    np.testing.assert_array_equal(call.inputs["face"], [[[1, 2], [3, 4]], [[5, 6], [7, 8]]])
    assert call.inputs["name"].tolist() == [b"x", b"y"]
    DENSE.check_inputs(call.inputs)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (listed(), "Input is empty"),
        (listed(row(), row(face=(1, 2))), "2 to 4 values"),
        (listed(row(face=(1, 2, 3))), "3 values"),
        (listed(row(), example_pb2.Example()), "example 1 has no feature"),
        (listed(row(age=2**62)), None),
    ],
)
def test_examples_that_do_not_fit(source: tfs.Input, reason: str | None) -> None:
    task = examples.Task(TARGET, REGRESS)
    if reason is None:
        assert examples.decode_examples(task, source, DENSE).inputs["age"].tolist() == [[2**62]]
        return
    with pytest.raises(InvalidArgument, match=reason):
        examples.decode_examples(task, source, DENSE)


def test_a_feature_of_another_kind_is_refused() -> None:
    wrong = row()
    wrong.features.feature["age"].float_list.value.append(1.5)
    with pytest.raises(InvalidArgument, match="'age' is a float_list, the model takes INT64"):
        examples.decode_examples(examples.Task(TARGET, REGRESS), listed(wrong), DENSE)


def test_an_example_goes_before_its_context() -> None:
    mine = example_pb2.Example()
    mine.features.feature["age"].int64_list.value.append(9)
    source = tfs.Input(
        example_list_with_context=tfs.ExampleListWithContext(examples=[mine, example_pb2.Example()], context=row(age=1))
    )
    call = examples.decode_examples(examples.Task(TARGET, REGRESS), source, DENSE)
    assert call.inputs["age"].tolist() == [[9], [1]]


def test_a_signature_exported_for_one_is_not_asked_for_the_other() -> None:
    with pytest.raises(InvalidArgument, match=r"Expected regression signature method_name to be .*regress. Was: .*cla"):
        examples.decode_examples(examples.Task(TARGET, REGRESS), listed(row()), PARSING)


def test_classes_have_names_and_scores() -> None:
    labels = np.array([[b"cat", b"dog"]], dtype=object)
    scores = np.array([[0.25, 0.75]], np.float32)
    both = examples.classes_of(answer(classes=labels, scores=scores), PARSING)
    assert [(item.label, item.score) for item in both.classifications[0].classes] == [("cat", 0.25), ("dog", 0.75)]
    one = Signature((), (TensorSpec("p", "FP32", (-1, 2)),))
    alone = examples.classes_of(answer(p=scores), one)
    assert [(item.label, item.score) for item in alone.classifications[0].classes] == [("", 0.25), ("", 0.75)]


@pytest.mark.parametrize(
    "outputs",
    [
        {"p": np.zeros((2, 2, 2), np.float32)},
        {"p": np.zeros((2, 2), np.int64)},
        {"p": np.zeros((2, 2), np.float32), "q": np.zeros((2, 2), np.float32)},
        {"classes": np.full((2, 3), b"x", dtype=object), "scores": np.zeros((2, 2), np.float32)},
    ],
)
def test_outputs_that_are_no_classification(outputs: dict[str, Array]) -> None:
    with pytest.raises(InvalidArgument):
        examples.classes_of(answer(**outputs), Signature((), ()))


def test_values_of_one_or_two_dimensions() -> None:
    for shape in ((2,), (2, 1)):
        values = examples.values_of(answer(price=np.array([1.5, 2.5], np.float32).reshape(shape)), DENSE)
        assert [item.value for item in values.regressions] == [1.5, 2.5]
    with pytest.raises(InvalidArgument, match=r"\[2, 3\]"):
        examples.values_of(answer(price=np.zeros((2, 3), np.float32)), DENSE)


def multi(*tasks: tuple[str, str, str]) -> tfs.MultiInferenceRequest:
    request = tfs.MultiInferenceRequest()
    for model, signature, method in tasks:
        request.tasks.add(model_spec=tfs.ModelSpec(name=model, signature_name=signature), method_name=method)
    return request


def test_tasks() -> None:
    tasks = examples.tasks_of(multi(("m", "a", CLASSIFY), ("m", "b", REGRESS)))
    assert [(task.target.signature, task.method) for task in tasks] == [("a", CLASSIFY), ("b", REGRESS)]


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (multi(), "at least one task"),
        (multi(("m", "a", "tensorflow/serving/predict")), "Unsupported signature method_name"),
        (multi(("m", "a", CLASSIFY), ("n", "b", CLASSIFY)), "same model name"),
        (multi(("m", "a", CLASSIFY), ("m", "a", CLASSIFY)), "Duplicate evaluation of signature"),
        (multi(("", "a", CLASSIFY)), "no name specified"),
    ],
)
def test_tasks_that_cannot_be(request_: tfs.MultiInferenceRequest, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        examples.tasks_of(request_)
