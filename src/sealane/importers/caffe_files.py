"""Caffe's two files: ``.prototxt`` (the network) and ``.caffemodel`` (its weights). Old files are read as new ones.

Both are protobuf, so no count is believed: what is not in the file is not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from google.protobuf.message import DecodeError

from sealane.compat.caffe.v1 import caffe_pb2 as pb
from sealane.errors import InvalidArgument
from sealane.tensors import Array

MAX_PROTOTXT_BYTES = 16 * 1024 * 1024
MAX_RANK = 32
#: Types whose old names are not the new ones in capitals.
_NEW_NAMES = {
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "ELTWISE": "Eltwise",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "INNER_PRODUCT": "InnerProduct",
    "LRN": "LRN",
    "RELU": "ReLU",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "TANH": "TanH",
}


@dataclass(frozen=True, slots=True)
class Network:
    """A network that answers.

    Attributes:
        inputs: shape by input.
        layers: the others, in order.
        weights: arrays by layer.
    """

    inputs: dict[str, tuple[int, ...]]
    layers: tuple[pb.LayerParameter, ...]
    weights: dict[str, list[Array]]


def read_network(prototxt: Path, caffemodel: Path) -> Network:
    """Both files as one network.

    Raises:
        InvalidArgument: files that are no network, or one that only learns.
    """
    described = _parse_text(prototxt)
    layers = [layer for layer in _layers(described) if _answers(layer)]
    inputs = _inputs_of(described)
    for layer in layers:
        if layer.type == "Input":
            shapes = [tuple(shape.dim) for shape in layer.input_param.shape]
            inputs |= {top: shapes[min(place, len(shapes) - 1)] for place, top in enumerate(layer.top) if shapes}
        elif layer.type == "MemoryData":
            told = layer.memory_data_param
            inputs |= {layer.top[0]: (told.batch_size, told.channels, told.height, told.width)} if layer.top else {}
        elif layer.type.endswith("Data"):
            raise InvalidArgument(
                f"layer {layer.name!r} reads training data; give the deploy .prototxt, which has an input",
                reason="MODEL_UNREADABLE",
            )
    rest = tuple(layer for layer in layers if layer.type not in ("Input", "MemoryData"))
    return Network(inputs, rest, _weights(caffemodel))


def _parse_text(file: Path) -> pb.NetParameter:
    try:
        if file.stat().st_size > MAX_PROTOTXT_BYTES:
            raise ValueError("too large")
        return text_format.Parse(file.read_text(), pb.NetParameter(), allow_unknown_field=True)
    except (text_format.ParseError, ValueError, RecursionError) as error:
        raise InvalidArgument(
            f"{file.name} is not the text of a Caffe network; give the deploy .prototxt", reason="MODEL_UNREADABLE"
        ) from error


def _weights(file: Path) -> dict[str, list[Array]]:
    try:
        learnt = pb.NetParameter.FromString(file.read_bytes())
    except DecodeError as error:
        raise InvalidArgument(
            f"{file.name} is not a .caffemodel, or it is cut; fetch it again", reason="MODEL_UNREADABLE"
        ) from error
    return {layer.name: [_array(blob, layer.name) for blob in layer.blobs] for layer in _layers(learnt) if layer.blobs}


def _array(blob: pb.BlobProto, layer: str) -> Array:
    legacy = (blob.num, blob.channels, blob.height, blob.width)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else legacy
    # Assigned, not converted: elements lie packed in the message.
    data = np.array(blob.double_data if len(blob.double_data) else blob.data, np.float32)
    if len(shape) > MAX_RANK or any(size < 0 for size in shape) or math.prod(shape) != data.size:
        raise InvalidArgument(
            f"the weights of layer {layer!r} have shape {list(shape)[:MAX_RANK]} but {data.size} elements; "
            "fetch the .caffemodel again",
            reason="MODEL_UNREADABLE",
        )
    return data.reshape(shape)


def _layers(network: pb.NetParameter) -> Iterable[pb.LayerParameter]:
    """The layers, old ones in the new form."""
    return [*map(_renewed, network.layers), *network.layer]


def _renewed(old: pb.V1LayerParameter) -> pb.LayerParameter:
    new = pb.LayerParameter(name=old.name, bottom=old.bottom, top=old.top, blobs=old.blobs)
    word = pb.V1LayerParameter.LayerType.Name(old.type)
    new.type = _NEW_NAMES.get(word, word.title().replace("_", ""))
    new.include.extend(old.include)
    new.exclude.extend(old.exclude)
    for field, value in old.ListFields():
        if field.name.endswith("_param"):
            getattr(new, field.name).CopyFrom(value)
    return new


def _answers(layer: pb.LayerParameter) -> bool:
    """Whether a layer is part of the network while it answers."""
    if any(rule.HasField("phase") and rule.phase == pb.TEST for rule in layer.exclude):
        return False
    return not layer.include or any(not rule.HasField("phase") or rule.phase == pb.TEST for rule in layer.include)


def _inputs_of(network: pb.NetParameter) -> dict[str, tuple[int, ...]]:
    if network.input_shape:
        shapes = [tuple(shape.dim) for shape in network.input_shape]
    else:
        sizes = list(network.input_dim)
        shapes = [tuple(sizes[at : at + 4]) for at in range(0, len(sizes), 4)]
    if len(shapes) != len(network.input):
        raise InvalidArgument(
            f"the .prototxt names {len(network.input)} inputs and {len(shapes)} shapes; give each input its shape",
            reason="MODEL_UNREADABLE",
        )
    return dict(zip(network.input, shapes, strict=True))
