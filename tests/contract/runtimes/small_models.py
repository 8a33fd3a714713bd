"""What the tests of the runtimes share: the digits, a trained model, a small ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx import helper

from sealane.tensors import Array


@dataclass(frozen=True)
class Digits:
    """Scikit-learn's digits: rows of 64 pixels from 0 to 1, and labels."""

    train: Array
    train_labels: Array
    test: Array
    test_labels: Array


@dataclass(frozen=True)
class Perceptron:
    """A trained Dense 64-32-10 and its probabilities for the test rows."""

    weights: tuple[Array, ...]
    answers: Array


def save_onnx(file: Path, nodes: list[object], inputs: Mapping[str, object], outputs: Mapping[str, object]) -> Path:
    """A small ONNX file; inputs and outputs: name -> (element type, shape)."""
    sides = [
        [helper.make_tensor_value_info(name, *told) for name, told in side.items()]  # type: ignore[misc]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "small", *sides)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    file.write_bytes(model.SerializeToString())
    return file
