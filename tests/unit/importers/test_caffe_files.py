"""Caffe's files read without Caffe: old and new forms, phases, and files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from sealane.compat.caffe.v1 import caffe_pb2 as pb
from sealane.errors import InvalidArgument
from sealane.importers import caffe
from sealane.importers.caffe_files import read_network
from sealane.tensors import Array

DENSE = """
name: "n"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 2 } }
"""
MATRIX = np.arange(6, dtype=np.float32).reshape(2, 3)
BIAS = np.array([1, -1], np.float32)


def model(*arrays: Array, name: str = "fc") -> pb.NetParameter:
    network = pb.NetParameter()
    layer = network.layer.add(name=name)
    for array in arrays:
        layer.blobs.add(data=array.ravel()).shape.dim.extend(array.shape)
    return network


def write(folder: Path, text: str, weights: pb.NetParameter | bytes) -> tuple[Path, Path]:
    (folder / "n.prototxt").write_text(text)
    content = weights if isinstance(weights, bytes) else weights.SerializeToString()
    (folder / "n.caffemodel").write_bytes(content)
    return folder / "n.prototxt", folder / "n.caffemodel"


def run(content: bytes, rows: Array) -> Array:
    (answer,) = ort.InferenceSession(content).run(None, {"data": rows})
    return np.asarray(answer)


def test_a_dense_layer_becomes_onnx_that_computes_it(tmp_path: Path) -> None:
    rows = np.array([[1, 2, 3], [0, 0, 1]], np.float32)
    answer = run(caffe.to_onnx(*write(tmp_path, DENSE, model(MATRIX, BIAS))), rows)
    np.testing.assert_allclose(answer, rows @ MATRIX.T + BIAS)


@pytest.mark.parametrize(
    "extra",
    [
        'layer { name: "l" type: "SoftmaxWithLoss" bottom: "fc" top: "l" include { phase: TRAIN } }',
        'layer { name: "a" type: "Accuracy" bottom: "fc" top: "a" }',
        'layer { name: "a" type: "HDF5Data" top: "z" exclude { phase: TEST } }',
        "an_option_of_another_fork: 3 other { deep { er: 1 } }",
    ],
)
def test_what_only_learning_needs_is_left_out(extra: str, tmp_path: Path) -> None:
    rows = np.ones((1, 3), np.float32)
    answer = run(caffe.to_onnx(*write(tmp_path, DENSE + extra, model(MATRIX, BIAS))), rows)
    np.testing.assert_allclose(answer, rows @ MATRIX.T + BIAS)


def test_double_precision_weights_and_an_input_changed_in_place(tmp_path: Path) -> None:
    text = 'input: "data" input_shape { dim: 1 dim: 2 }\nlayer { name: "s" type: "Scale" bottom: "data" top: "data" }'
    network = pb.NetParameter()
    network.layer.add(name="s").blobs.add(double_data=[2, 3]).shape.dim.append(2)
    content = caffe.to_onnx(*write(tmp_path, text, network))
    assert run(content, np.ones((1, 2), np.float32)).tolist() == [[2, 3]]


def test_an_operator_that_is_not_covered_is_named_with_its_layer(tmp_path: Path) -> None:
    text = DENSE + 'layer { name: "rpn" type: "Proposal" bottom: "fc" top: "rois" }'
    with pytest.raises(InvalidArgument, match="'rpn' is a Proposal") as caught:
        caffe.to_onnx(*write(tmp_path, text, model(MATRIX, BIAS)))
    assert caught.value.reason == "OPERATOR_NOT_COVERED"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no network {",
        "{" * 20_000,
        DENSE.replace("dim: 1 dim: 3", ""),
        DENSE.replace("dim: 1 dim: 3", "dim: 1 dim: -3"),
        DENSE.replace('bottom: "data"', 'bottom: "nowhere"'),
        DENSE.replace('bottom: "data"', ""),
        'input: "data"' + DENSE,
        'layer { name: "d" type: "ImageData" top: "data" }' + DENSE,
        DENSE.replace("num_output: 2", "num_output: 2 axis: 7"),
    ],
)
def test_a_text_that_is_no_network_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument):
        caffe.to_onnx(*write(tmp_path, text, model(MATRIX, BIAS)))


def test_weights_cut_at_any_length_are_refused(tmp_path: Path) -> None:
    content = model(MATRIX, BIAS).SerializeToString()
    for size in range(len(content)):
        with pytest.raises(InvalidArgument):
            caffe.to_onnx(*write(tmp_path, DENSE, content[:size]))


@pytest.mark.parametrize("shape", [[2**40, 2**40], [-2, -3], [7], [1] * 99])
def test_lies_about_the_size_of_weights_are_refused(shape: list[int], tmp_path: Path) -> None:
    network = model(MATRIX, BIAS)
    network.layer[0].blobs[0].shape.dim[:] = shape
    with pytest.raises(InvalidArgument, match="elements"):
        read_network(*write(tmp_path, DENSE, network))


def test_pooling_whose_last_window_may_be_empty_is_refused(tmp_path: Path) -> None:
    text = 'input: "data" input_shape { dim: 1 dim: 1 dim: 8 dim: 8 }\n'
    text += 'layer { name: "p" type: "Pooling" bottom: "data" top: "p" pooling_param { kernel_size: 1 stride: 2 } }'
    with pytest.raises(InvalidArgument, match="outside the input"):
        caffe.to_onnx(*write(tmp_path, text, pb.NetParameter()))
