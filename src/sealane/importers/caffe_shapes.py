"""Caffe's layers that move, cut, join and reduce blobs, in ONNX."""

from __future__ import annotations

import itertools

from sealane.importers.caffe_layer import Layer, Operator

#: Behind every dimension: ONNX's Slice takes it for "to the end".
END = 2**31 - 1


def _concat(layer: Layer) -> str:
    told = layer.told.concat_param
    axis = told.concat_dim if told.HasField("concat_dim") else layer.axis(told.axis)
    return layer.graph.add("Concat", *layer.inputs, axis=axis)


def _slice(layer: Layer) -> str | list[str]:
    told, graph, count = layer.told.slice_param, layer.graph, len(layer.told.top)
    axis = told.slice_dim if told.HasField("slice_dim") else layer.axis(told.axis)
    if count < 2:
        return layer.x
    if not told.slice_point:
        return graph.add_many("Split", [layer.x], count, axis=axis)
    if len(told.slice_point) != count - 1:
        raise layer.refuse(f"at {len(told.slice_point)} places into {count} parts")
    bounds = [0, *told.slice_point, END]
    return [
        graph.add("Slice", layer.x, *(graph.integers([value]) for value in (start, end, axis)))
        for start, end in itertools.pairwise(bounds)
    ]


def _flatten(layer: Layer) -> str:
    told = layer.told.flatten_param
    axis, end = layer.axis(told.axis), layer.axis(told.end_axis)
    # 0 keeps a size, which works for the sizes in front only; those behind are kept by leaving them inferred.
    if end != layer.rank - 1:
        raise layer.refuse("with an end_axis before the last")
    shape = layer.graph.integers([0] * axis + [-1])
    return layer.graph.add("Reshape", layer.x, shape, rank=axis + 1)


def _reshape(layer: Layer) -> str:
    told = layer.told.reshape_param
    shape = list(told.shape.dim)
    if layer.axis(told.axis) != 0 or told.num_axes != -1 or not shape or min(shape) < -1:
        raise layer.refuse("of some axes only")
    # The first dimension is the batch, which is free now; where the network wrote its size that size is kept.
    if shape[0] > 0:
        shape[0] = 0
    return layer.graph.add("Reshape", layer.x, layer.graph.integers(shape), rank=len(shape))


def _crop(layer: Layer) -> str:
    told, graph = layer.told.crop_param, layer.graph
    axes = list(range(layer.axis(told.axis), layer.rank))
    offsets = list(told.offset) or [0]
    offsets = offsets * len(axes) if len(offsets) == 1 else offsets
    if len(offsets) != len(axes) or len(layer.inputs) != 2:
        raise layer.refuse(f"with {len(told.offset)} offsets for {len(axes)} axes")
    starts = graph.integers(offsets)
    sizes = graph.add("Gather", graph.add("Shape", layer.inputs[1], rank=1), graph.integers(axes), axis=0)
    return graph.add("Slice", layer.x, starts, graph.add("Add", starts, sizes), graph.integers(axes))


def _tile(layer: Layer) -> str:
    repeats = [1] * layer.rank
    repeats[layer.axis(layer.told.tile_param.axis)] = layer.told.tile_param.tiles
    return layer.graph.add("Tile", layer.x, layer.graph.integers(repeats))


def _reduction(layer: Layer) -> str:
    told, graph = layer.told.reduction_param, layer.graph
    ops = {told.SUM: "ReduceSum", told.ASUM: "ReduceL1", told.SUMSQ: "ReduceSumSquare", told.MEAN: "ReduceMean"}
    axis = layer.axis(told.axis)
    if axis == 0 or told.operation not in ops:
        raise layer.refuse("over the batch")
    flat = graph.add("Reshape", layer.x, graph.integers([0] * axis + [-1]), rank=axis + 1)
    if told.operation == told.SUM:
        reduced = graph.add("ReduceSum", flat, graph.integers([axis]), rank=axis, keepdims=0)
    else:
        reduced = graph.add(ops[told.operation], flat, rank=axis, axes=[axis], keepdims=0)
    return reduced if told.coeff == 1 else graph.add("Mul", reduced, graph.scalar(told.coeff))


SHAPE_OPERATORS: dict[str, Operator] = {
    "Concat": _concat,
    "Crop": _crop,
    "Flatten": _flatten,
    "Reduction": _reduction,
    "Reshape": _reshape,
    "Slice": _slice,
    "Tile": _tile,
}
