"""The models of the bench: built here, with random weights from a fixed seed, so that every run serves the same files.

MLP 64-64-32-10, the mean of a tensor at three sizes, MobileNetV2 in float32 (ONNX) and in int8 (LiteRT). Needs `onnx`
and, for the int8 one, TensorFlow.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

#: Bottlenecks of MobileNetV2 (Sandler et al. 2018, table 2): expansion, channels, repeats, first stride.
BOTTLENECKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@dataclass(frozen=True, slots=True)
class Model:
    """One model file and its only input and output; `shape` is that of one request."""

    name: str
    title: str
    file: str
    input: str
    output: str
    datatype: str
    shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    @property
    def heavy(self) -> bool:
        """Whether a run takes longer than the call around it."""
        return self.name.startswith("mobilenet")

    def manifest(self, cores: int) -> str:
        """Our `sealane.json`: heavy models run on every core, as with Triton's instance count; small ones on one."""
        return json.dumps({"instances": cores if self.heavy else 1})

    def sample(self) -> npt.NDArray[np.generic]:
        """One request, the same every time."""
        random = np.random.default_rng(7)
        if self.datatype == "UINT8":
            return random.integers(0, 256, self.shape, np.uint8)
        return random.standard_normal(self.shape).astype(np.float32)


MODELS = {
    model.name: model
    for model in (
        Model("mlp", "MLP 64-64-32-10", "mlp.onnx", "x", "y", "FP32", (1, 64), (1, 10)),
        Model("image", "mean over a 600 KB image", "image.onnx", "x", "y", "FP32", (1, 150528), (1, 1)),
        Model("mobilenetv2", "MobileNetV2, float", "mobilenetv2.onnx", "x", "y", "FP32", (1, 3, 224, 224), (1, 1000)),
        Model(
            "mobilenetv2-int8",
            "MobileNetV2, int8 (LiteRT)",
            "mobilenetv2-int8.tflite",
            "x",
            "y",
            "UINT8",
            (1, 224, 224, 3),
            (1, 1000),
        ),
        Model("mean-1k", "mean over 1 KB", "mean-1k.onnx", "x", "y", "FP32", (1, 256), (1, 1)),
        Model("mean-150k", "mean over 150 KB", "mean-150k.onnx", "x", "y", "FP32", (1, 37632), (1, 1)),
    )
}


def build(folder: Path) -> Path:
    """Write what is missing into `folder`, and `models.json` that tells the servers what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for model in MODELS.values():
        path = folder / model.file
        if path.exists():
            continue
        made = _int8() if path.suffix == ".tflite" else _BUILDERS[model.name.split("-")[0]](model).SerializeToString()
        path.write_bytes(made)
    (folder / "models.json").write_text(json.dumps([asdict(model) for model in MODELS.values()], indent=1))
    return folder


class _Graph:
    """An ONNX graph that grows node by node."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int, fan_in: int) -> str:
        """Random numbers, scaled to keep the spread of what flows through."""
        from onnx import numpy_helper

        values = self.random.standard_normal(shape) * np.sqrt(2 / fan_in)
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def constant(self, array: npt.NDArray[np.generic]) -> str:
        """Numbers that are given."""
        from onnx import numpy_helper

        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def add(self, operation: str, *inputs: str, output: str = "", **attributes: object) -> str:
        """A node; returns the name of its output."""
        from onnx import helper

        name = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, list(inputs), [name], **attributes))
        return name

    def model(self, model: Model) -> onnx.ModelProto:
        """The whole graph, checked."""
        from onnx import TensorProto, checker, helper

        taken = helper.make_tensor_value_info(model.input, TensorProto.FLOAT, ["n", *model.shape[1:]])
        given = helper.make_tensor_value_info(model.output, TensorProto.FLOAT, ["n", *model.output_shape[1:]])
        graph = helper.make_graph(self.nodes, model.name, [taken], [given], self.weights)
        # An older format, so that every peer's ONNX Runtime reads it.
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        checker.check_model(made)
        return made


