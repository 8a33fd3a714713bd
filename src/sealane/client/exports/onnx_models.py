"""An ONNX model in memory, with its large weights in a file of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError, EncodeError

from sealane.client import onnx_file
from sealane.client.exports import comparison, examples
from sealane.client.exports.refusals import not_exportable
from sealane.client.exports.written import Written

if TYPE_CHECKING:
    import onnx

#: Above this, weights go beside the model: protobuf stops at 2 GiB.
MAX_BYTES_INSIDE = 3 << 29
FILE = "model.onnx"
WEIGHTS = "model.onnx.data"


def export(model: onnx.ModelProto, example: object, folder: Path) -> Written:
    """Write the model; see :func:`sealane.client.exports.export`."""
    path = folder / FILE
    try:
        _write(model, path)
    except (EncodeError, DecodeError, ValueError, OSError) as error:
        raise not_exportable("ONNX model", error, "see that onnx.save writes it") from error
    signature = onnx_file.read_signature(path)
    if example is None:
        return Written(path)
    inputs = examples.as_request(example, signature)
    # The file is the object: what is asked is whether it runs.
    return Written(path, inputs, comparison.by_onnx_runtime(path, inputs) or {})


def _write(model: onnx.ModelProto, path: Path) -> None:
    import onnx

    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= MAX_BYTES_INSIDE:
        path.write_bytes(model.SerializeToString())
        return
    try:
        onnx.save_model(model, str(path), save_as_external_data=True, location=WEIGHTS)
    finally:
        # Saving took the weights out of the caller's object.
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
        for tensor in model.graph.initializer:
            del tensor.external_data[:]
            tensor.ClearField("data_location")
