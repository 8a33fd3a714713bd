"""Caffe models turned into ONNX answer as OpenCV's own reader of Caffe files does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from small_models import Digits, Perceptron

from sealane.client import model_files
from sealane.compat.caffe.v1 import caffe_pb2 as pb
from sealane.importers import caffe
from sealane.registry.v1 import variant_service_pb2 as registry_pb
from sealane.tensors import Array, TensorSpec
from sealane_worker.runtimes import Runtime, RuntimeOptions, create_runtime

cv2 = pytest.importorskip("cv2", reason="needs OpenCV below version 5, which reads Caffe files")

SHAPE = (2, 4, 8, 10)
Weights = Mapping[str, Sequence[Array]]


def random(*shape: int) -> Array:
    return np.random.default_rng(shape).normal(0, 0.5, shape).astype(np.float32)


def positive(*shape: int) -> Array:
    return np.abs(random(*shape)) + 0.5


def layer(kind: str, bottom: str, top: str, parameters: str = "") -> str:
    bottoms = " ".join(f'bottom: "{name}"' for name in bottom.split())
    tops = " ".join(f'top: "{name}"' for name in top.split())
    return f'layer {{ name: "{top.split()[0]}_{kind}" type: "{kind}" {bottoms} {tops} {parameters} }}\n'


def header(shape: Sequence[int] = SHAPE) -> str:
    sizes = " ".join(f"dim: {size}" for size in shape)
    return f'name: "n"\ninput: "data"\ninput_shape {{ {sizes} }}\n'


def caffemodel(weights: Weights, old: bool = False) -> bytes:
    """Weights as Caffe writes them: `old` in the form before 2015."""
    network = pb.NetParameter()
    for name, arrays in weights.items():
        item = network.layers.add(name=name) if old else network.layer.add(name=name)
        for array in arrays:
            blob = item.blobs.add(data=np.asarray(array, np.float32).ravel())
            if old:
                sizes = (1,) * (4 - array.ndim) + array.shape
                blob.num, blob.channels, blob.height, blob.width = sizes
            else:
                blob.shape.dim.extend(array.shape)
    return network.SerializeToString()


@dataclass(frozen=True)
class Both:
    """A network in OpenCV and, turned into ONNX, in our runtime."""

    theirs: object
    ours: Runtime

    def compare(self, rows: Array) -> Array:
        self.theirs.setInput(rows)  # type: ignore[attr-defined]
        wanted = self.theirs.forward(self.theirs.getUnconnectedOutLayersNames())  # type: ignore[attr-defined]
        (answer,) = self.ours.run({"data": rows}, "serving_default").values()
        assert answer.shape == wanted[0].shape
        np.testing.assert_allclose(answer, wanted[0], atol=2e-5, rtol=1e-4)
        return answer


def both(folder: Path, text: str, weights: Weights, *, old: bool = False) -> Both:
    content = caffemodel(weights, old)
    # OpenCV's own subset calls rounding down ceil_mode, with another type under the same number.
    theirs = text.replace("round_mode: FLOOR", "ceil_mode: false").replace("round_mode: CEIL", "")
    network = cv2.dnn.readNetFromCaffe(np.frombuffer(theirs.encode(), np.uint8), np.frombuffer(content, np.uint8))
    (folder / "net.prototxt").write_text(text)
    (folder / "net.caffemodel").write_bytes(content)
    (folder / "net.onnx").write_bytes(caffe.to_onnx(folder / "net.prototxt", folder / "net.caffemodel"))
    runtime = create_runtime("onnxruntime")
    runtime.load(folder / "net.onnx", RuntimeOptions())
    return Both(network, runtime)


def test_a_trained_model_answers_as_it_was_trained_and_is_pushed_as_onnx(
    perceptron: Perceptron, digits: Digits, tmp_path: Path
) -> None:
    first, first_bias, second, second_bias = perceptron.weights
    text = (
        header((1, 64))
        + layer("InnerProduct", "data", "h", "inner_product_param { num_output: 32 }")
        + layer("ReLU", "h", "h")
        + layer("InnerProduct", "h", "s", "inner_product_param { num_output: 10 }")
        + layer("Softmax", "s", "p")
    )
    weights = {"h_InnerProduct": [first.T, first_bias], "s_InnerProduct": [second.T, second_bias]}
    answer = both(tmp_path, text, weights).compare(digits.test)
    np.testing.assert_allclose(answer, perceptron.answers, atol=1e-5)
    (tmp_path / "net.onnx").unlink()
    local = model_files.inspect(tmp_path / "net.caffemodel")
    assert (local.format, set(local.files)) == (registry_pb.FORMAT_ONNX, {"model.onnx"})
    assert local.signatures[0].inputs == (TensorSpec("data", "FP32", (-1, 64)),)
    assert local.signatures[0].outputs == (TensorSpec("p", "FP32", (-1, 10)),)


def test_a_network_of_convolutions(tmp_path: Path) -> None:
    text = (
        header()
        + layer("Convolution", "data", "c", "convolution_param { num_output: 6 kernel_size: 3 pad: 1 stride: 2 }")
        + layer("BatchNorm", "c", "c")
        + layer("Scale", "c", "c", "scale_param { bias_term: true }")
        + layer("ReLU", "c", "c")
        + layer("Convolution", "c", "d", "convolution_param { num_output: 6 kernel_size: 3 pad: 1 group: 6 }")
        + layer("Eltwise", "c d", "e", "eltwise_param { operation: SUM coeff: 1 coeff: -0.5 }")
        + layer("Pooling", "e", "p", "pooling_param { pool: AVE global_pooling: true }")
        + layer("Dropout", "p", "p", "dropout_param { dropout_ratio: 0.5 }")
        + layer("InnerProduct", "p", "f", "inner_product_param { num_output: 3 }")
    )
    weights = {
        "c_Convolution": [random(6, 4, 3, 3), random(6)],
        "c_BatchNorm": [random(6), positive(6), np.array([2.0])],
        "c_Scale": [random(6), random(6, 1)[:, 0]],
        "d_Convolution": [random(6, 1, 3, 3), random(6)],
        "f_InnerProduct": [random(3, 6), random(3)],
    }
    found = both(tmp_path, text, weights)
    found.compare(random(*SHAPE))
    one = found.ours.run({"data": random(5, *SHAPE[1:])}, "serving_default")
    assert one["f"].shape == (5, 3)


@pytest.mark.parametrize("rounding", ["CEIL", "FLOOR"])
@pytest.mark.parametrize("pool", ["MAX", "AVE"])
@pytest.mark.parametrize(
    ("kernel", "stride", "pad"), [(3, 2, 0), (3, 2, 1), (2, 2, 0), (3, 3, 0), (2, 1, 0), (3, 1, 1)]
)
def test_pooling_rounds_as_caffe(kernel: int, stride: int, pad: int, pool: str, rounding: str, tmp_path: Path) -> None:
    told = f"pool: {pool} kernel_size: {kernel} stride: {stride} pad: {pad} round_mode: {rounding}"
    both(tmp_path, header() + layer("Pooling", "data", "p", f"pooling_param {{ {told} }}"), {}).compare(random(*SHAPE))


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("LRN", "lrn_param { local_size: 3 alpha: 0.1 beta: 0.6 }"),
        ("LRN", "lrn_param { local_size: 3 alpha: 0.1 beta: 0.6 norm_region: WITHIN_CHANNEL }"),
        ("ReLU", "relu_param { negative_slope: 0.2 }"),
        ("Sigmoid", ""),
        ("TanH", ""),
        ("ELU", "elu_param { alpha: 1 }"),
        ("AbsVal", ""),
        ("BNLL", ""),
        ("Power", "power_param { power: 2 scale: 0.5 shift: 1 }"),
        ("Exp", "exp_param { base: 2 scale: 0.5 shift: 0.1 }"),
        ("Softmax", ""),
        ("Flatten", ""),
        ("Reshape", "reshape_param { shape { dim: 0 dim: -1 dim: 10 } }"),
        ("Split", ""),
    ],
)
def test_a_layer_without_weights(kind: str, parameters: str, tmp_path: Path) -> None:
    both(tmp_path, header() + layer(kind, "data", "out", parameters), {}).compare(random(*SHAPE))


@pytest.mark.parametrize(
    ("kind", "parameters", "weights"),
    [
        ("PReLU", "", [positive(4)]),
        ("PReLU", "prelu_param { channel_shared: true }", [positive(1)]),
        ("InnerProduct", "inner_product_param { num_output: 5 bias_term: false }", [random(5, 320)]),
        (
            "Deconvolution",
            "convolution_param { num_output: 6 kernel_size: 4 stride: 2 pad: 1 group: 2 }",
            [random(4, 3, 4, 4), random(6)],
        ),
        (
            "Convolution",
            "convolution_param { num_output: 2 kernel_h: 3 kernel_w: 1 stride_h: 2 stride_w: 1 pad_h: 1 pad_w: 0 }",
            [random(2, 4, 3, 1), random(2)],
        ),
        (
            "Convolution",
            "convolution_param { num_output: 2 kernel_size: 3 dilation: 2 pad: 2 }",
            [random(2, 4, 3, 3), random(2)],
        ),
        ("Scale", "", [random(4)]),
    ],
)
def test_a_layer_with_weights(kind: str, parameters: str, weights: list[Array], tmp_path: Path) -> None:
    text = header() + layer(kind, "data", "out", parameters)
    both(tmp_path, text, {f"out_{kind}": weights}).compare(random(*SHAPE))


@pytest.mark.parametrize(
    "text",
    [
        layer("Slice", "data", "a b", "slice_param { slice_point: 1 }") + layer("Concat", "b a", "o"),
        layer("Slice", "data", "a b") + layer("Concat", "b a", "o", "concat_param { axis: 2 }"),
        layer("Power", "data", "q", "power_param { shift: 1 }")
        + layer("Eltwise", "data q", "e", "eltwise_param { operation: MAX }")
        + layer("Eltwise", "q e", "x", "eltwise_param { operation: PROD }"),
        layer("Pooling", "data", "q", "pooling_param { kernel_size: 3 stride: 1 }")
        + layer("Crop", "data q", "e", "crop_param { offset: 1 }"),
    ],
)
def test_layers_that_cut_and_join(text: str, tmp_path: Path) -> None:
    both(tmp_path, header() + text, {}).compare(random(*SHAPE))


def test_files_from_before_2015(tmp_path: Path) -> None:
    text = """
    name: "old" input: "data" input_dim: 2 input_dim: 4 input_dim: 8 input_dim: 10
    layers { name: "c" type: CONVOLUTION bottom: "data" top: "c" blobs_lr: 1
             convolution_param { num_output: 6 kernel_size: 3 group: 2 } }
    layers { name: "r" type: RELU bottom: "c" top: "c" }
    layers { name: "p" type: POOLING bottom: "c" top: "p" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
    layers { name: "f" type: INNER_PRODUCT bottom: "p" top: "f" inner_product_param { num_output: 3 } }
    layers { name: "s" type: SOFTMAX bottom: "f" top: "s" }
    """
    weights = {"c": [random(6, 2, 3, 3), random(6)], "f": [random(3, 72), random(3)]}
    both(tmp_path, text, weights, old=True).compare(random(*SHAPE))
