"""MXNet's layers with weights, its pooling, normalisation and activations, in ONNX."""

from __future__ import annotations

import math

import numpy as np

from sealane.importers.mxnet_layer import Layer, Operator
from sealane.importers.onnx_graph import check_bias, shaped_for
from sealane.importers.pooling import Window, average_pool, max_pool

_ACTIVATIONS = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "softrelu": "Softplus",
    "softsign": "Softsign",
}


def _fully_connected(layer: Layer) -> str:
    graph, weights, bias = layer.graph, layer.weights(1), layer.inputs[2:3]
    if weights.ndim != 2:
        raise layer.refuse("with weights that are no matrix")
    if bias:
        check_bias(layer.name, layer.weights(2), weights.shape[0])
    if layer.attributes.flag("flatten", True):
        flat = graph.add("Flatten", layer.x, rank=2, axis=1)
        return graph.add("Gemm", flat, layer.inputs[1], *bias, transB=1)
    product = graph.add("MatMul", layer.x, graph.constant(weights.T.copy()))
    return graph.add("Add", product, *bias) if bias else product


def _convolution(layer: Layer) -> str:
    attributes, weights = layer.attributes, layer.weights(1)
    size = weights.ndim - 2
    _check_layout(layer)
    if layer.inputs[2:]:
        check_bias(layer.name, layer.weights(2), weights.shape[0])
    pad = attributes.integers("pad", (0,) * size)
    return layer.graph.add(
        "Conv",
        *layer.inputs[:3],
        kernel_shape=list(weights.shape[2:]),
        strides=list(attributes.integers("stride", (1,) * size)),
        dilations=list(attributes.integers("dilate", (1,) * size)),
        pads=[*pad, *pad],
        group=attributes.integer("num_group", 1),
    )


def _deconvolution(layer: Layer) -> str:
    attributes, weights = layer.attributes, layer.weights(1)
    size = weights.ndim - 2
    _check_layout(layer)
    if attributes.integers("target_shape"):
        raise layer.refuse("with a target_shape")
    groups = attributes.integer("num_group", 1)
    if layer.inputs[2:]:
        check_bias(layer.name, layer.weights(2), weights.shape[1] * groups)
    pad = attributes.integers("pad", (0,) * size)
    return layer.graph.add(
        "ConvTranspose",
        *layer.inputs[:3],
        kernel_shape=list(weights.shape[2:]),
        strides=list(attributes.integers("stride", (1,) * size)),
        dilations=list(attributes.integers("dilate", (1,) * size)),
        output_padding=list(attributes.integers("adj", (0,) * size)),
        pads=[*pad, *pad],
        group=groups,
    )


def _check_layout(layer: Layer) -> None:
    layout = layer.attributes.text("layout", "None")
    if layout not in ("None", "NCW", "NCHW", "NCDHW"):
        raise layer.refuse(f"with the layout {layout}")


def _batch_norm(layer: Layer) -> str:
    if layer.attributes.integer("axis", 1) != 1:
        raise layer.refuse("over another axis than 1")
    gamma, beta, mean, variance = layer.inputs[1:5]
    if layer.attributes.flag("fix_gamma", True):
        gamma = layer.graph.constant(np.ones_like(layer.weights(1)))
    return layer.graph.add(
        "BatchNormalization", layer.x, gamma, beta, mean, variance, epsilon=layer.attributes.number("eps", 1e-3)
    )


def _layer_norm(layer: Layer) -> str:
    return layer.graph.add(
        "LayerNormalization",
        *layer.inputs[:3],
        axis=layer.attributes.integer("axis", -1),
        epsilon=layer.attributes.number("eps", 1e-5),
    )


def _instance_norm(layer: Layer) -> str:
    epsilon = layer.attributes.number("eps", 1e-3)
    return layer.graph.add("InstanceNormalization", *layer.inputs[:3], epsilon=epsilon)


def _pooling(layer: Layer) -> str:
    attributes, graph = layer.attributes, layer.graph
    kind = attributes.text("pool_type", "max")
    _check_layout(layer)
    if attributes.flag("global_pool", False):
        ops = {"max": "GlobalMaxPool", "avg": "GlobalAveragePool"}
        if kind not in ops:
            raise layer.refuse(f"over all, with pool_type {kind}")
        return graph.add(ops[kind], layer.x)
    kernel = attributes.integers("kernel")
    convention = attributes.text("pooling_convention", "valid")
    if convention not in ("valid", "full") or len(kernel) != graph.ranks[layer.x] - 2:
        raise layer.refuse(f"with pooling_convention {convention}, kernel {kernel}")
    pad = attributes.integers("pad", (0,) * len(kernel))
    strides = attributes.integers("stride", (1,) * len(kernel))
    window = Window(kernel, strides, pad, ceil=convention == "full")
    if window.may_end_outside:
        raise layer.refuse("rounded up, whose last window may lie outside the input")
    if kind == "max":
        return max_pool(graph, layer.x, window)
    if kind not in ("avg", "sum"):
        raise layer.refuse(f"with pool_type {kind}")
    padded = attributes.flag("count_include_pad", True)
    if kind == "avg":
        return average_pool(graph, layer.x, window, count_padding=padded)
    if convention == "full":
        raise layer.refuse("with pool_type sum and pooling_convention full")
    mean = average_pool(graph, layer.x, window, count_padding=True)
    return graph.add("Mul", mean, graph.scalar(math.prod(kernel)))


