"""Caffe's layers with weights, its pooling and normalisation, in ONNX."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sealane.compat.caffe.v1 import caffe_pb2 as pb
from sealane.importers.caffe_layer import Layer, Operator
from sealane.importers.onnx_graph import check_bias, shaped_for
from sealane.importers.pooling import Window, average_pool, max_pool


def _pair(listed: Sequence[int], height: int, width: int, default: int) -> tuple[int, int]:
    """A size for rows and columns from the three ways in which Caffe writes it."""
    if height or width:
        return height, width
    if not listed:
        return default, default
    return listed[0], listed[-1]


def _convolve(layer: Layer, op: str) -> str:
    told, kernels = layer.told.convolution_param, layer.weights(0)
    if layer.rank != 4 or kernels.ndim != 4 or layer.axis(told.axis) != 1 or len(told.kernel_size) > 2:
        raise layer.refuse("of other than two dimensions")
    pad = _pair(told.pad, told.pad_h, told.pad_w, 0)
    outputs = kernels.shape[0] if op == "Conv" else kernels.shape[1] * told.group
    bias = [_bias_of(layer, outputs)] if told.bias_term else []
    return layer.graph.add(
        op,
        layer.x,
        layer.graph.constant(kernels),
        *bias,
        kernel_shape=list(kernels.shape[2:]),
        strides=list(_pair(told.stride, told.stride_h, told.stride_w, 1)),
        dilations=list(_pair(told.dilation, 0, 0, 1)),
        pads=[*pad, *pad],
        group=told.group,
    )


def _bias_of(layer: Layer, outputs: int) -> str:
    return layer.graph.constant(check_bias(layer.told.name, layer.weights(1), outputs))


def _inner_product(layer: Layer) -> str:
    told = layer.told.inner_product_param
    matrix = layer.weights(0)
    # Old files write four dimensions, two of them 1.
    matrix = matrix.reshape(matrix.shape[-2:]) if matrix.ndim > 2 else matrix
    if layer.axis(told.axis) != 1 or matrix.ndim != 2:
        raise layer.refuse("from another axis than 1")
    bias = [_bias_of(layer, matrix.shape[int(told.transpose)])] if told.bias_term else []
    flat = layer.graph.add("Flatten", layer.x, rank=2, axis=1)
    return layer.graph.add("Gemm", flat, layer.graph.constant(matrix), *bias, transB=int(not told.transpose))


def _pooling(layer: Layer) -> str:
    told, graph = layer.told.pooling_param, layer.graph
    if told.pool == told.STOCHASTIC:
        raise layer.refuse("by chance")
    if layer.rank != 4 or len(layer.told.top) > 1:
        raise layer.refuse("of other than two dimensions, or with a mask")
    if told.global_pooling:
        return graph.add("GlobalMaxPool" if told.pool == told.MAX else "GlobalAveragePool", layer.x)
    window = Window(
        _pair([told.kernel_size], told.kernel_h, told.kernel_w, 1),
        _pair([told.stride], told.stride_h, told.stride_w, 1),
        _pair([told.pad], told.pad_h, told.pad_w, 0),
        ceil=told.round_mode == told.CEIL,
    )
    if window.may_end_outside:
        raise layer.refuse("rounded up, whose last window may lie outside the input")
    if told.pool == told.MAX:
        return max_pool(graph, layer.x, window)
    return average_pool(graph, layer.x, window, count_padding=True)


def _lrn(layer: Layer) -> str:
    told, graph = layer.told.lrn_param, layer.graph
    if told.local_size % 2 == 0:
        raise layer.refuse("of an even size")
    if told.norm_region == told.ACROSS_CHANNELS:
        return graph.add("LRN", layer.x, alpha=told.alpha, beta=told.beta, bias=told.k, size=told.local_size)
    half = (told.local_size - 1) // 2
    window = Window((told.local_size,) * 2, (1, 1), (half, half), ceil=False)
    mean = average_pool(graph, graph.add("Mul", layer.x, layer.x), window, count_padding=True)
    base = graph.add("Add", graph.add("Mul", mean, graph.scalar(told.alpha)), graph.scalar(1))
    return graph.add("Div", layer.x, graph.add("Pow", base, graph.scalar(told.beta)))


def _batch_norm(layer: Layer) -> str:
    mean, variance, factor = (np.asarray(layer.weights(place), np.float32).reshape(-1) for place in range(3))
    # The sums of running means, and how many they are.
    share = np.float32(1 / factor[0] if factor.size and factor[0] else 0)
    graph = layer.graph
    parts = (np.ones_like(mean), np.zeros_like(mean), mean * share, variance * share)
    return graph.add(
        "BatchNormalization",
        layer.x,
        *(graph.constant(part) for part in parts),
        epsilon=layer.told.batch_norm_param.eps,
    )


def _spread(layer: Layer, place: int, told: pb.ScaleParameter | pb.BiasParameter) -> str:
    """A weight, or the second input, shaped to broadcast over the first."""
    axis = layer.axis(told.axis)
    if len(layer.inputs) == 1:
        weights = layer.weights(place)
        # Files of a different age write leading ones.
        kept = weights.reshape(-1) if told.num_axes == 1 else weights
        return shaped_for(layer.graph, layer.x, kept, axis)
    graph, rank = layer.graph, layer.graph.ranks[layer.inputs[1]]
    missing = list(range(rank, layer.rank - axis))
    if not missing:
        return layer.inputs[1]
    return graph.add("Unsqueeze", layer.inputs[1], graph.integers(missing), rank=layer.rank - axis)


def _scale(layer: Layer) -> str:
    told, graph = layer.told.scale_param, layer.graph
    scaled = graph.add("Mul", layer.x, _spread(layer, 0, told), rank=layer.rank)
    if not told.bias_term:
        return scaled
    bias = layer.weights(len(layer.blobs) - 1)
    bias = bias.reshape(-1) if told.num_axes == 1 else bias
    return graph.add("Add", scaled, shaped_for(graph, layer.x, bias, layer.axis(told.axis)))


def _bias(layer: Layer) -> str:
    return layer.graph.add("Add", layer.x, _spread(layer, 0, layer.told.bias_param), rank=layer.rank)


def _prelu(layer: Layer) -> str:
    slopes = layer.weights(0).reshape(-1)
    # One for all channels has no axis of its own.
    shaped = shaped_for(layer.graph, layer.x, slopes, layer.rank - 1 if slopes.size == 1 else 1)
    return layer.graph.add("PRelu", layer.x, shaped)


NEURAL_OPERATORS: dict[str, Operator] = {
    "BatchNorm": _batch_norm,
    "Bias": _bias,
    "Convolution": lambda layer: _convolve(layer, "Conv"),
    "Deconvolution": lambda layer: _convolve(layer, "ConvTranspose"),
    "InnerProduct": _inner_product,
    "LRN": _lrn,
    "PReLU": _prelu,
    "Pooling": _pooling,
    "Scale": _scale,
}
