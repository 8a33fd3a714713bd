"""Folders of other systems: what is refused, and that nothing in them leads out or is run."""

from __future__ import annotations

import json
import os
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from sealane.client import layouts, model_companions, model_files
from sealane.client.layouts import Outgoing, folders, records
from sealane.compat.tfserving.v1 import tensorflow_pb2 as tf
from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.tensors import Signature, TensorSpec
from sealane.type.v1 import manifest_pb2 as pb

TOLD = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))
CONFIG = """
backend: "onnxruntime" max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 2 }
output { name: "y" data_type: TYPE_FP32 dims: 2 }
"""


def onnx_bytes() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def saved_model(folder: Path) -> Path:
    model = tf.SavedModel()
    graph = model.meta_graphs.add()
    graph.meta_info_def.tags.append("serve")
    signature = graph.signature_def["serving_default"]
    for tensors, name in ((signature.inputs, "x"), (signature.outputs, "y")):
        tensors[name].name, tensors[name].dtype = f"{name}:0", tf.DT_FLOAT
        tensors[name].tensor_shape.dim.add(size=-1)
        tensors[name].tensor_shape.dim.add(size=2)
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(model.SerializeToString())
    return folder


def triton(folder: Path, config: str = CONFIG, number: int = 1) -> Path:
    (folder / f"twice/{number}").mkdir(parents=True)
    (folder / "twice/config.pbtxt").write_text(config)
    (folder / f"twice/{number}/model.onnx").write_bytes(onnx_bytes())
    return folder / "twice"


def mlflow(folder: Path, told: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "MLmodel").write_text(told)
    (folder / "model.onnx").write_bytes(onnx_bytes())
    return folder


def test_a_layout_is_told_by_what_lies_there(tmp_path: Path) -> None:
    saved_model(tmp_path / "base/1")
    found = {
        "triton": triton(tmp_path / "repository"),
        "mlflow": mlflow(tmp_path / "mlflow", "flavors: {onnx: {data: model.onnx}}"),
        "tensorflow-serving": tmp_path / "base",
    }
    for layout, path in found.items():
        (one,) = layouts.read(path)
        assert one.model.signatures == (TOLD,), layout
        assert layouts.read(path, layout)[0].source == one.source
        for other in found.keys() - {layout}:
            with pytest.raises(InvalidArgument, match="is not laid out as"):
                layouts.read(path, other)
    with pytest.raises(InvalidArgument, match="is laid out as none of"):
        layouts.read(tmp_path)
    with pytest.raises(InvalidArgument, match="is no folder"):
        layouts.read(tmp_path / "mlflow/model.onnx")


def test_archives_are_not_unpacked(tmp_path: Path) -> None:
    mlflow(tmp_path / "m", "flavors: {onnx: {data: model.onnx}}")
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "m", "m")
    with pytest.raises(InvalidArgument, match="unpack archives yourself"):
        layouts.read(tmp_path / "m.tar.gz")


def linked_file(folder: Path) -> None:
    (folder / "secret").symlink_to("/etc/passwd")


def linked_folder(folder: Path) -> None:
    (folder / "variables").symlink_to("/etc")


def linked_above(folder: Path) -> None:
    (folder / "above").symlink_to("../../..")


def linked_nowhere(folder: Path) -> None:
    (folder / "gone").symlink_to("nothing")


def linked_to_itself(folder: Path) -> None:
    (folder / "self").symlink_to("self")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


@pytest.mark.parametrize(
    "plant",
    [linked_file, linked_folder, linked_above, linked_nowhere, linked_to_itself, pipe],
    ids=lambda act: act.__name__,
)
def test_what_leads_out_of_a_folder_is_refused(plant: object, tmp_path: Path) -> None:
    base = saved_model(tmp_path / "out/base/1")
    for path, root in (
        (base, tmp_path / "out/base"),
        (triton(tmp_path / "out/repository") / "1", tmp_path / "out/repository"),
        (mlflow(tmp_path / "out/mlflow", "flavors: {onnx: {data: model.onnx}}"), tmp_path / "out/mlflow"),
    ):
        assert layouts.read(root)
        plant(path)  # type: ignore[operator]
        with pytest.raises(InvalidArgument) as caught:
            layouts.read(root)
        assert caught.value.reason == "LAYOUT_UNSAFE", path