def _mlp(model: Model) -> onnx.ModelProto:
    graph, last = _Graph(), model.input
    sizes = (64, 64, 32, 10)
    for number, (before, after) in enumerate(itertools.pairwise(sizes)):
        final = number == len(sizes) - 2
        weight = graph.weight(before, after, fan_in=before)
        bias = graph.constant(np.zeros(after, np.float32))
        last = graph.add("Gemm", last, weight, bias, output=model.output if final else "")
        last = last if final else graph.add("Relu", last)
    return graph.model(model)


def _mean(model: Model) -> onnx.ModelProto:
    graph = _Graph()
    graph.add("ReduceMean", model.input, output=model.output, axes=[1], keepdims=1)
    return graph.model(model)


def _mobilenetv2(model: Model) -> onnx.ModelProto:
    graph = _Graph()
    six = (graph.constant(np.float32(0).reshape(())), graph.constant(np.float32(6).reshape(())))

    def convolve(data: str, before: int, after: int, *, kernel: int = 1, stride: int = 1, groups: int = 1) -> str:
        weight = graph.weight(after, before // groups, kernel, kernel, fan_in=before // groups * kernel * kernel)
        bias = graph.constant(np.zeros(after, np.float32))
        pads = [kernel // 2] * 4
        return graph.add("Conv", data, weight, bias, strides=[stride] * 2, pads=pads, group=groups)

    last, channels = graph.add("Clip", convolve(model.input, 3, 32, kernel=3, stride=2), *six), 32
    for expansion, after, repeats, first in BOTTLENECKS:
        for number in range(repeats):
            stride, wide, kept = (first if number == 0 else 1), channels * expansion, last
            if expansion > 1:
                last = graph.add("Clip", convolve(last, channels, wide), *six)
            last = graph.add("Clip", convolve(last, wide, wide, kernel=3, stride=stride, groups=wide), *six)
            last = convolve(last, wide, after)
            if stride == 1 and channels == after:
                last = graph.add("Add", last, kept)
            channels = after
    last = graph.add("Clip", convolve(last, channels, 1280), *six)
    last = graph.add("Flatten", graph.add("GlobalAveragePool", last), axis=1)
    weight, bias = graph.weight(1280, 1000, fan_in=1280), graph.constant(np.zeros(1000, np.float32))
    graph.add("Softmax", graph.add("Gemm", last, weight, bias), output=model.output, axis=1)
    return graph.model(model)


_BUILDERS = {"mlp": _mlp, "image": _mean, "mean": _mean, "mobilenetv2": _mobilenetv2}


def _int8() -> bytes:
    """MobileNetV2 of Keras, quantised on random pictures: uint8 pixels in, float32 out."""
    import tensorflow as tf

    keras = tf.keras
    keras.utils.set_random_seed(0)
    pixels = keras.Input((224, 224, 3), name="x")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1)(pixels)
    # Scores, not probabilities: a thousand of these would all be less than a step of int8.
    network = keras.applications.MobileNetV2(weights=None, input_shape=(224, 224, 3), classifier_activation=None)
    random = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.DepthwiseConv2D | keras.layers.Conv2D | keras.layers.Dense):
            kernel = layer.get_weights()[0]
            fan_in = 9 if isinstance(layer, keras.layers.DepthwiseConv2D) else np.prod(kernel.shape[:-1])
            # Of a scale that survives fifty layers: untrained weights of Keras end in zeros.
            scaled_weights = random.standard_normal(kernel.shape) * np.sqrt(2 / fan_in)
            layer.set_weights([scaled_weights.astype(np.float32), *layer.get_weights()[1:]])
    model = keras.Model(pixels, {"y": network(scaled)})
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (
        [random.integers(0, 256, (1, 224, 224, 3)).astype(np.float32)] for _ in range(8)
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8
    return bytes(converter.convert())
