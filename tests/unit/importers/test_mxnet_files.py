"""MXNet's files read without MXNet: what its bytes mean, and that no file can harm its reader."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealane.errors import InvalidArgument
from sealane.importers import mxnet
from sealane.importers.mxnet_files import V1, V2, V3, read_params, read_symbol
from sealane.tensors import Array

CODES = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6}


def array_bytes(array: Array, version: int = V2) -> bytes:
    head = {
        V1: struct.pack("<II", V1, array.ndim),
        V2: struct.pack("<IiI", V2, 0, array.ndim),
        V3: struct.pack("<Iii", V3, 0, array.ndim),
        0: struct.pack("<I", array.ndim),
    }[version]
    sizes = struct.pack(f"<{array.ndim}{'q' if version else 'I'}", *array.shape)
    return head + sizes + struct.pack("<iii", 1, 0, CODES[array.dtype.name]) + array.tobytes()


def params(arrays: Mapping[str, Array], version: int = V2) -> bytes:
    body = b"".join(array_bytes(array, version) for array in arrays.values())
    names = b"".join(struct.pack("<Q", len(name)) + name.encode() for name in arrays)
    count = struct.pack("<Q", len(arrays))
    return struct.pack("<QQ", 0x112, 0) + count + body + count + names


@pytest.mark.parametrize("version", [0, V1, V2, V3])
def test_arrays_of_every_version_of_the_format(version: int) -> None:
    sent: dict[str, Array] = {"arg:w": np.arange(6, dtype=np.float32).reshape(2, 3), "aux:m": np.ones(4, np.int64)}
    found = read_params(params(sent, version))
    assert list(found) == ["w", "m"]
    np.testing.assert_array_equal(found["w"], sent["arg:w"])
    np.testing.assert_array_equal(found["m"], sent["aux:m"])


@pytest.mark.parametrize("dtype", CODES)
def test_arrays_of_every_type(dtype: str) -> None:
    sent = np.array([[1, 0, 1]]).astype(dtype)
    found = read_params(params({"arg:w": sent}))["w"]
    assert found.dtype == sent.dtype
    np.testing.assert_array_equal(found, sent)


def test_a_file_cut_at_any_length_is_refused() -> None:
    content = params({"arg:w": np.ones((2, 3), np.float32), "aux:m": np.ones(2, np.float32)})
    assert len(read_params(content)) == 2
    for size in range(len(content)):
        with pytest.raises(InvalidArgument):
            read_params(content[:size])


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_be_refused(tail: bytes) -> None:
    for content in (tail, struct.pack("<QQQ", 0x112, 0, 1) + tail):
        try:
            read_params(content)
        except InvalidArgument:
            continue


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<QQQ", 0x112, 0, 2**63) + b"\0" * 64,  # more arrays than any file holds
        struct.pack("<QQQ", 0x112, 0, 1) + struct.pack("<IiI", V2, 0, 2**31),  # dimensions
        struct.pack("<QQQ", 0x112, 0, 1) + struct.pack("<IiIqq", V2, 0, 2, 2**40, 2**40) + struct.pack("<iii", 1, 0, 0),
        struct.pack("<QQQ", 0x112, 0, 1) + struct.pack("<IiIq", V2, 0, 1, -4) + struct.pack("<iii", 1, 0, 0),
        struct.pack("<QQQ", 0x112, 0, 1)
        + struct.pack("<IiIq", V2, 0, 1, 1)
        + struct.pack("<iii", 1, 0, 99)
        + b"\0" * 8,
        struct.pack("<QQQQQ", 0x112, 0, 0, 0, 0)[:24] + struct.pack("<Q", 5),  # names of no arrays
        params({"arg:w": np.ones(1, np.float32)})[:-5] + b"\xff\xff\xff\xff\xff",  # a name that is no text
    ],
)
def test_lies_about_sizes_are_refused_before_memory_is_taken(content: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(InvalidArgument):
        read_params(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_sparse_arrays_are_refused() -> None:
    content = struct.pack("<QQQ", 0x112, 0, 1) + struct.pack("<IiI", V2, 1, 2)
    with pytest.raises(InvalidArgument, match="sparse"):
        read_params(content)


def node(op: str, name: str, inputs: list[list[int]], **attributes: str) -> dict[str, object]:
    return {"op": op, "name": name, "inputs": inputs, "attrs": attributes}


def dense() -> dict[str, object]:
    nodes = [
        node("null", "data", []),
        node("null", "w", []),
        node("null", "b", []),
        node("FullyConnected", "fc", [[0, 0, 0], [1, 0, 0], [2, 0, 0]], num_hidden="2"),
    ]
    return {"nodes": nodes, "arg_nodes": [0, 1, 2], "heads": [[3, 0, 0]]}


def write(folder: Path, symbol: object, weights: Mapping[str, Array]) -> tuple[Path, Path]:
    (folder / "m-symbol.json").write_text(json.dumps(symbol))
    (folder / "m-0000.params").write_bytes(params(weights))
    return folder / "m-symbol.json", folder / "m-0000.params"


WEIGHTS: dict[str, Array] = {
    "arg:w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "arg:b": np.array([1, -1], np.float32),
}


def test_a_dense_layer_becomes_onnx_that_computes_it(tmp_path: Path) -> None:
    session = ort.InferenceSession(mxnet.to_onnx(*write(tmp_path, dense(), WEIGHTS)))
    rows = np.array([[1, 2, 3], [0, 0, 1]], np.float32)
    (answer,) = session.run(["fc_output"], {"data": rows})
    np.testing.assert_allclose(answer, rows @ WEIGHTS["arg:w"].T + WEIGHTS["arg:b"])


def test_an_operator_that_is_not_covered_is_named_with_its_layer(tmp_path: Path) -> None:
    symbol = {"nodes": [node("null", "data", []), node("Correlation", "flow", [[0, 0]])], "heads": [[1, 0]]}
    with pytest.raises(InvalidArgument, match=r"'flow' is a Correlation") as caught:
        mxnet.to_onnx(*write(tmp_path, symbol, {}), {"data": (1, 3, 4, 4)})
    assert caught.value.metadata == {"operator": "Correlation", "layer": "flow"}


@pytest.mark.parametrize(
    "change",
    [
        {"nodes": None},
        {"nodes": [node("FullyConnected", "fc", [[0, 0, 0]])]},  # reads itself
        {"heads": []},
        {"heads": [[9, 0]]},
        {"heads": [[-1, 0]]},
        {"heads": "x"},
    ],
)
def test_a_graph_that_is_none_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    symbol, weights = write(tmp_path, {**dense(), **change}, WEIGHTS)
    with pytest.raises(InvalidArgument):
        mxnet.to_onnx(symbol, weights)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, '{"nodes": {}, "heads": [[0,0]]}'])
def test_a_file_that_is_no_graph_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "m-symbol.json").write_text(content)
    with pytest.raises(InvalidArgument):
        read_symbol(tmp_path / "m-symbol.json")


@pytest.mark.parametrize("value", ["__import__('os')", "(" * 3000, "1e999", "'a'", "[1, 'x']", "9" * 5000])
def test_attributes_are_numbers_and_nothing_is_evaluated(value: str, tmp_path: Path) -> None:
    nodes = [node("null", "data", []), node("Pooling", "p", [[0, 0]], kernel=value, pool_type="max")]
    with pytest.raises(InvalidArgument):
        mxnet.to_onnx(*write(tmp_path, {"nodes": nodes, "heads": [[1, 0]]}, {}), {"data": (1, 3, 4, 4)})


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    short = {**WEIGHTS, "arg:b": np.ones(7, np.float32)}
    with pytest.raises(InvalidArgument, match="do not fit together"):
        mxnet.to_onnx(*write(tmp_path, dense(), short))
