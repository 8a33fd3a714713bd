"""A model that is really trained, and what its own framework says about the test rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from small_models import Digits, Perceptron

DIGITS = 10


@pytest.fixture(scope="session")
def digits() -> Digits:
    data = load_digits()
    rows = (data.data / 16).astype(np.float32)
    return Digits(rows[:1437], data.target[:1437], rows[1437:], data.target[1437:])


@pytest.fixture(scope="session")
def perceptron(digits: Digits) -> Perceptron:
    model = MLPClassifier(
        (32,), learning_rate_init=0.01, max_iter=25, random_state=3, early_stopping=False, tol=0.0, n_iter_no_change=100
    )
    with pytest.warns(match="Maximum iterations"):
        model.fit(digits.train, digits.train_labels)
    weights = [array.astype(np.float32) for array in (*model.coefs_, *model.intercepts_)]
    first, second, first_bias, second_bias = weights
    return Perceptron((first, first_bias, second, second_bias), model.predict_proba(digits.test))


@pytest.fixture(scope="session")
def onnx_digits(perceptron: Perceptron, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model as an ONNX file."""
    names = ("w1", "b1", "w2", "b2")
    constants = [numpy_helper.from_array(array, name) for array, name in zip(perceptron.weights, names, strict=True)]
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["pixels", "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probabilities"], axis=-1),
        ],
        "digits",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["rows", 64])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", DIGITS])],
        constants,
    )
    file = tmp_path_factory.mktemp("onnx") / "digits.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file.write_bytes(model.SerializeToString())
    return file
