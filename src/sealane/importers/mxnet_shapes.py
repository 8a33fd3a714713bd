"""MXNet's operators that move, cut, join and reduce tensors, in ONNX."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sealane.importers.mxnet_layer import Layer, Operator

#: Behind every dimension: ONNX's Slice takes it for "to the end".
END = 2**31 - 1
_CASTS = {"float32": 1, "float64": 1, "float16": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7}


def _flatten(layer: Layer) -> str:
    return layer.graph.add("Flatten", layer.x, rank=2, axis=1)


def _reshape(layer: Layer) -> str:
    shape = list(layer.attributes.integers("shape"))
    if not shape or layer.attributes.flag("reverse", False) or min(shape) < -1:
        raise layer.refuse(f"with the shape {tuple(shape)}")
    return layer.graph.add("Reshape", layer.x, layer.graph.integers(shape), rank=len(shape))


def _transpose(layer: Layer) -> str:
    rank = layer.graph.ranks[layer.x]
    axes = layer.attributes.integers("axes", tuple(reversed(range(rank))))
    return layer.graph.add("Transpose", layer.x, perm=list(axes))


def _swap_axis(layer: Layer) -> str:
    axes = list(range(layer.graph.ranks[layer.x]))
    one, two = layer.attributes.integer("dim1", 0), layer.attributes.integer("dim2", 0)
    axes[one], axes[two] = axes[two], axes[one]
    return layer.graph.add("Transpose", layer.x, perm=axes)


def _expand_dims(layer: Layer) -> str:
    axis = layer.graph.integers([layer.attributes.integer("axis", 0)])
    return layer.graph.add("Unsqueeze", layer.x, axis, rank=layer.graph.ranks[layer.x] + 1)


def _squeeze(layer: Layer) -> str:
    axes = layer.attributes.integers("axis")
    if not axes:
        raise layer.refuse("without an axis")
    return layer.graph.add("Squeeze", layer.x, layer.graph.integers(axes), rank=layer.graph.ranks[layer.x] - len(axes))


def _concat(layer: Layer) -> str:
    return layer.graph.add("Concat", *layer.inputs, axis=layer.attributes.integer("dim", 1))


def _stack(layer: Layer) -> str:
    axis = layer.attributes.integer("axis", 0)
    place = layer.graph.integers([axis])
    rank = layer.graph.ranks[layer.x] + 1
    parts = [layer.graph.add("Unsqueeze", name, place, rank=rank) for name in layer.inputs]
    return layer.graph.add("Concat", *parts, axis=axis)


def _split(layer: Layer) -> list[str]:
    count, axis = layer.attributes.integer("num_outputs", 1), layer.attributes.integer("axis", 1)
    if not 0 < count <= 1024:
        raise layer.refuse(f"into {count} parts")
    graph = layer.graph
    parts = graph.add_many("Split", [layer.x], count, axis=axis) if count > 1 else [layer.x]
    if not layer.attributes.flag("squeeze_axis", False):
        return parts
    place = graph.integers([axis])
    return [graph.add("Squeeze", part, place, rank=graph.ranks[layer.x] - 1) for part in parts]


def _slice_axis(layer: Layer) -> str:
    axis, begin = layer.attributes.integer("axis", 0), layer.attributes.integer("begin", 0)
    end = layer.attributes.integer("end", END)
    parts = [layer.graph.integers([value]) for value in (begin, end, axis)]
    return layer.graph.add("Slice", layer.x, *parts)


def _slice(layer: Layer) -> str:
    begin, end = layer.attributes.maybe_integers("begin") or (), layer.attributes.maybe_integers("end") or ()
    step = layer.attributes.maybe_integers("step") or (None,) * len(begin)
    if len(begin) != len(end) or len(step) != len(begin) or any(item is not None and item < 1 for item in step):
        raise layer.refuse("with a negative step")
    graph = layer.graph
    starts = graph.integers([item or 0 for item in begin])
    ends = graph.integers([END if item is None else item for item in end])
    axes, steps = graph.integers(range(len(begin))), graph.integers([item or 1 for item in step])
    return graph.add("Slice", layer.x, starts, ends, axes, steps)


def _pad(layer: Layer) -> str:
    mode = layer.attributes.text("mode", "constant")
    widths = layer.attributes.integers("pad_width")
    if mode not in ("constant", "edge", "reflect") or len(widths) != 2 * layer.graph.ranks[layer.x]:
        raise layer.refuse(f"with mode {mode}")
    pads = layer.graph.integers([*widths[::2], *widths[1::2]])
    value = layer.graph.scalar(layer.attributes.number("constant_value", 0))
    return layer.graph.add("Pad", layer.x, pads, value, mode=mode)


def _up_sampling(layer: Layer) -> str:
    if layer.attributes.text("sample_type", "nearest") != "nearest" or len(layer.inputs) != 1:
        raise layer.refuse("other than nearest, of one input")
    factor = layer.attributes.integer("scale", 1)
    scales = layer.graph.constant(np.asarray([1, 1, factor, factor], np.float32))
    return layer.graph.add(
        "Resize",
        layer.x,
        "",
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _adaptive_average(layer: Layer) -> str:
    if layer.attributes.integers("output_size", (1,)) not in ((1,), (1, 1)):
        raise layer.refuse("to more than one pixel")
    return layer.graph.add("GlobalAveragePool", layer.x)


def _dot(layer: Layer) -> str:
    graph, parts = layer.graph, []
    for name, flag in zip(layer.inputs, ("transpose_a", "transpose_b"), strict=True):
        rank = graph.ranks[name]
        if layer.op == "dot" and rank != 2:
            raise layer.refuse("of tensors that are no matrices")
        axes = [*range(rank - 2), rank - 1, rank - 2]
        parts.append(graph.add("Transpose", name, perm=axes) if layer.attributes.flag(flag, False) else name)
    return graph.add("MatMul", *parts)


def _reduce(op: str) -> Callable[[Layer], str]:
    def write(layer: Layer) -> str:
        graph, rank = layer.graph, layer.graph.ranks[layer.x]
        axes, keep = layer.attributes.integers("axis"), layer.attributes.flag("keepdims", False)
        if not axes or layer.attributes.flag("exclude", False):
            raise layer.refuse("over all axes or all but some")
        left = rank if keep else rank - len(axes)
        if op == "ReduceSum":
            return graph.add(op, layer.x, graph.integers(axes), rank=left, keepdims=int(keep))
        return graph.add(op, layer.x, rank=left, axes=list(axes), keepdims=int(keep))

    return write


def _arg_max(layer: Layer) -> str:
    keep = layer.attributes.flag("keepdims", False)
    axis = layer.attributes.integer("axis", -1)
    rank = layer.graph.ranks[layer.x] - (not keep)
    place = layer.graph.add("ArgMax", layer.x, rank=rank, axis=axis, keepdims=int(keep))
    return layer.graph.add("Cast", place, to=1)  # MXNet gives floats


def _cast(layer: Layer) -> str:
    kind = layer.attributes.text("dtype", "float32")
    if kind not in _CASTS:
        raise layer.refuse(f"to {kind}")
    return layer.graph.add("Cast", layer.x, to=_CASTS[kind])


SHAPE_OPERATORS: dict[str, Operator] = {
    "Flatten": _flatten,
    "flatten": _flatten,
    "Reshape": _reshape,
    "reshape": _reshape,
    "transpose": _transpose,
    "SwapAxis": _swap_axis,
    "swapaxes": _swap_axis,
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "Concat": _concat,
    "concat": _concat,
    "stack": _stack,
    "SliceChannel": _split,
    "split": _split,
    "slice_axis": _slice_axis,
    "slice": _slice,
    "Pad": _pad,
    "pad": _pad,
    "UpSampling": _up_sampling,
    "_contrib_AdaptiveAvgPooling2D": _adaptive_average,
    "dot": _dot,
    "batch_dot": _dot,
    "mean": _reduce("ReduceMean"),
    "sum": _reduce("ReduceSum"),
    "max": _reduce("ReduceMax"),
    "min": _reduce("ReduceMin"),
    "prod": _reduce("ReduceProd"),
    "argmax": _arg_max,
    "Cast": _cast,
    "cast": _cast,
}
