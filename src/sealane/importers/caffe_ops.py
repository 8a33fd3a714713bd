"""Caffe's layers in ONNX: those that work element by element, and the list of all."""

from __future__ import annotations

import math

from sealane.importers.caffe_layer import Layer, Operator
from sealane.importers.caffe_neural import NEURAL_OPERATORS
from sealane.importers.caffe_shapes import SHAPE_OPERATORS


def _eltwise(layer: Layer) -> str:
    told, graph = layer.told.eltwise_param, layer.graph
    if told.operation == told.MAX:
        return graph.add("Max", *layer.inputs)
    if told.operation == told.PROD:
        product = layer.x
        for name in layer.inputs[1:]:
            product = graph.add("Mul", product, name)
        return product
    parts = layer.inputs
    if told.coeff:
        if len(told.coeff) != len(parts):
            raise layer.refuse(f"with {len(told.coeff)} coefficients for {len(parts)} blobs")
        parts = [graph.add("Mul", name, graph.scalar(factor)) for name, factor in zip(parts, told.coeff, strict=True)]
    return graph.add("Sum", *parts)


def _relu(layer: Layer) -> str:
    slope = layer.told.relu_param.negative_slope
    return layer.graph.add("LeakyRelu", layer.x, alpha=slope) if slope else layer.graph.add("Relu", layer.x)


def _linear(layer: Layer, scale: float, shift: float) -> str:
    """A factor and a summand, left out where they change nothing."""
    x, graph = layer.x, layer.graph
    if scale != 1:
        x = graph.add("Mul", x, graph.scalar(scale))
    return graph.add("Add", x, graph.scalar(shift)) if shift else x


def _power(layer: Layer) -> str:
    told = layer.told.power_param
    base = _linear(layer, told.scale, told.shift)
    return base if told.power == 1 else layer.graph.add("Pow", base, layer.graph.scalar(told.power))


def _exp(layer: Layer) -> str:
    told = layer.told.exp_param
    inner = _linear(layer, told.scale, told.shift)
    if told.base > 0:
        inner = layer.graph.add("Mul", inner, layer.graph.scalar(math.log(told.base)))
    return layer.graph.add("Exp", inner)


def _log(layer: Layer) -> str:
    told = layer.told.log_param
    outer = layer.graph.add("Log", _linear(layer, told.scale, told.shift))
    return layer.graph.add("Div", outer, layer.graph.scalar(math.log(told.base))) if told.base > 0 else outer


def _swish(layer: Layer) -> str:
    graph = layer.graph
    inner = graph.add("Mul", layer.x, graph.scalar(layer.told.swish_param.beta))
    return graph.add("Mul", layer.x, graph.add("Sigmoid", inner))


def _clip(layer: Layer) -> str:
    told = layer.told.clip_param
    return layer.graph.add("Clip", layer.x, layer.graph.scalar(told.min), layer.graph.scalar(told.max))


def _softmax(layer: Layer) -> str:
    return layer.graph.add("Softmax", layer.x, axis=layer.axis(layer.told.softmax_param.axis))


def _unary(op: str) -> Operator:
    return lambda layer: layer.graph.add(op, layer.x)


def _pass(layer: Layer) -> list[str]:
    return [layer.x] * len(layer.told.top)


#: Writer of each layer type.
OPERATORS: dict[str, Operator] = {
    **NEURAL_OPERATORS,
    **SHAPE_OPERATORS,
    "AbsVal": _unary("Abs"),
    "BNLL": _unary("Softplus"),
    "Clip": _clip,
    "Dropout": _pass,
    "ELU": lambda layer: layer.graph.add("Elu", layer.x, alpha=layer.told.elu_param.alpha),
    "Eltwise": _eltwise,
    "Exp": _exp,
    "Log": _log,
    "Power": _power,
    "ReLU": _relu,
    "Sigmoid": _unary("Sigmoid"),
    "Softmax": _softmax,
    "Split": _pass,
    "Swish": _swish,
    "TanH": _unary("Tanh"),
}
