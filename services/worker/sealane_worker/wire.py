"""Messages between a worker's front and a model process: binary heads on sockets, tensors inline or in shared memory.

Not a format for anybody else: both ends are this installation. There is no pickle in it, so a model process that was
taken over can send wrong numbers and nothing more; sizes are checked before memory is taken. Little endian.

* The **control socket** carries the load and its answer; see :mod:`sealane_worker.control`.
* Each **slot** is a packet socket with one request under way at most. A request is :data:`REQUEST`, a layout and the
  body; a reply is :data:`REPLY`, a layout and the body. A body above :data:`INLINE_BYTES` lies in the ring of its
  sender (:mod:`sealane_worker.rings`) and the head says where.
* A **layout** is JSON that says which tensors the body holds: name, datatype, shape, bytes. Requests of one client
  look alike, so both ends keep the layouts they have seen and compare bytes.

Tensors lie one after another, row-major, each aligned to :data:`ALIGNMENT`; ``BYTES`` tensors as elements of u32
length and bytes.
"""

from __future__ import annotations

import json
import math
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from sealane.errors import Internal
from sealane.tensors import NUMPY_OF, Array, datatype_of
from sealane_worker.control import Header, Json

#: kind, priority, bytes of the layout, flow, id, deadline, offset in the ring, bytes of the body.
REQUEST = struct.Struct("<BBHIQdQQ")
#: kind, bytes of the layout, rows of the batch, id, offset in the ring, bytes of the body, seconds run, seconds queued.
REPLY = struct.Struct("<BxHIQQQdd")
RUN, CANCEL = 1, 2
OK, FAILED = 1, 2
#: Offset of a body that follows its head on the socket.
INLINE = (1 << 64) - 1
INLINE_BYTES = 16 << 10
MAX_LAYOUT_BYTES = 16 << 10
PACKET_BYTES = 64 + MAX_LAYOUT_BYTES + INLINE_BYTES
ALIGNMENT = 64
KEPT_LAYOUTS = 256
_LENGTH = struct.Struct("<I")
_PADDING = memoryview(bytes(ALIGNMENT))


@dataclass(frozen=True, slots=True)
class Layout:
    """What a body holds.

    Attributes:
        signature: signature name; empty in replies.
        outputs: names wanted, empty for all; empty in replies.
        tensors: name, datatype, shape and bytes of each.
        size: bytes of the body.
        rows: first dimension of the first tensor, 1 where it has none.
        key: equal for requests that can be run together: everything but the first dimension; None for one whose
            tensors do not all have as many rows.
    """

    signature: str
    outputs: tuple[str, ...]
    tensors: tuple[tuple[str, str, tuple[int, ...], int], ...]
    size: int
    rows: int
    key: tuple[object, ...] | None


class Layouts:
    """Layouts seen by one end, by their bytes; the oldest go."""

    def __init__(self) -> None:
        self._seen: dict[bytes, Layout] = {}
        self._lock = threading.Lock()

    def read(self, encoded: bytes) -> Layout:
        """The layout that these bytes say.

        Raises:
            Internal: they are not one, or its sizes do not fit together.
        """
        layout = self._seen.get(encoded)
        if layout is None:
            layout = _parse_layout(encoded)
            with self._lock:
                if len(self._seen) >= KEPT_LAYOUTS:
                    self._seen.pop(next(iter(self._seen)))
                self._seen[encoded] = layout
        return layout


def _parse_layout(encoded: bytes) -> Layout:
    try:
        fields = cast(dict[str, list[tuple[str, str, list[int], int]]], json.loads(encoded))
        tensors, size = [], 0
        for name, datatype, shape, count in fields["t"]:
            if min(shape, default=0) < 0 or not 0 <= count <= 1 << 40:
                raise ValueError("negative size")
            if datatype != "BYTES" and math.prod(shape) * NUMPY_OF[datatype].itemsize != count:
                raise ValueError("size and shape disagree")
            tensors.append((str(name), str(datatype), tuple(int(length) for length in shape), int(count)))
            size += count + -count % ALIGNMENT
        signature, outputs = str(fields.get("s", "")), tuple(str(name) for name in fields.get("o", ()))
    except (ValueError, KeyError, TypeError) as error:
        raise Internal("a model process sent a layout that cannot be read") from error
    first = tensors[0][2] if tensors else ()
    alike = bool(first) and all(shape[:1] == first[:1] for _, _, shape, _ in tensors)
    key = (signature, tuple((name, datatype, shape[1:]) for name, datatype, shape, _ in tensors)) if alike else None
    return Layout(signature, outputs, tuple(tensors), size, first[0] if first else 1, key)


