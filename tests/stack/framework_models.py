"""Models of every framework, trained or built on scikit-learn's digits, with what their own framework answers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "contract" / "runtimes"
MXNET_PYTHON = ROOT / ".venv-mxnet" / "bin" / "python"
TORCH_PYTHON = Path(os.environ.get("SEALANE_TORCH_PYTHON", ROOT / ".venv-torch" / "bin" / "python"))
#: Where an environment of its own finds the suite in which it is not installed.
SOURCES = os.pathsep.join(str(ROOT / folder) for folder in ("src", "services/worker"))
#: Rows that every model is asked.
ROWS = 40
#: Of the training rows; enough for a model that is right far more often than not.
TRAINED = 1437

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Built:
    """A model on disk.

    Attributes:
        path: what to push.
        wanted: outputs for the rows, from its own framework.
        platform: what the worker calls the runtime that has to answer.
        input: name of the input.
        tolerance: how far an answer may be off.
        runtime: runtime to pin the variant to; empty for the worker's choice.
    """

    path: Path
    wanted: Mapping[str, Array]
    platform: str
    input: str = "pixels"
    tolerance: float = 1e-5
    runtime: str = ""


class Models:
    """Builds them, each in a folder of its own; what is shared is made once."""

    def __init__(self, folder: Path) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        pixels = (data.data / 16).astype(np.float32)
        self._folder = folder
        self.train, self.train_labels = pixels[:TRAINED], data.target[:TRAINED]
        self.rows, self.labels = pixels[TRAINED:][:ROWS], data.target[TRAINED:][:ROWS]
        self._once = cache(self._make)

    def build(self, name: str) -> Built:
        """The model of a name in :data:`FRAMEWORKS`; skips the test where its framework cannot be had."""
        return self._once(name)

    def _make(self, name: str) -> Built:
        folder = self._folder / name
        folder.mkdir()
        kind, _, pinned = name.partition("-by-")
        if pinned:
            return replace(self.build(kind), runtime=pinned, platform=pinned)
        return _BUILDERS[kind](self, folder)

    @property
    def keras(self) -> object:
        """Dense(64)-Dense(32)-Dense(10), trained."""
        if not hasattr(self, "_keras"):
            import keras

            keras.utils.set_random_seed(3)
            layers = [keras.layers.Dense(size, activation="relu") for size in (64, 32)]
            last = keras.layers.Dense(10, activation="softmax")
            self._keras = keras.Sequential([keras.Input((64,), name="pixels"), *layers, last])
            self._keras.compile("adam", "sparse_categorical_crossentropy")
            self._keras.fit(self.train, self.train_labels, epochs=5, verbose=0)
        return self._keras

    @property
    def perceptron(self) -> tuple[list[Array], Array]:
        """Weights and biases of scikit-learn's 64-32-10, trained, and its probabilities."""
        if not hasattr(self, "_perceptron"):
            import warnings

            from sklearn.neural_network import MLPClassifier

            model = MLPClassifier((32,), learning_rate_init=0.01, max_iter=15, random_state=3)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it says that it could learn for longer
                model.fit(self.train, self.train_labels)
            weights = [array.astype(np.float32) for array in (*model.coefs_, *model.intercepts_)]
            self._perceptron = weights, model.predict_proba(self.rows)
        return self._perceptron

    def digits_file(self, folder: Path) -> Path:
        """The digits for a script in another environment."""
        np.savez(folder / "rows.npz", x=self.train, y=self.train_labels, tx=self.rows, ty=self.labels)
        return folder / "rows.npz"


def _savedmodel(models: Models, folder: Path) -> Built:
    import tensorflow as tf

    models.keras.export(folder / "saved", verbose=False)  # type: ignore[attr-defined]
    answer = tf.saved_model.load(folder / "saved").signatures["serving_default"](pixels=tf.constant(models.rows))
    return Built(folder / "saved", {"output_0": answer["output_0"].numpy()}, "tensorflow_savedmodel")


def _keras(models: Models, folder: Path) -> Built:
    models.keras.save(folder / "digits.keras")  # type: ignore[attr-defined]
    return Built(folder / "digits.keras", {"output_0": np.asarray(models.keras(models.rows))}, "keras")  # type: ignore[operator]


def _litert(models: Models, folder: Path, *, int8: bool = False) -> Built:
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    converter = tf.lite.TFLiteConverter.from_saved_model(str(models.build("savedmodel").path))
    if int8:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([row[None]] for row in models.train[:200])
    file = folder / ("digits-int8.tflite" if int8 else "digits.tflite")
    file.write_bytes(converter.convert())
    runner = Interpreter(str(file)).get_signature_runner("serving_default")
    answers = np.concatenate([runner(pixels=row[None])["output_0"] for row in models.rows])
    # One step of the quantised output.
    return Built(file, {"output_0": answers}, "litert_tflite", tolerance=1 / 255 if int8 else 1e-5)


def _litert_int8(models: Models, folder: Path) -> Built:
    return _litert(models, folder, int8=True)


