"""Elements of tensors in the forms that both foreign protocols share, checked before they are built.

A shape is its sender's claim, so :class:`Budget` adds up what the shapes of one request ask for
before any of it is allocated. Fixed-size elements are read in place, without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sealane.errors import InvalidArgument
from sealane.tensors import MAX_TENSOR_BYTES, NUMPY_OF, Array, byte_size

#: Most tensors in one request or response.
MAX_TENSORS = 256
#: Most dimensions of one tensor; numpy itself stops at 64.
MAX_RANK = 32
#: Largest element of a BYTES tensor.
MAX_ELEMENT_BYTES = 1024 * 1024


class Budget:
    """Bytes that the tensors of one request may still take, after expansion."""

    __slots__ = ("left",)

    def __init__(self, limit: int = MAX_TENSOR_BYTES) -> None:
        self.left = limit

    def admit(self, datatype: str, shape: tuple[int, ...], path: str) -> int:
        """Take a tensor out of the budget and return the number of its elements.

        Raises:
            InvalidArgument: unknown datatype, impossible shape, or more than is left.
        """
        if len(shape) > MAX_RANK:
            raise InvalidArgument(
                f"shape has {len(shape)} dimensions, the limit is {MAX_RANK}; reshape the tensor",
                reason="TENSOR_RANK",
                field=f"{path}.shape",
            )
        try:
            size = byte_size(datatype, shape, self.left)
            if size == 0:
                # numpy refuses an empty array whose other dimensions overflow.
                byte_size(datatype, tuple(max(1, dim) for dim in shape), self.left)
        except InvalidArgument as error:
            raise InvalidArgument(error.message, reason=error.reason, field=f"{path}.{error.field}") from None
        self.left -= size
        return size // NUMPY_OF[datatype].itemsize

    def take(self, size: int, path: str) -> None:
        """Take `size` further bytes, such as those of repeated BYTES elements.

        Raises:
            InvalidArgument: more than is left.
        """
        if size > self.left:
            raise InvalidArgument(
                f"the tensors take {size - self.left} bytes more than the limit of one call; send fewer rows a call",
                reason="TENSOR_TOO_LARGE",
                field=path,
            )
        self.left -= size


def check_count(count: int, path: str) -> None:
    """Refuse a message with more than :data:`MAX_TENSORS` tensors."""
    if count > MAX_TENSORS:
        raise InvalidArgument(
            f"{count} tensors in one message, the limit is {MAX_TENSORS}; split the call",
            reason="TOO_MANY_TENSORS",
            field=path,
        )


def from_content(datatype: str, shape: tuple[int, ...], content: bytes, path: str) -> Array:
    """A read-only array over `content` (little-endian, row-major); the shape was admitted before.

    Raises:
        InvalidArgument: the bytes are not exactly those of the shape.
    """
    dtype = NUMPY_OF[datatype]
    wanted = byte_size(datatype, shape)
    if len(content) != wanted:
        raise InvalidArgument(
            f"{len(content)} bytes of content for shape {list(shape)} of {datatype}, which takes {wanted}; "
            "make shape and content agree",
            reason="TENSOR_SIZE_MISMATCH",
            field=path,
        )
    if datatype == "BOOL":
        flags = np.frombuffer(content, dtype=np.uint8).reshape(shape)
        # A byte above 1 is no numpy bool: later comparisons would disagree about it.
        return flags.view(np.bool_) if not flags.size or flags.max() <= 1 else flags != 0
    return np.frombuffer(content, dtype=dtype).reshape(shape)


def from_values(datatype: str, shape: tuple[int, ...], values: Sequence[float], path: str) -> Array:
    """An array from typed values, one for each element.

    Raises:
        InvalidArgument: another number of values, or a value outside the datatype's range.
    """
    wide = np.asarray(values, dtype=_wide(datatype))
    array = np.asarray(narrow(wide, datatype, path))
    try:
        return array.reshape(shape)
    except ValueError:
        raise InvalidArgument(
            f"{array.size} values for shape {list(shape)}; send one value for each element",
            reason="TENSOR_SIZE_MISMATCH",
            field=path,
        ) from None


def narrow(wide: Array, datatype: str, path: str) -> Array:
    """`wide` in the dtype of `datatype`, refusing integers outside its range."""
    dtype = NUMPY_OF[datatype]
    if dtype.kind in "iu" and wide.dtype != dtype and wide.size:
        numbers = wide.astype(np.int64, copy=False)
        bounds = np.iinfo(dtype.name)
        if numbers.min() < bounds.min or numbers.max() > bounds.max:
            raise InvalidArgument(
                f"a value lies outside {datatype} ({bounds.min} to {bounds.max}); send a wider datatype",
                reason="VALUE_OUT_OF_RANGE",
                field=path,
            )
    return wide.astype(dtype, copy=False)


def to_content(array: Array) -> bytes:
    """The elements of a fixed-size array, little-endian and row-major."""
    return array.astype(array.dtype.newbyteorder("<"), order="C", copy=False).tobytes()


def byte_elements(array: Array) -> list[bytes]:
    """The elements of a BYTES array, row-major; text is encoded as UTF-8.

    Raises:
        InvalidArgument: an element that is neither bytes nor text.
    """
    elements = []
    for element in array.ravel().tolist():
        if isinstance(element, str):
            element = element.encode()
        if not isinstance(element, bytes):
            raise InvalidArgument(
                f"an element of a BYTES tensor is {type(element).__name__}; convert it to bytes or str",
                reason="DATATYPE_UNKNOWN",
            )
        elements.append(element)
    return elements


def from_elements(elements: Sequence[bytes], shape: tuple[int, ...], path: str) -> Array:
    """An object array over BYTES elements, one for each place of the shape.

    Raises:
        InvalidArgument: another number of elements, or one above :data:`MAX_ELEMENT_BYTES`.
    """
    if any(len(element) > MAX_ELEMENT_BYTES for element in elements):
        raise InvalidArgument(
            f"a BYTES element is above {MAX_ELEMENT_BYTES} bytes; split it",
            reason="ELEMENT_TOO_LARGE",
            field=path,
        )
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    try:
        return array.reshape(shape)
    except ValueError:
        raise InvalidArgument(
            f"{len(elements)} elements for shape {list(shape)}; send one for each place",
            reason="TENSOR_SIZE_MISMATCH",
            field=path,
        ) from None


def _wide(datatype: str) -> np.dtype[np.generic]:
    """The dtype in which the typed fields of both protocols carry a datatype."""
    return np.dtype(np.int64) if datatype in ("INT8", "INT16", "UINT8", "UINT16") else NUMPY_OF[datatype]