def test_a_link_inside_is_followed(tmp_path: Path) -> None:
    model = triton(tmp_path)
    (model / "2").symlink_to("1")
    assert [one.source for one in layouts.read(model)] == ["twice/2"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "a/../../b", ""])
def test_names_in_a_file_do_not_leave_its_folder(name: str, tmp_path: Path) -> None:
    mlflow(tmp_path / "m", json.dumps({"flavors": {"onnx": {"data": name or "."}}}))
    with pytest.raises(InvalidArgument):
        layouts.read(tmp_path / "m")
    label = f'output {{ name: "y" data_type: TYPE_FP32 dims: 2 label_filename: "{name or ".."}" }}'
    with pytest.raises(InvalidArgument) as caught:
        layouts.read(triton(tmp_path, CONFIG.replace('output { name: "y" data_type: TYPE_FP32 dims: 2 }', label)))
    assert caught.value.reason == "LAYOUT_UNSAFE"


@pytest.mark.parametrize(
    "told",
    [
        "flavors: !!python/object/apply:os.system ['touch run']",
        "!!python/name:os.system",
        "flavors: [1, 2",
        "[]",
        "flavors: 7",
        "\x00",
    ],
)
def test_yaml_runs_nothing(told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgument) as caught:
        layouts.read(mlflow(tmp_path / "m", told))
    assert caught.value.reason == "LAYOUT_INVALID"
    assert not (tmp_path / "run").exists()


def test_yaml_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(FailedPrecondition, match=r"pip install 'sealane\[import\]'"):
        layouts.read(mlflow(tmp_path / "m", "flavors: {onnx: {data: model.onnx}}"))


@pytest.mark.parametrize("flavor", ["xgboost", "sklearn", "python_function", "transformers"])
def test_flavors_of_code_are_refused_with_what_to_do(flavor: str, tmp_path: Path) -> None:
    flavors = {"python_function": {}, flavor: {"pickled_model": "model.pkl"}}
    with pytest.raises(InvalidArgument, match=rf"flavor {flavor} .*client\.models\.push\(model"):
        layouts.read(mlflow(tmp_path / "m", json.dumps({"flavors": flavors})))


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ('backend: "python"', "steps"),
        ('platform: "tensorrt_plan"', "ONNX file that the plan"),
        ('platform: "tensorflow_graphdef"', "as a SavedModel"),
        ('backend: "vllm"', "'vllm' is not served"),
        ("max_batch_size: 1", "neither platform nor backend"),
        ('backend: "openvino" platform: "onnxruntime_onnx"', "disagree"),
        (CONFIG + "model_transaction_policy { decoupled: true }", "decoupled"),
        (CONFIG.replace("dims: 2 }\nout", "dims: 2 reshape { shape: 4 } }\nout"), "reshape"),
        (CONFIG.replace("dims: 2 }\nout", "dims: 2 optional: true }\nout"), "optional"),
        (CONFIG.replace('name: "y"', 'name: "z"'), "output 'z'"),
        (CONFIG.replace("TYPE_FP32 dims: 2 }\nout", "TYPE_FP16 dims: 2 }\nout"), "is FP16"),
        (CONFIG + 'default_model_filename: "absent.onnx"', r"absent\.onnx"),
        (CONFIG + "sequence_batching { iterative_sequence: true }", "iterative"),
        (
            CONFIG + 'sequence_batching { control_input { name: "x" control { fp32_false_true: [-1, 1] } } }',
            "other numbers than 0 and 1",
        ),
        (
            CONFIG + 'model_warmup { inputs { key: "x" value { data_type: TYPE_FP32 dims: 3 zero_data: true } } }',
            "shape",
        ),
        (CONFIG + 'model_warmup { count: 1001 inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 } } }', "1000"),
        (CONFIG + "version_policy { specific { versions: 7 } }", r"it has \[1\]"),
        ("backend: [", "line 1"),
    ],
)
def test_configurations_that_are_not_served_are_refused_with_what_to_do(config: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=word):
        layouts.read(triton(tmp_path, config))