def _onnx(models: Models, folder: Path) -> Built:
    import onnxruntime

    weights, wanted = models.perceptron
    save_perceptron(folder / "digits.onnx", weights)
    session = onnxruntime.InferenceSession(folder / "digits.onnx", providers=["CPUExecutionProvider"])
    (answers,) = session.run(None, {"pixels": models.rows})
    np.testing.assert_allclose(answers, wanted, atol=1e-5)
    return Built(folder / "digits.onnx", {"probabilities": answers}, "onnxruntime_onnx")


def save_perceptron(file: Path, weights: list[Array], shape: tuple[int, ...] = (64,)) -> None:
    """The trained network as an ONNX file, for rows of `shape`."""
    from onnx import TensorProto, helper, numpy_helper

    image = len(shape) > 1
    nodes = [
        *([helper.make_node("Flatten", ["pixels"], ["flat"], axis=1)] if image else []),
        helper.make_node("Gemm", ["flat" if image else "pixels", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=-1),
    ]
    names = ("w1", "w2", "b1", "b2")
    constants = [numpy_helper.from_array(array, name) for array, name in zip(weights, names, strict=True)]
    takes = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["rows", *shape])
    gives = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 10])
    graph = helper.make_graph(nodes, "digits", [takes], [gives], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file.write_bytes(model.SerializeToString())


def _openvino(models: Models, folder: Path) -> Built:
    import openvino as ov

    model = ov.convert_model(models.build("onnx").path)
    ov.save_model(model, folder / "digits.xml", compress_to_fp16=False)
    compiled = ov.Core().compile_model(folder / "digits.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answers = compiled({"pixels": models.rows})["probabilities"]
    return Built(folder / "digits.xml", {"probabilities": np.array(answers)}, "openvino")


def _mxnet(models: Models, folder: Path) -> Built:
    if not MXNET_PYTHON.exists():
        pytest.skip("no environment with mxnet; make .venv-mxnet/.ready")
    act = "import sys, pathlib, numpy as n, mxnet_models as m; m.train_digits(n.load(sys.argv[1]), pathlib.Path('.'))"
    (folder / "model").mkdir()
    elsewhere([MXNET_PYTHON, "-W", "ignore", "-c", act, models.digits_file(folder)], folder / "model")
    with np.load(folder / "model" / "digits.npz") as kept:
        answers = kept["o0"]
    (folder / "model" / "digits.npz").unlink()
    (name,) = _outputs_of(folder / "model")
    return Built(folder / "model", {name: answers}, "onnxruntime_onnx", input="data")


def _caffe(models: Models, folder: Path) -> Built:
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV below version 5, which reads Caffe files")
    from sealane.compat.caffe.v1 import caffe_pb2

    weights, wanted = models.perceptron
    text = 'name: "digits" input: "data" input_shape { dim: 1 dim: 64 }\n'
    layers = [("h", "data", "h", "InnerProduct", "inner_product_param { num_output: 32 }")]
    layers += [("r", "h", "r", "ReLU", ""), ("s", "r", "s", "InnerProduct", "inner_product_param { num_output: 10 }")]
    for name, bottom, top, kind, more in [*layers, ("p", "s", "p", "Softmax", "")]:
        text += f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{top}" {more} }}\n'
    network = caffe_pb2.NetParameter()
    for name, matrix, bias in (("h", weights[0], weights[2]), ("s", weights[1], weights[3])):
        layer = network.layer.add(name=name)
        for array in (matrix.T, bias):
            layer.blobs.add(data=array.ravel()).shape.dim.extend(array.shape)
    content = network.SerializeToString()
    (folder / "digits.prototxt").write_text(text)
    (folder / "digits.caffemodel").write_bytes(content)
    reader = cv2.dnn.readNetFromCaffe(np.frombuffer(text.encode(), np.uint8), np.frombuffer(content, np.uint8))
    reader.setInput(models.rows)
    answers = reader.forward()
    np.testing.assert_allclose(answers, wanted, atol=1e-5)
    return Built(folder / "digits.prototxt", {"p": answers}, "onnxruntime_onnx", input="data")


def _torch(models: Models, folder: Path) -> Built:
    if not TORCH_PYTHON.exists():
        pytest.skip("no environment with torch; make .venv-torch/.ready (4.5 GB) or set SEALANE_TORCH_PYTHON")
    script = Path(__file__).with_name("torch_program.py")
    elsewhere([TORCH_PYTHON, "-W", "ignore", script, models.digits_file(folder), folder], folder)
    with np.load(folder / "answers.npz") as kept:
        wanted = dict(kept)
    return Built(folder / "digits.pt2", wanted, "torch")


_BUILDERS = {
    "savedmodel": _savedmodel,
    "keras": _keras,
    "litert": _litert,
    "litert-int8": _litert_int8,
    "onnx": _onnx,
    "openvino": _openvino,
    "mxnet": _mxnet,
    "caffe": _caffe,
    "torch": _torch,
}
#: What is served: a format, or a format by another runtime than its own.
FRAMEWORKS = (*_BUILDERS, "onnx-by-openvino", "savedmodel-by-openvino", "litert-by-openvino")


def _outputs_of(folder: Path) -> list[str]:
    from sealane.client import model_files

    return [spec.name for spec in model_files.inspect(folder).signatures[0].outputs]


def elsewhere(command: list[Path | str], folder: Path) -> None:
    """Run a script in another environment and in `folder`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(SCRIPTS), SOURCES))}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
