"""A body that is the one tensor of a model and nothing else (Triton's raw binary request) -> the protocol's message."""

from __future__ import annotations

import math
import struct

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import InvalidArgument
from sealane.protocols.call import Target
from sealane.protocols.wire import length_delimited
from sealane.tensors import NUMPY_OF, Signature

_RAW = 7


def encode_raw_request(target: Target, body: bytes, signature: Signature) -> bytes:
    """The serialized ModelInferRequest of a body that is the one tensor of a model, and nothing else.

    Raises:
        InvalidArgument: the model takes several, or the size of the body does not tell its shape.
    """
    if len(signature.inputs) != 1:
        raise InvalidArgument(
            f"Unable to perform raw binary inference, model '{target.model}' has {len(signature.inputs)} inputs; "
            "send JSON in front of the tensors",
            reason="RAW_REQUEST",
        )
    spec = signature.inputs[0]
    shape = list(spec.shape)
    if shape and shape[0] < 0 and (spec.datatype == "BYTES" or shape.count(-1) > 1):
        shape[0] = 1
    unit = 1 if spec.datatype == "BYTES" else math.prod(size for size in shape if size >= 0)
    unit *= 1 if spec.datatype == "BYTES" else NUMPY_OF[spec.datatype].itemsize
    content: bytes = body
    if spec.datatype == "BYTES":
        shape = [1 if size < 0 else size for size in shape]
        fits = math.prod(shape) == 1
        content = struct.pack("<I", len(body)) + body
    elif -1 in shape:
        fits = shape.count(-1) == 1 and unit > 0 and len(body) % unit == 0
        shape = [len(body) // max(unit, 1) if size < 0 else size for size in shape]
    else:
        fits = unit == len(body)
    if not fits:
        raise InvalidArgument(
            f"Unable to perform raw binary inference, {len(body)} bytes do not tell the shape of input '{spec.name}' "
            f"{list(spec.shape)}; send JSON in front of the tensors",
            reason="RAW_REQUEST",
        )
    request = oip.ModelInferRequest(model_name=target.model, model_version=target.version or target.label)
    request.inputs.add(name=spec.name, datatype=spec.datatype, shape=shape)
    return b"".join((request.SerializeToString(), length_delimited(_RAW, len(content)), content))