def test_an_ensemble_is_told_as_a_chain(tmp_path: Path) -> None:
    config = """
    platform: "ensemble"
    output { name: "plate" data_type: TYPE_STRING dims: 1 }
    ensemble_scheduling { step { model_name: "detect" model_version: -1
      input_map { key: "image" value: "picture" } output_map { key: "boxes" value: "where" } }
      step { model_name: "read" input_map { key: "boxes" value: "where" } output_map { key: "text" value: "plate" } } }
    """
    with pytest.raises(InvalidArgument, match="sealane deployments chain") as caught:
        layouts.read(triton(tmp_path, config))
    told = caught.value.message
    chain = json.loads(told[told.index("{") : told.rindex("}") + 1])
    assert chain == {
        "steps": [
            {"deployment": "detect", "inputs": {"image": "picture"}, "outputs": {"boxes": "where"}},
            {"deployment": "read", "inputs": {"boxes": "where"}, "outputs": {"text": "plate"}},
        ],
        "outputs": ["plate"],
    }


def test_a_repository_of_several_models_wants_one_named(tmp_path: Path) -> None:
    triton(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.pbtxt").write_text(CONFIG)
    with pytest.raises(InvalidArgument, match="other, twice"):
        layouts.read(tmp_path)


@pytest.mark.parametrize(
    ("policy", "found"),
    [
        ("", [10]),
        ("version_policy { latest { num_versions: 2 } }", [2, 10]),
        ("version_policy { all {} }", [1, 2, 10]),
        ("version_policy { specific { versions: [1, 10] } }", [1, 10]),
    ],
)
def test_the_versions_are_those_that_triton_would_serve(policy: str, found: list[int], tmp_path: Path) -> None:
    for number in (1, 2, 10):
        triton(tmp_path / "r", CONFIG + policy, number)
    assert [one.source for one in layouts.read(tmp_path / "r")] == [f"twice/{number}" for number in found]


def test_a_configuration_without_a_batch_is_never_batched(tmp_path: Path) -> None:
    config = CONFIG.replace("max_batch_size: 8", "").replace("dims: 2", "dims: [-1, 2]")
    (one,) = layouts.read(triton(tmp_path, config))
    assert model_companions.manifest_of(one.model.files).dynamic_batching.max_batch_size == 1


def test_torchscript_gets_its_signature_from_the_configuration(tmp_path: Path) -> None:
    import zipfile

    config = """platform: "pytorch_libtorch" max_batch_size: 4
    input [{ name: "IN__1" data_type: TYPE_INT64 dims: 1 }, { name: "IN__0" data_type: TYPE_FP32 dims: [3, 2] }]
    output { name: "OUT__0" data_type: TYPE_FP32 dims: 2 }"""
    model = triton(tmp_path, config)
    with zipfile.ZipFile(model / "1/model.pt", "w") as archive:
        archive.writestr("m/code/__torch__.py", "class M(Module): ...")
    (one,) = layouts.read(model)
    (signature,) = one.model.signatures
    assert [spec.name for spec in signature.inputs] == ["IN__0", "IN__1"], "by their numbers"
    assert signature.inputs[0].shape == (-1, 3, 2)
    assert one.model.files["signatures.json"].is_file()
    assert model_companions.manifest_of(one.model.files).dynamic_batching.max_batch_size == 4
    files = {name: file for name, file in one.model.files.items() if name != "sealane.json"}
    place, _ = layouts.write(Outgoing("m", 1, one.model.format, files, (signature,)), tmp_path / "out", "triton")
    assert {item.name for item in (place / "1").iterdir()} == {"model.pt"}
    assert 'backend: "pytorch"' in (place / "config.pbtxt").read_text()


# -- records -------------------------------------------------------------------------------------------


def crc32c(data: bytes) -> int:
    turned = records.masked_crc(data) - 0xA282EAD8 & 0xFFFFFFFF
    return turned >> 17 | turned << 15 & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_checksums_are_those_of_the_rfc(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc


def test_every_flipped_bit_of_a_record_is_seen() -> None:
    content = records.join([b"some message"])
    for bit in range(len(content) * 8):
        wrong = bytearray(content)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidArgument) as caught:
            list(records.split(bytes(wrong)))
        assert caught.value.reason == "WARM_UP_INVALID"


@pytest.mark.parametrize("cut", range(1, 28))
def test_a_cut_file_is_refused(cut: int) -> None:
    content = records.join([b"some message"])
    with pytest.raises(InvalidArgument, match="is cut"):
        list(records.split(content[:-cut]))


def test_a_length_of_many_gigabytes_allocates_nothing() -> None:
    head = struct.pack("<Q", 1 << 60)
    with pytest.raises(InvalidArgument, match="is cut"):
        list(records.split(head + struct.pack("<I", records.masked_crc(head)) + bytes(20)))


def test_more_than_a_thousand_records_are_refused() -> None:
    assert len(list(records.split(records.join([b""] * 1000)))) == 1000
    with pytest.raises(InvalidArgument, match="more than 1000 records"):
        list(records.split(records.join([b""] * 1001)))


@pytest.mark.parametrize("message", [b"\xff", b"\x32\x02\x0a\x05", b"\x32\x03\x0a\x01\xff"])
def test_a_record_that_is_no_request_is_refused(message: bytes) -> None:
    with pytest.raises(InvalidArgument, match="record 1 is no PredictionLog"):
        records.read(records.join([message]))


# -- exports -------------------------------------------------------------------------------------------


def outgoing(folder: Path, manifest: pb.Manifest | None = None, form: int = variant_pb.FORMAT_ONNX) -> Outgoing:
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(onnx_bytes())
    files = {"model.onnx": folder / "model.onnx"}
    if manifest is not None:
        (folder / "sealane.json").write_bytes(model_companions.manifest_file(manifest))
        files["sealane.json"] = folder / "sealane.json"
    return Outgoing("m", 1, variant_pb.Format.ValueType(form), files, (TOLD,))


@pytest.mark.parametrize("target", layouts.TARGETS)
@pytest.mark.parametrize(
    ("manifest", "word"),
    [
        (pb.Manifest(after=[pb.Step(softmax=pb.Softmax(tensor="y"))]), "steps before or after"),
        (pb.Manifest(sealing=pb.SealingPolicy(required=True)), "sealed calls"),
    ],
)
def test_what_a_server_cannot_hold_is_refused(manifest: pb.Manifest, word: str, target: str, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=word) as caught:
        layouts.write(outgoing(tmp_path / "in", manifest), tmp_path / "out", target)
    assert caught.value.reason == "LAYOUT_CANNOT_HOLD"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("form", "target"),
    [
        (variant_pb.FORMAT_LITERT, "triton"),
        (variant_pb.FORMAT_LITERT, "tensorflow-serving"),
        (variant_pb.FORMAT_ONNX, "tensorflow-serving"),
        (variant_pb.FORMAT_KERAS, "triton"),
        (variant_pb.FORMAT_REMOTE, "triton"),
        (variant_pb.FORMAT_TORCH_EXPORT, "triton"),
    ],
)
def test_formats_that_a_server_does_not_read_are_refused(form: int, target: str, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="export a variant that is"):
        layouts.write(outgoing(tmp_path / "in", form=form), tmp_path / "out", target)
    assert not (tmp_path / "out").exists()


