"""TensorFlow's TensorProto and SignatureDef <-> numpy arrays and our signatures, without TensorFlow.

Outgoing tensors use `tensor_content` (BYTES: `string_val`, which has no other form), although
TensorFlow Serving answers with the `*_val` lists unless it is told otherwise: readers of TensorFlow
(`make_ndarray`, `Tensor::FromProto`) take both, and the lists cost a loop over the elements.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sealane.compat.tfserving.v1 import tensorflow_pb2 as tf
from sealane.errors import InvalidArgument
from sealane.protocols.elements import (
    Budget,
    byte_elements,
    from_content,
    from_elements,
    narrow,
    to_content,
)
from sealane.tensors import NUMPY_OF, Array, Signature, TensorSpec, datatype_of

#: TensorFlow's element type -> Open Inference datatype; what is not here is not served.
DATATYPE_OF_DT: dict[tf.DataType.ValueType, str] = {
    tf.DT_FLOAT: "FP32",
    tf.DT_DOUBLE: "FP64",
    tf.DT_INT32: "INT32",
    tf.DT_UINT8: "UINT8",
    tf.DT_INT16: "INT16",
    tf.DT_INT8: "INT8",
    tf.DT_STRING: "BYTES",
    tf.DT_INT64: "INT64",
    tf.DT_BOOL: "BOOL",
    tf.DT_BFLOAT16: "BF16",
    tf.DT_UINT16: "UINT16",
    tf.DT_HALF: "FP16",
    tf.DT_UINT32: "UINT32",
    tf.DT_UINT64: "UINT64",
}
DT_OF_DATATYPE = {name: dt for dt, name in DATATYPE_OF_DT.items()}

_LIST_OF = {
    "FP32": "float_val",
    "FP64": "double_val",
    "INT32": "int_val",
    "INT16": "int_val",
    "INT8": "int_val",
    "UINT8": "int_val",
    "UINT16": "int_val",
    "BYTES": "string_val",
    "INT64": "int64_val",
    "BOOL": "bool_val",
    "FP16": "half_val",
    "BF16": "half_val",
    "UINT32": "uint32_val",
    "UINT64": "uint64_val",
}
_NO_LIST = frozenset({"dtype", "tensor_shape", "version_number", "tensor_content"})
METHOD = "tensorflow/serving/predict"
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"


def decode_tensor(proto: tf.TensorProto, budget: Budget, path: str) -> Array:
    """The array of a TensorProto; `path` is the field that holds it, for error messages.

    Raises:
        InvalidArgument: anything that cannot be a tensor, or more than the budget allows.
    """
    datatype = DATATYPE_OF_DT.get(proto.dtype)
    if datatype is None:
        raise InvalidArgument(
            f"dtype {_dtype_name(proto.dtype)} is not served; send one of {sorted(map(_dtype_name, DATATYPE_OF_DT))}",
            reason="DATATYPE_UNKNOWN",
            field=f"{path}.dtype",
        )
    if proto.tensor_shape.unknown_rank:
        raise InvalidArgument(
            "the shape has an unknown rank; send the shape of the elements",
            field=f"{path}.tensor_shape",
        )
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    lists = [descriptor.name for descriptor, _ in proto.ListFields() if descriptor.name not in _NO_LIST]
    wanted = _LIST_OF[datatype]
    if proto.tensor_content and (lists or datatype == "BYTES"):
        raise InvalidArgument(
            f"tensor_content beside {lists or 'DT_STRING'}; send either tensor_content or {wanted}",
            reason="RAW_AND_TYPED",
            field=f"{path}.tensor_content",
        )
    if lists and lists != [wanted]:
        raise InvalidArgument(
            f"{_dtype_name(proto.dtype)} with {', '.join(lists)}; send {wanted}",
            reason="WRONG_CONTENTS",
            field=path,
        )
    count = budget.admit(datatype, shape, path)
    if proto.tensor_content:
        return from_content(datatype, shape, proto.tensor_content, path)
    return _from_list(datatype, shape, getattr(proto, wanted), _Place(count, budget, path))


def encode_tensor(array: Array) -> tf.TensorProto:
    """The TensorProto of an array."""
    datatype = datatype_of(array)
    proto = tf.TensorProto(dtype=DT_OF_DATATYPE[datatype], tensor_shape=_shape(array.shape))
    if datatype == "BYTES":
        proto.string_val.extend(byte_elements(array))
    else:
        proto.tensor_content = to_content(array)
    return proto


def encode_signature(signature: Signature) -> tf.SignatureDef:
    """The SignatureDef of a signature; the graph tensor names are the aliases, as no graph is known."""
    result = tf.SignatureDef(method_name=signature.method or METHOD)
    for specs, infos in (
        (signature.inputs, result.inputs),
        (signature.outputs, result.outputs),
    ):
        for spec in specs:
            info = tf.TensorInfo(
                name=f"{spec.name}:0",
                dtype=DT_OF_DATATYPE[spec.datatype],
                tensor_shape=_shape(spec.shape),
            )
            infos[spec.name].CopyFrom(info)
    return result


def decode_signature(name: str, definition: tf.SignatureDef) -> Signature:
    """A signature from its SignatureDef, inputs and outputs in the order of their names.

    Raises:
        InvalidArgument: a tensor that this server cannot carry.
    """
    return Signature(
        inputs=tuple(_spec(alias, definition.inputs[alias]) for alias in sorted(definition.inputs)),
        outputs=tuple(_spec(alias, definition.outputs[alias]) for alias in sorted(definition.outputs)),
        name=name,
        method=definition.method_name if definition.method_name in (CLASSIFY, REGRESS) else "",
    )


def _spec(alias: str, info: tf.TensorInfo) -> TensorSpec:
    datatype = DATATYPE_OF_DT.get(info.dtype)
    if datatype is None or info.WhichOneof("encoding") != "name":
        raise InvalidArgument(
            f"tensor {alias!r} ({_dtype_name(info.dtype)}) is not dense or its type is not served; "
            "export the model with dense tensors of a served type",
            reason="SIGNATURE_UNSUPPORTED",
        )
    if info.tensor_shape.unknown_rank:
        raise InvalidArgument(
            f"tensor {alias!r} has an unknown rank; export the model with a shape for it, -1 for any size",
            reason="SIGNATURE_UNSUPPORTED",
        )
    return TensorSpec(alias, datatype, tuple(max(-1, dim.size) for dim in info.tensor_shape.dim))


class _Place:
    """Where a tensor stands: its number of elements, the budget it draws on, its field path."""

    __slots__ = ("budget", "count", "path")

    def __init__(self, count: int, budget: Budget, path: str) -> None:
        self.count = count
        self.budget = budget
        self.path = path


def _from_list(
    datatype: str,
    shape: tuple[int, ...],
    values: Sequence[float | bytes],
    place: _Place,
) -> Array:
    """An array from a `*_val` list; a shorter list repeats its last value, an empty one stands for zeros."""
    if len(values) > place.count:
        raise InvalidArgument(
            f"{len(values)} values for shape {list(shape)}; send at most one for each element",
            reason="TENSOR_SIZE_MISMATCH",
            field=place.path,
        )
    if datatype == "BYTES":
        elements = [value for value in values if isinstance(value, bytes)]
        last = elements[-1] if elements else b""
        missing = place.count - len(elements)
        place.budget.take(missing * len(last), place.path)
        return from_elements(elements + [last] * missing, shape, place.path)
    head = np.asarray(values, dtype=np.int64) if datatype in ("FP16", "BF16") else np.asarray(values)
    if datatype in ("FP16", "BF16"):
        # Both travel as their 16 bits in an int32.
        head = narrow(head, "UINT16", place.path).view(NUMPY_OF[datatype])
    elif head.size:
        head = narrow(head, datatype, place.path)
    array = np.zeros(place.count, dtype=NUMPY_OF[datatype])
    if head.size:
        array[: head.size] = head
        array[head.size :] = head[-1]
    return array.reshape(shape)


def _shape(shape: Sequence[int]) -> tf.TensorShapeProto:
    return tf.TensorShapeProto(dim=[tf.TensorShapeProto.Dim(size=size) for size in shape])


def _dtype_name(dtype: tf.DataType.ValueType) -> str:
    return tf.DataType.Name(dtype) if dtype in tf.DataType.values() else str(dtype)
