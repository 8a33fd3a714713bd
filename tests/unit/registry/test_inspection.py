"""Code and escapes in files that look like data are found without loading anything (SECURITY 2.8)."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile

import pytest

from sealane.errors import FailedPrecondition
from sealane_registry.inspection import MAX_CONFIG_BYTES, look
from sealane_registry.onnx_walk import Malformed, walk


class Bytes:
    """A content in memory that counts what is read."""

    def __init__(self, data: bytes) -> None:
        self.data, self.taken = data, 0

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        found = self.data[offset : offset + length]
        self.taken += len(found)
        return found


def found(model_format: str, **files: bytes) -> str:
    return look(model_format, {path.replace("__", "."): Bytes(data) for path, data in files.items()})


def refused(model_format: str, **files: bytes) -> str:
    with pytest.raises(FailedPrecondition) as caught:
        found(model_format, **files)
    assert caught.value.reason == "UNSAFE_FORMAT"
    return caught.value.message


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_under_any_name(protocol: int) -> None:
    content = pickle.dumps({"a": [1, 2]}, protocol)
    assert "pickle" in found("SAVED_MODEL", assets__txt=content)
    assert "pickle" in found("LITERT", weights__bin=content)


def safetensors(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def tensor(begin: int, end: int) -> dict[str, object]:
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}


def test_sound_safetensors_pass() -> None:
    header = {"a": tensor(0, 4), "b": tensor(4, 6), "__metadata__": {"x": "y"}}
    assert found("SAVED_MODEL", w__safetensors=safetensors(header, b"123456")) == ""


BAD_TENSORS = {
    "a header of 2^63": (1 << 63).to_bytes(8, "little") + b"{}",
    "a header longer than the file": (100).to_bytes(8, "little") + b"{}",
    "overlapping offsets": safetensors({"a": tensor(0, 4), "b": tensor(2, 6)}, b"123456"),
    "a gap": safetensors({"a": tensor(0, 2), "b": tensor(4, 6)}, b"123456"),
    "backward offsets": safetensors({"a": {"data_offsets": [4, 0]}}, b"1234"),
    "more than the file": safetensors({"a": tensor(0, 9)}, b"1234"),
    "bytes behind the end": safetensors({"a": tensor(0, 4)}, b"123456"),
    "no JSON": safetensors(b"{", b""),
    "a list": safetensors([1], b""),
    "nothing": b"",
    "deep JSON": safetensors(b"[" * 100_000, b""),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_safetensors_that_lie(case: str) -> None:
    refused("SAVED_MODEL", w__safetensors=BAD_TENSORS[case])


def keras(config: bytes, name: str = "config.json", method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, config)
        archive.writestr("model.weights.h5", b"\0" * 100)
    return buffer.getvalue()


def test_keras_archives() -> None:
    assert found("KERAS", m__keras=keras(b'{"class_name": "Functional"}')) == ""
    for code in ('{"class_name": "Lambda"}', '{"x": "__lambda__"}', '{"enable_unsafe_deserialization": true}'):
        assert "functions of its own" in found("KERAS", m__keras=keras(code.encode()))
    refused("KERAS", m__keras=b"no archive")
    refused("KERAS", m__keras=keras(b"{}", "other.json"))
    refused("KERAS", m__keras=keras(b"no json"))
    refused("KERAS", m__keras=keras(b"{}")[:-30])


def test_a_zip_bomb_is_not_read_out() -> None:
    bomb = keras(b"{" + b" " * (MAX_CONFIG_BYTES + 1000) + b"}", method=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    refused("KERAS", m__keras=bomb)


def onnx_model(location: str = "", domain: str = "", operator: str = "Identity", inner: bool = False) -> bytes:
    import onnx
    from onnx import TensorProto, helper

    weights = helper.make_tensor("w", TensorProto.FLOAT, [4], [1.0, 2.0, 3.0, 4.0])
    if location:
        weights.ClearField("float_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location)
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    graph = helper.make_graph([node], "g", [], [], [weights])
    if inner:
        outer = helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([outer], "outer", [], [])
    model: onnx.ModelProto = helper.make_model(graph)
    return model.SerializeToString()


@pytest.mark.parametrize("inner", [False, True])
def test_onnx_models(inner: bool) -> None:
    assert found("ONNX", m__onnx=onnx_model(inner=inner)) == ""
    assert found("ONNX", m__onnx=onnx_model(domain="com.microsoft", inner=inner)) == ""
    assert "'evil'" in found("ONNX", m__onnx=onnx_model(domain="evil", inner=inner))
    assert "Python" in found("ONNX", m__onnx=onnx_model(operator="PyOp", inner=inner))
    assert found("ONNX", m__onnx=onnx_model("w.data", inner=inner), w__data=b"x") == ""
    for escape in ("../w.data", "/etc/passwd", "other.data", "a\0b"):
        assert "no file of the variant" in refused("ONNX", m__onnx=onnx_model(escape, inner=inner), w__data=b"x")


def test_what_is_no_onnx_model() -> None:
    for content in (b"garbage", b"", b"\xff" * 100, onnx_model()[:-3]):
        if content:
            refused("ONNX", m__onnx=content)


def test_weights_are_passed_over() -> None:
    from onnx import TensorProto, helper

    weights = helper.make_tensor("w", TensorProto.UINT8, [50_000_000], bytes(50_000_000), raw=True)
    model = helper.make_model(helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [], [weights]))
    content = Bytes(model.SerializeToString())
    assert walk(content).domains == {""}
    assert content.taken < 1 << 20


def test_hostile_bytes_end_the_walk_and_never_crash_it() -> None:
    sound, chance = onnx_model("w.data", inner=True), random.Random(3)
    for _ in range(3000):
        data = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            walk(Bytes(bytes(data)))
        except Malformed:
            continue


def test_graphs_in_graphs_are_bounded() -> None:
    def field(number: int, body: bytes) -> bytes:
        size, length = len(body), bytearray()
        while True:
            size, low = size >> 7, size & 0x7F
            length.append(low | (0x80 if size else 0))
            if not size:
                return bytes([number << 3 | 2]) + bytes(length) + body

    graph = b""
    for _ in range(100):
        graph = field(1, field(5, field(6, graph)))
    with pytest.raises(Malformed, match="deep"):
        walk(Bytes(field(7, graph)))
