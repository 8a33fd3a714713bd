"""LiteRT files read without LiteRT."""

from __future__ import annotations

from pathlib import Path

import flatbuffers
import pytest

from sealane.errors import InvalidArgument
from sealane.protocols import litert_file
from sealane.tensors import TensorSpec


def vector(builder: flatbuffers.Builder, items: list[int], size: int = 4) -> int:
    """A list of offsets, or of numbers where `size` is negative."""
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        if size < 0:
            builder.PrependInt32(item)
        else:
            builder.PrependUOffsetTRelative(item)
    return int(builder.EndVector())


def table(builder: flatbuffers.Builder, fields: dict[int, int], bytes_: dict[int, int] | None = None) -> int:
    builder.StartObject(12)
    for slot, offset in fields.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    for slot, value in (bytes_ or {}).items():
        builder.PrependInt8Slot(slot, value, 0)
    return int(builder.EndObject())


def number_table(builder: flatbuffers.Builder, name: int, index: int) -> int:
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(0, name, 0)
    builder.PrependUint32Slot(1, index, 0)
    return int(builder.EndObject())


def model(*, signature: bool = True, kind: int = 9) -> bytes:
    """One input of type `kind`, shape [1, 4] or [-1, 4] by signature, and a float output."""
    builder = flatbuffers.Builder(512)
    shape, free = vector(builder, [1, 4], -1), vector(builder, [-1, 4], -1)
    tensors = [
        table(builder, {0: shape, 3: builder.CreateString("in:0"), 7: free}, {1: kind}),
        table(builder, {0: shape, 3: builder.CreateString("out:0")}),
    ]
    graph = {0: vector(builder, tensors), 1: vector(builder, [0], -1), 2: vector(builder, [1], -1)}
    fields = {2: vector(builder, [table(builder, graph)])}
    if signature:
        sides = [
            vector(builder, [number_table(builder, builder.CreateString(name), index)])
            for index, name in enumerate(("pixels", "scores"))
        ]
        told = {0: sides[0], 1: sides[1], 2: builder.CreateString("serving_default")}
        fields[7] = vector(builder, [table(builder, told)])
    builder.Finish(table(builder, fields), file_identifier=b"TFL3")
    return bytes(builder.Output())


def test_a_signature_names_what_callers_send(tmp_path: Path) -> None:
    file = tmp_path / "m.tflite"
    file.write_bytes(model())
    (signature,) = litert_file.read_signatures(file)
    assert signature.name == "serving_default"
    assert signature.inputs == (TensorSpec("pixels", "INT8", (-1, 4)),)
    assert signature.outputs == (TensorSpec("scores", "FP32", (1, 4)),)
    names = litert_file.read(file)
    assert names is not None
    assert (names.inputs, names.outputs) == ({"pixels": "in:0"}, {"scores": "out:0"})


def test_a_model_without_signatures_is_called_by_its_tensors(tmp_path: Path) -> None:
    file = tmp_path / "m.tflite"
    file.write_bytes(model(signature=False))
    (signature,) = litert_file.read_signatures(file)
    assert (signature.name, signature.inputs[0].name) == ("serving_default", "in:0")
    assert litert_file.read(file) is None


def test_a_type_that_no_protocol_carries_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.tflite"
    file.write_bytes(model(kind=8))  # COMPLEX64
    with pytest.raises(InvalidArgument) as caught:
        litert_file.read_signatures(file)
    assert caught.value.reason == "MODEL_SIGNATURES"


def test_no_cut_or_changed_byte_does_anything_but_be_refused(tmp_path: Path) -> None:
    content = model()
    file = tmp_path / "m.tflite"
    refused = 0
    for place in range(len(content)):
        for damaged in (content[:place], content[:place] + b"\xff" + content[place + 1 :]):
            file.write_bytes(damaged)
            try:
                litert_file.read_signatures(file)
            except InvalidArgument:
                refused += 1
    assert refused > len(content)
