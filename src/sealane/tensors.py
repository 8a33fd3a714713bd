"""Tensors as plain numpy arrays, and the signature that says which of them a model takes.

Datatypes carry the names of the Open Inference Protocol (``FP32``, ``INT8``, ``BYTES``, ...).
This module knows no wire format; :mod:`sealane.protocols` translates to and from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sealane.errors import InvalidArgument

Array = npt.NDArray[np.generic]

#: Open Inference datatype -> numpy dtype. ``BYTES`` elements are Python ``bytes`` in an object array;
#: ``BF16`` has no numpy dtype and travels as its 16 raw bits.
NUMPY_OF: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": np.dtype("V2"),
    "BYTES": np.dtype(np.object_),
}
DATATYPE_OF = {dtype: name for name, dtype in NUMPY_OF.items()}

#: Largest tensor accepted from a caller, in bytes after expansion.
MAX_TENSOR_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: a name, a datatype and a shape in which -1 stands for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether a concrete `shape` fits this spec (same rank, fixed dimensions equal)."""
        return len(shape) == len(self.shape) and all(
            want in (-1, got) for want, got in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives, under one signature name (``serving_default`` unless said)."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    name: str = "serving_default"
    method: str = ""
    """What a SavedModel says that it is for, such as ``tensorflow/serving/classify``; empty elsewhere."""

    def check_inputs(self, arrays: Mapping[str, Array]) -> None:
        """Refuse inputs that this signature can never run.

        Raises:
            InvalidArgument: a missing or extra name, another datatype, or a shape that does not fit.
        """
        if len(arrays) == len(self.inputs) and all(_fits(spec, arrays.get(spec.name)) for spec in self.inputs):
            return
        wanted = {spec.name: spec for spec in self.inputs}
        missing = sorted(wanted.keys() - arrays.keys())
        extra = sorted(arrays.keys() - wanted.keys())
        if missing or extra:
            raise InvalidArgument(
                f"inputs do not match signature {self.name!r}: missing {missing}, unexpected {extra}; "
                f"send exactly {sorted(wanted)}",
                reason="INPUT_NAMES_MISMATCH",
                field="inputs",
            )
        for name, spec in wanted.items():
            array = arrays[name]
            got = datatype_of(array)
            if got != spec.datatype:
                raise InvalidArgument(
                    f"input {name!r} is {got}, the model takes {spec.datatype}; convert it before the call",
                    reason="INPUT_DATATYPE_MISMATCH",
                    field=f"inputs.{name}.datatype",
                )
            if not spec.admits(array.shape):
                raise InvalidArgument(
                    f"input {name!r} has shape {list(array.shape)}, the model takes {list(spec.shape)} "
                    "(-1 is any size); reshape it before the call",
                    reason="INPUT_SHAPE_MISMATCH",
                    field=f"inputs.{name}.shape",
                )
            if 0 in array.shape:
                raise InvalidArgument(
                    f"input {name!r} holds no elements (shape {list(array.shape)}); send at least one row",
                    reason="INPUT_EMPTY",
                    field=f"inputs.{name}.shape",
                )


def _fits(spec: TensorSpec, array: Array | None) -> bool:
    """Whether an array is what a spec asks for; why not is found out by those who must say so."""
    return (
        array is not None
        and DATATYPE_OF.get(array.dtype) == spec.datatype
        and spec.admits(array.shape)
        and 0 not in array.shape
    )


def datatype_of(array: Array) -> str:
    """The Open Inference datatype of an array.

    Raises:
        InvalidArgument: a numpy dtype that no inference protocol carries.
    """
    if array.dtype.kind in "SU":
        return "BYTES"
    name = DATATYPE_OF.get(array.dtype)
    if name is None:
        raise InvalidArgument(
            f"arrays of {array.dtype} cannot be sent; use one of {sorted(NUMPY_OF)}", reason="DATATYPE_UNKNOWN"
        )
    return name


def byte_size(datatype: str, shape: tuple[int, ...], limit: int = MAX_TENSOR_BYTES) -> int:
    """Bytes that `shape` of `datatype` takes, computed with Python ints before anything is allocated.

    A declared shape is the sender's claim: 30 bytes can ask for 40 GB (SECURITY: amplifier).

    Raises:
        InvalidArgument: negative dimension, unknown datatype, or more than `limit` bytes.
    """
    if datatype not in NUMPY_OF:
        raise InvalidArgument(f"datatype {datatype!r} is unknown; use one of {sorted(NUMPY_OF)}", field="datatype")
    if any(size < 0 for size in shape):
        raise InvalidArgument(f"shape {list(shape)} has a negative dimension", field="shape")
    size = math.prod(shape) * NUMPY_OF[datatype].itemsize
    if size > limit:
        raise InvalidArgument(
            f"shape {list(shape)} of {datatype} takes {size} bytes, the limit is {limit}; send fewer rows a call",
            reason="TENSOR_TOO_LARGE",
            field="shape",
        )
    return size
