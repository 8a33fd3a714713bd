"""MXNet's operators in ONNX: those that work element by element, and the list of all."""

from __future__ import annotations

from sealane.importers.mxnet_layer import Layer, Operator
from sealane.importers.mxnet_neural import NEURAL_OPERATORS
from sealane.importers.mxnet_shapes import SHAPE_OPERATORS


def _clip(layer: Layer) -> str:
    low, high = layer.attributes.number("a_min", 0), layer.attributes.number("a_max", 0)
    return layer.graph.add("Clip", layer.x, layer.graph.scalar(low), layer.graph.scalar(high))


def _unary(op: str) -> Operator:
    return lambda layer: layer.graph.add(op, layer.x)


def _binary(op: str) -> Operator:
    def write(layer: Layer) -> str:
        rank = max(layer.graph.ranks[name] for name in layer.inputs[:2])
        return layer.graph.add(op, layer.x, layer.inputs[1], rank=rank)

    return write


def _scalar(op: str, turned: bool = False) -> Operator:
    def write(layer: Layer) -> str:
        number = layer.graph.scalar(layer.attributes.number("scalar", 0))
        pair = (number, layer.x) if turned else (layer.x, number)
        return layer.graph.add(op, *pair, rank=layer.graph.ranks[layer.x])

    return write


def _square(layer: Layer) -> str:
    return layer.graph.add("Mul", layer.x, layer.x)


def _rsqrt(layer: Layer) -> str:
    return layer.graph.add("Reciprocal", layer.graph.add("Sqrt", layer.x))


def _pass(layer: Layer) -> str:
    return layer.x


def _sum(layer: Layer) -> str:
    return layer.graph.add("Sum", *layer.inputs)


def _operators() -> dict[str, Operator]:
    found: dict[str, Operator] = {
        "LogisticRegressionOutput": _unary("Sigmoid"),
        "clip": _clip,
        "square": _square,
        "rsqrt": _rsqrt,
        "hard_sigmoid": _unary("HardSigmoid"),
        "_rminus_scalar": _scalar("Sub", turned=True),
        "_rdiv_scalar": _scalar("Div", turned=True),
        "_rpower_scalar": _scalar("Pow", turned=True),
    }
    for name in ("Dropout", "identity", "_copy", "BlockGrad", "MakeLoss", "make_loss"):
        found[name] = _pass
    for name in ("LinearRegressionOutput", "MAERegressionOutput"):
        found[name] = _pass
    for name in ("add_n", "ElementWiseSum", "_sum"):
        found[name] = _sum
    for name in ("relu", "sigmoid", "tanh", "exp", "log", "sqrt", "abs", "erf", "floor", "ceil", "softsign"):
        found[name] = _unary(name.capitalize())
    found |= {"negative": _unary("Neg"), "reciprocal": _unary("Reciprocal")}
    for words, op in (("add plus Plus", "Add"), ("sub minus Minus", "Sub"), ("mul Mul", "Mul"), ("div Div", "Div")):
        for word in words.split():
            for name in (f"elemwise_{word}", f"broadcast_{word}", f"_{word}"):
                found[name] = _binary(op)
    for word, op in (("maximum", "Max"), ("minimum", "Min"), ("power", "Pow")):
        found |= {f"broadcast_{word}": _binary(op), f"_{word}": _binary(op), f"_{word}_scalar": _scalar(op)}
    for word, op in (("plus", "Add"), ("minus", "Sub"), ("mul", "Mul"), ("div", "Div")):
        found[f"_{word}_scalar"] = _scalar(op)
    return found | NEURAL_OPERATORS | SHAPE_OPERATORS


#: Writer of each operator; many have several names.
OPERATORS = _operators()