@dataclass(frozen=True, slots=True)
class Body:
    """Tensors ready to be sent: the layout's bytes, the parts in order, and their bytes together."""

    layout: bytes
    parts: tuple[memoryview, ...]
    size: int

    def copy_to(self, target: memoryview) -> None:
        """Write the parts one after another."""
        at = 0
        for part in self.parts:
            target[at : at + part.nbytes] = part
            at += part.nbytes


class Packer:
    """Makes bodies; keeps the layouts of shapes it has seen."""

    def __init__(self) -> None:
        self._seen: dict[object, bytes] = {}
        self._lock = threading.Lock()

    def pack(self, arrays: Mapping[str, Array], signature: str = "", outputs: Sequence[str] = ()) -> Body:
        """Lay tensors out without copying them.

        Raises:
            Internal: so many or such long names that no layout holds them.
        """
        parts: list[memoryview] = []
        sizes: list[int] = []
        size = 0
        for array in arrays.values():
            part = _bytes_part(array) if array.dtype.kind in "SUO" else _view(array)
            count = part.nbytes
            parts.append(part)
            sizes.append(count)
            if padding := -count % ALIGNMENT:
                parts.append(_PADDING[:padding])
                count += padding
            size += count
        if any(item.dtype.kind in "SUO" for item in arrays.values()):
            return Body(_layout(arrays, sizes, signature, outputs), tuple(parts), size)  # as large as their texts
        key = (signature, tuple(outputs), tuple((name, item.dtype, item.shape) for name, item in arrays.items()))
        layout = self._seen.get(key)
        if layout is None:
            layout = _layout(arrays, sizes, signature, outputs)
            with self._lock:
                if len(self._seen) >= KEPT_LAYOUTS:
                    self._seen.pop(next(iter(self._seen)))
                self._seen[key] = layout
        return Body(layout, tuple(parts), size)


def _layout(arrays: Mapping[str, Array], sizes: Sequence[int], signature: str, outputs: Sequence[str]) -> bytes:
    tensors: list[Json] = [
        [name, datatype_of(array), [int(length) for length in array.shape], count]
        for (name, array), count in zip(arrays.items(), sizes, strict=True)
    ]
    fields: Header = {"t": tensors}
    if signature:
        fields["s"] = signature
    if outputs:
        fields["o"] = list(outputs)
    encoded = json.dumps(fields, separators=(",", ":")).encode()
    if len(encoded) > MAX_LAYOUT_BYTES:
        raise Internal("the tensors' names and shapes take more than 16 KiB; use fewer or shorter names")
    return encoded


def _view(array: Array) -> memoryview:
    # reshape(-1) first: a zero-dimensional array has no buffer that can be cast to bytes.
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _bytes_part(array: Array) -> memoryview:
    body = bytearray()
    for item in array.reshape(-1).tolist():
        raw = item.encode() if isinstance(item, str) else bytes(cast(bytes, item))
        body += _LENGTH.pack(len(raw)) + raw
    return memoryview(body)


def unpack(layout: Layout, body: memoryview) -> dict[str, Array]:
    """The tensors of a body, as views of it.

    Raises:
        Internal: the body is not what the layout says.
    """
    if layout.size > body.nbytes:
        raise Internal("a model process sent less than its layout says")
    arrays: dict[str, Array] = {}
    offset = 0
    for name, datatype, shape, count in layout.tensors:
        raw = body[offset : offset + count]
        offset += count + -count % ALIGNMENT
        if datatype == "BYTES":
            arrays[name] = _parse_bytes(raw, shape)
        else:
            arrays[name] = np.frombuffer(raw, NUMPY_OF[datatype]).reshape(shape)
    return arrays


def _parse_bytes(raw: memoryview, shape: tuple[int, ...]) -> Array:
    data, count = raw.tobytes(), math.prod(shape)
    short = Internal("a model process sent a BYTES tensor that ends before its last element")
    if count * _LENGTH.size > len(data):
        raise short
    items = np.empty(count, np.object_)
    at = 0
    for index in range(count):
        if at + _LENGTH.size > len(data):
            raise short
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size + size
        if at > len(data):
            raise short
        items[index] = data[at - size : at]
    return items.reshape(shape)
