"""Classify, Regress and MultiInference: examples of named features -> inputs, outputs -> classes and values.

Two kinds of model are asked this way. One was exported for it: its signature takes serialized examples and parses them
itself. Any other gets each of its inputs from the feature of the same name, one row for each example, so that ONNX and
LiteRT models answer the same clients. Texts that clients match on are those of TensorFlow Serving.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from sealane.compat.tfserving.v1 import example_pb2 as tf
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import InvalidArgument
from sealane.protocols.call import InferenceAnswer, InferenceCall, Target
from sealane.protocols.elements import Budget, byte_elements, check_count, from_values
from sealane.protocols.tfserving import spec_of, target
from sealane.protocols.tfserving_tensors import CLASSIFY, REGRESS
from sealane.tensors import Array, Signature, TensorSpec

#: Most examples of one request.
MAX_EXAMPLES = 8192
#: Outputs by the names that TensorFlow gives them.
_CLASSES, _SCORES, _VALUES = "classes", "scores", "outputs"

Request = tfs.ClassificationRequest | tfs.RegressionRequest


@dataclass(frozen=True, slots=True)
class Task:
    """One signature to run over examples, by :data:`CLASSIFY` or :data:`REGRESS`."""

    target: Target
    method: str


def task_of(request: Request) -> Task:
    """What a Classify or Regress request asks for.

    Raises:
        InvalidArgument: no model.
    """
    return Task(target(request), CLASSIFY if isinstance(request, tfs.ClassificationRequest) else REGRESS)


def tasks_of(request: tfs.MultiInferenceRequest) -> tuple[Task, ...]:
    """What a MultiInference request asks for.

    Raises:
        InvalidArgument: no task, tasks for several models, one signature twice, or an unknown method.
    """
    check_count(len(request.tasks), "tasks")
    if not request.tasks:
        raise InvalidArgument("Inference request requires at least one task", reason="NO_TASKS", field="tasks")
    tasks = []
    for index, item in enumerate(request.tasks):
        if item.method_name not in (CLASSIFY, REGRESS):
            raise InvalidArgument(
                f"Unsupported signature method_name: {item.method_name}; use {CLASSIFY} or {REGRESS}",
                reason="METHOD_UNKNOWN",
                field=f"tasks[{index}].method_name",
            )
        tasks.append(Task(target(item), item.method_name))
    models = {(task.target.model, task.target.version, task.target.label) for task in tasks}
    if len(models) > 1:
        raise InvalidArgument(
            "All ModelSpecs in a MultiInferenceRequest must access the same model name and version",
            reason="SEVERAL_MODELS",
            field="tasks",
        )
    if len({task.target.signature for task in tasks}) < len(tasks):
        raise InvalidArgument("Duplicate evaluation of signature", reason="SIGNATURE_TWICE", field="tasks")
    return tuple(tasks)


def decode_examples(task: Task, source: tfs.Input, signature: Signature) -> InferenceCall:
    """The call of a task over the examples of a request.

    Raises:
        InvalidArgument: no examples, a signature of another kind, or examples that do not fit it.
    """
    _check_method(task, signature)
    examples = _examples(source)
    if len(signature.inputs) == 1 and _takes_examples(signature.inputs[0]):
        elements = np.empty(len(examples), dtype=np.object_)
        elements[:] = [example.SerializeToString() for example in examples]
        return InferenceCall(task.target, {signature.inputs[0].name: elements})
    rows = [example.features.feature for example in examples]
    budget = Budget()
    inputs = {spec.name: _input(spec, rows, budget) for spec in signature.inputs}
    return InferenceCall(task.target, inputs)


def encode_classification(answer: InferenceAnswer, signature: Signature) -> tfs.ClassificationResponse:
    """The classes of each example."""
    response = tfs.ClassificationResponse(model_spec=_spec(answer))
    response.result.CopyFrom(classes_of(answer, signature))
    return response


def encode_regression(answer: InferenceAnswer, signature: Signature) -> tfs.RegressionResponse:
    """The value of each example."""
    response = tfs.RegressionResponse(model_spec=_spec(answer))
    response.result.CopyFrom(values_of(answer, signature))
    return response


def encode_results(
    answers: Sequence[tuple[Task, InferenceAnswer, Signature]],
) -> tfs.MultiInferenceResponse:
    """What each task gave, in order."""
    response = tfs.MultiInferenceResponse()
    for task, answer, signature in answers:
        result = response.results.add(model_spec=_spec(answer))
        if task.method == CLASSIFY:
            result.classification_result.CopyFrom(classes_of(answer, signature))
        else:
            result.regression_result.CopyFrom(values_of(answer, signature))
    return response


def classes_of(answer: InferenceAnswer, signature: Signature) -> tfs.ClassificationResult:
    """Classes and scores: of the outputs `classes` and `scores`, else of the one of bytes and the one of floats.

    Raises:
        InvalidArgument: outputs that are no classification.
    """
    labels = _output(answer.outputs, signature, _CLASSES, "O")
    scores = _output(answer.outputs, signature, _SCORES, "f")
    for array in (labels, scores):
        if array is not None and array.ndim != 2:
            raise _unfit(f"Expected Tensor shape: [batch_size num_classes] but got {list(array.shape)}")
    if labels is None and scores is None:
        raise _unfit("the signature has no output of class names and none of scores; call Predict")
    if labels is not None and scores is not None and labels.shape != scores.shape:
        raise _unfit(f"class names of shape {list(labels.shape)} and scores of shape {list(scores.shape)} do not match")
    result = tfs.ClassificationResult()
    known = labels if labels is not None else scores
    assert known is not None
    names = None if labels is None else np.asarray(byte_elements(labels), dtype=np.object_).reshape(labels.shape)
    for row in range(known.shape[0]):
        classes = result.classifications.add().classes
        for column in range(known.shape[1]):
            classes.add(
                label="" if names is None else _label(names[row, column]),
                score=0.0 if scores is None else float(scores[row, column].item()),
            )
    return result


def values_of(answer: InferenceAnswer, signature: Signature) -> tfs.RegressionResult:
    """One value a row, of the output `outputs`, else of the only one of floats.

    Raises:
        InvalidArgument: outputs that are no regression.
    """
    values = _output(answer.outputs, signature, _VALUES, "f")
    if values is None:
        raise _unfit("the signature has no output of one float for each example; call Predict")
    if values.ndim not in (1, 2) or (values.ndim == 2 and values.shape[1] != 1):
        raise _unfit(f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
                     f"{list(values.shape)}")  # fmt: skip
    return tfs.RegressionResult(regressions=[tfs.Regression(value=value) for value in values.ravel().tolist()])


def _check_method(task: Task, signature: Signature) -> None:
    if signature.method and signature.method != task.method:
        kind = "classification" if task.method == CLASSIFY else "regression"
        raise InvalidArgument(
            f"Expected {kind} signature method_name to be {task.method}. Was: {signature.method}",
            reason="SIGNATURE_METHOD",
            field="model_spec.signature_name",
        )


def _takes_examples(spec: TensorSpec) -> bool:
    return spec.datatype == "BYTES" and len(spec.shape) == 1


def _examples(source: tfs.Input) -> list[tf.Example]:
    """The examples, each with the features of the context that it does not have itself."""
    if source.WhichOneof("kind") == "example_list_with_context":
        listed = source.example_list_with_context
        examples = []
        for example in listed.examples:
            whole = tf.Example()
            whole.CopyFrom(listed.context)
            whole.MergeFrom(example)
            examples.append(whole)
    else:
        examples = list(source.example_list.examples)
    if not examples:
        raise InvalidArgument("Input is empty.", reason="NO_EXAMPLES", field="input")
    if len(examples) > MAX_EXAMPLES:
        raise InvalidArgument(
            f"{len(examples)} examples in one request, the limit is {MAX_EXAMPLES}; split the call",
            reason="TOO_MANY_EXAMPLES",
            field="input",
        )
    return examples


def _input(spec: TensorSpec, rows: Sequence[Mapping[str, tf.Feature]], budget: Budget) -> Array:
    """One input, a row for each example, from the features of its name."""
    where = f"input.{spec.name}"
    if not spec.shape or spec.shape[0] not in (-1, len(rows)):
        raise _unfit(f"input {spec.name!r} of shape {list(spec.shape)} does not take {len(rows)} examples")
    values = [_values(row.get(spec.name), spec, index) for index, row in enumerate(rows)]
    sizes = {len(item) for item in values}
    if len(sizes) > 1:
        raise _misfit(where, f"examples have {min(sizes)} to {max(sizes)} values for feature {spec.name!r}")
    shape = _row_shape(spec, sizes.pop(), where)
    budget.admit(spec.datatype, (len(rows), *shape), where)
    if spec.datatype == "BYTES":
        flat = np.empty(len(rows) * math.prod(shape), dtype=np.object_)
        flat[:] = [element for item in values for element in item]
        return flat.reshape(len(rows), *shape)
    return from_values(spec.datatype, (len(rows), *shape), cast(Sequence[float], np.concatenate(values)), where)


def _values(feature: tf.Feature | None, spec: TensorSpec, index: int) -> Array | list[bytes]:
    kind = feature.WhichOneof("kind") if feature is not None else None
    if feature is None or kind is None:
        raise _misfit(f"input.examples[{index}]", f"example {index} has no feature {spec.name!r}")
    if (kind == "bytes_list") != (spec.datatype == "BYTES"):
        raise _misfit(f"input.examples[{index}]", f"feature {spec.name!r} is a {kind}, the model takes {spec.datatype}")
    if kind == "bytes_list":
        return list(feature.bytes_list.value)
    if kind == "float_list":
        if not spec.datatype.startswith("FP"):
            raise _misfit(
                f"input.examples[{index}]", f"feature {spec.name!r} is a {kind}, the model takes {spec.datatype}"
            )
        return np.asarray(feature.float_list.value, dtype=np.float64)
    return np.asarray(feature.int64_list.value, dtype=np.int64)


def _row_shape(spec: TensorSpec, size: int, where: str) -> tuple[int, ...]:
    """The shape of one row that holds `size` values; one free dimension takes what is left."""
    rest = spec.shape[1:]
    fixed = math.prod(item for item in rest if item != -1)
    free = rest.count(-1)
    if free == 0 and fixed == size:
        return rest
    if free == 1 and fixed and size % fixed == 0:
        return tuple(size // fixed if item == -1 else item for item in rest)
    raise _misfit(where, f"feature {spec.name!r} has {size} values, a row of shape {list(rest)} takes others")


def _output(outputs: Mapping[str, Array], signature: Signature, name: str, kind: str) -> Array | None:
    """The output of that name, where the signature was exported for it; else the only one of that kind."""
    if name in outputs or signature.method:
        return outputs.get(name)
    found = [
        array for array in outputs.values() if array.dtype.kind == kind or (kind == "O" and array.dtype.kind in "SU")
    ]
    return found[0] if len(found) == 1 else None


def _label(element: object) -> str:
    return element.decode("utf-8", "replace") if isinstance(element, bytes) else str(element)


def _spec(answer: InferenceAnswer) -> tfs.ModelSpec:
    return spec_of(answer.call.target.model, answer.version, answer.signature)


def _unfit(message: str) -> InvalidArgument:
    return InvalidArgument(message, reason="SIGNATURE_METHOD", field="model_spec.signature_name")


def _misfit(where: str, message: str) -> InvalidArgument:
    return InvalidArgument(f"{message}; send what the model's metadata says", reason="EXAMPLE_MISMATCH", field=where)