def test_rows_are_a_batch_where_every_tensor_has_them(tmp_path: Path) -> None:
    fixed = Signature(TOLD.inputs, (TensorSpec("y", "FP32", (1, 2)),))
    model = outgoing(tmp_path / "in")
    place, _ = layouts.write(model, tmp_path / "free", "triton")
    assert "max_batch_size: 32\n" in (place / "config.pbtxt").read_text()
    model = Outgoing("m", 1, model.format, model.files, (fixed,))
    place, _ = layouts.write(model, tmp_path / "fixed", "triton")
    text = (place / "config.pbtxt").read_text()
    assert "max_batch_size: 0\n" in text and "dims: -1\n  dims: 2" in text and "dynamic_batching" not in text


def test_recorded_byte_strings_go_to_triton_and_back(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["s"], ["t"])],
        "g",
        [helper.make_tensor_value_info("s", TensorProto.STRING, ["n", 2])],
        [helper.make_tensor_value_info("t", TensorProto.STRING, ["n", 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    local = model_files.inspect(tmp_path / "model.onnx")
    words = np.array([[b"", b"two"], [b"three", b"\xff\x00"]], np.object_)
    (tmp_path / "warmup.binpb").write_bytes(model_companions.warm_up([{"s": words}], local.signatures))
    files = {**local.files, "warmup.binpb": tmp_path / "warmup.binpb"}
    layouts.write(Outgoing("m", 1, local.format, files, local.signatures), tmp_path / "out", "triton")
    (back,) = layouts.read(tmp_path / "out")
    assert np.array_equal(np.concatenate([example["s"] for example in back.examples]), words)


def test_a_folder_of_too_many_files_is_not_walked_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MAX_FILES", 3)
    model = triton(tmp_path)
    for number in range(4):
        (model / f"{number}.txt").touch()
    with pytest.raises(InvalidArgument, match="more than 3 files"):
        layouts.read(model)