def _activation(layer: Layer) -> str:
    kind = layer.attributes.text("act_type", "")
    if kind not in _ACTIVATIONS:
        raise layer.refuse(f"with act_type {kind}")
    return layer.graph.add(_ACTIVATIONS[kind], layer.x)


def _leaky_relu(layer: Layer) -> str:
    graph, attributes = layer.graph, layer.attributes
    kind, slope = attributes.text("act_type", "leaky"), attributes.number("slope", 0.25)
    if kind == "leaky":
        return graph.add("LeakyRelu", layer.x, alpha=slope)
    if kind == "elu":
        return graph.add("Elu", layer.x, alpha=slope)
    if kind == "selu":
        return graph.add("Selu", layer.x)
    if kind == "rrelu":
        # Random in training only; afterwards its mean.
        low, high = attributes.number("lower_bound", 0.125), attributes.number("upper_bound", 0.334)
        return graph.add("LeakyRelu", layer.x, alpha=(low + high) / 2)
    if kind == "prelu":
        slopes = layer.weights(1).reshape(-1)
        return graph.add("PRelu", layer.x, shaped_for(graph, layer.x, slopes, 0 if slopes.size == 1 else 1))
    if kind == "gelu":
        half = graph.add("Erf", graph.add("Mul", layer.x, graph.scalar(math.sqrt(0.5))))
        share = graph.add("Mul", graph.add("Add", half, graph.scalar(1)), graph.scalar(0.5))
        return graph.add("Mul", layer.x, share)
    raise layer.refuse(f"with act_type {kind}")


def _softmax(layer: Layer) -> str:
    temperature = layer.attributes.number("temperature", 1)
    x = layer.x
    if temperature != 1:
        x = layer.graph.add("Div", x, layer.graph.scalar(temperature))
    op = "LogSoftmax" if layer.op == "log_softmax" else "Softmax"
    return layer.graph.add(op, x, axis=layer.attributes.integer("axis", -1))


def _softmax_output(layer: Layer) -> str:
    attributes, rank = layer.attributes, layer.graph.ranks[layer.x]
    if attributes.flag("multi_output", False) or attributes.text("mode", "instance") == "channel":
        return layer.graph.add("Softmax", layer.x, axis=1)
    if rank > 2 and not attributes.flag("preserve_shape", False):
        raise layer.refuse("over several axes at once")
    return layer.graph.add("Softmax", layer.x, axis=-1)


def _l2_normalization(layer: Layer) -> str:
    graph, mode = layer.graph, layer.attributes.text("mode", "instance")
    rank = graph.ranks[layer.x]
    axes = {"instance": range(1, rank), "channel": range(1, 2), "spatial": range(2, rank)}.get(mode)
    if axes is None:
        raise layer.refuse(f"with mode {mode}")
    squares = graph.add("Mul", layer.x, layer.x)
    total = graph.add("ReduceSum", squares, graph.integers(list(axes)), keepdims=1)
    length = graph.add("Sqrt", graph.add("Add", total, graph.scalar(layer.attributes.number("eps", 1e-10))))
    return graph.add("Div", layer.x, length)


def _lrn(layer: Layer) -> str:
    attributes = layer.attributes
    return layer.graph.add(
        "LRN",
        layer.x,
        alpha=attributes.number("alpha", 1e-4),
        beta=attributes.number("beta", 0.75),
        bias=attributes.number("knorm", 2.0),
        size=attributes.integer("nsize", 5),
    )


def _embedding(layer: Layer) -> str:
    graph = layer.graph
    places = graph.add("Cast", layer.x, to=7)  # onnx.TensorProto.INT64
    return graph.add("Gather", layer.inputs[1], places, rank=graph.ranks[layer.x] + 1, axis=0)


NEURAL_OPERATORS: dict[str, Operator] = {
    "FullyConnected": _fully_connected,
    "Convolution": _convolution,
    "Convolution_v1": _convolution,
    "Deconvolution": _deconvolution,
    "BatchNorm": _batch_norm,
    "BatchNorm_v1": _batch_norm,
    "LayerNorm": _layer_norm,
    "InstanceNorm": _instance_norm,
    "Pooling": _pooling,
    "Pooling_v1": _pooling,
    "Activation": _activation,
    "LeakyReLU": _leaky_relu,
    "softmax": _softmax,
    "log_softmax": _softmax,
    "SoftmaxOutput": _softmax_output,
    "Softmax": _softmax_output,
    "SoftmaxActivation": _softmax_output,
    "L2Normalization": _l2_normalization,
    "LRN": _lrn,
    "Embedding": _embedding,
}
