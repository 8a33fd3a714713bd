"""What push finds on disk: every format, the files that travel, the signatures, and refusals that say what to do."""

from __future__ import annotations

import gc
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from google.protobuf import json_format
from onnx import TensorProto, helper, numpy_helper

from sealane.client import model_files
from sealane.errors import FailedPrecondition, InvalidArgument, SealaneError
from sealane.registry.v1 import variant_service_pb2 as pb
from sealane.tensors import Signature, TensorSpec
from sealane.type.v1 import manifest_pb2

TOLD = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))


def onnx_model(folder: Path, name: str = "m.onnx") -> Path:
    """Twice the input, with a weight."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.full(2, 2, np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / name).write_bytes(model.SerializeToString())
    return folder / name


def test_onnx_by_file_and_by_folder(tmp_path: Path) -> None:
    file = onnx_model(tmp_path)
    for path in (file, tmp_path):
        local = model_files.inspect(path)
        assert (local.format, local.precision, local.variant) == (pb.FORMAT_ONNX, pb.PRECISION_FLOAT32, "onnx")
        assert local.files == {"m.onnx": file}
        assert local.signatures == (TOLD,)


@pytest.mark.parametrize(
    ("name", "variant", "precision"),
    [
        ("m-int8.onnx", "onnx-int8", pb.PRECISION_INT8),
        ("m_fp16.onnx", "onnx-float16", pb.PRECISION_FLOAT16),
        ("point8.onnx", "onnx", pb.PRECISION_FLOAT32),
    ],
)
def test_the_files_name_tells_the_precision(
    name: str, variant: str, precision: pb.Precision.ValueType, tmp_path: Path
) -> None:
    local = model_files.inspect(onnx_model(tmp_path, name))
    assert (local.variant, local.precision) == (variant, precision)
    assert model_files.inspect(tmp_path, variant="mine").variant == "mine"


def test_large_weights_beside_an_onnx_file_travel(tmp_path: Path) -> None:
    model = onnx.load_model(str(onnx_model(tmp_path)))
    onnx.save_model(
        model,
        str(tmp_path / "m.onnx"),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    (tmp_path / "unrelated.txt").write_text("stays")
    local = model_files.inspect(tmp_path / "m.onnx")
    assert set(local.files) == {"m.onnx", "weights.bin"}
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InvalidArgument, match=r"weights\.bin") as caught:
        model_files.inspect(tmp_path / "m.onnx")
    assert caught.value.reason == "EXTERNAL_DATA_MISSING"


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd"])
def test_weights_outside_the_folder_are_not_taken(location: str, tmp_path: Path) -> None:
    model = onnx.load_model(str(onnx_model(tmp_path)))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidArgument, match="no file beside it"):
        model_files.inspect(tmp_path / "m.onnx")


def test_onnx_is_read_by_its_runtime_where_onnx_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = onnx_model(tmp_path)
    (tmp_path / "m.onnx.data").write_bytes(b"weights")
    monkeypatch.setitem(sys.modules, "onnx", None)
    local = model_files.inspect(file)
    assert local.signatures == (TOLD,)
    assert set(local.files) == {"m.onnx", "m.onnx.data"}
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(FailedPrecondition, match=r"sealane\[import\]"):
        model_files.inspect(file)
    assert model_files.inspect(file, signatures=[TOLD]).signatures == (TOLD,)


def test_an_openvino_model_is_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ov.save_model(ov.Core().read_model(str(onnx_model(tmp_path))), str(tmp_path / "m.xml"))
    (tmp_path / "m.onnx").unlink()
    local = model_files.inspect(tmp_path)
    assert (local.format, local.variant, set(local.files)) == (pb.FORMAT_OPENVINO, "openvino", {"m.xml", "m.bin"})
    assert local.signatures == (TOLD,)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(FailedPrecondition, match=r"sealane\[openvino\]"):
        model_files.inspect(tmp_path / "m.xml")
    (tmp_path / "m.bin").unlink()
    with pytest.raises(InvalidArgument, match=r"m\.bin is not beside"):
        model_files.inspect(tmp_path / "m.xml")


def test_a_remote_model_needs_its_signatures(tmp_path: Path) -> None:
    (tmp_path / "remote.json").write_text('{"endpoint": "triton", "protocol": "oip", "model": "digits"}')
    with pytest.raises(FailedPrecondition, match="pass signatures") as caught:
        model_files.inspect(tmp_path)
    assert caught.value.reason == "SIGNATURES_NEEDED"
    local = model_files.inspect(tmp_path, signatures=[TOLD])
    assert (local.format, local.variant, set(local.files)) == (pb.FORMAT_REMOTE, "remote", {"remote.json"})


@pytest.mark.parametrize(
    "told",
    [
        "{",
        "[]",
        '{"endpoint": "e", "protocol": "http", "model": "m"}',
        '{"endpoint": "e", "protocol": "oip", "model": ""}',
        '{"endpoint": "e", "protocol": "oip", "model": "m", "address": "10.0.0.1:80"}',
        '{"endpoint": "e", "protocol": "oip", "model": "m", "version": "latest"}',
        '{"endpoint": 7, "protocol": "oip", "model": "m"}',
    ],
)
def test_a_remote_model_names_an_endpoint_and_nothing_else(told: str, tmp_path: Path) -> None:
    (tmp_path / "remote.json").write_text(told)
    with pytest.raises(InvalidArgument) as caught:
        model_files.inspect(tmp_path, signatures=[TOLD])
    assert caught.value.reason == "REMOTE_INVALID"


def test_keras_hdf5_is_refused_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "m.h5").write_bytes(b"\x89HDF")
    with pytest.raises(InvalidArgument, match=r"load_weights.*model\.export"):
        model_files.inspect(tmp_path / "m.h5")


def torch_script(file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/code/__torch__.py", "class M(Module): ...")
    return file


def test_torchscript_travels_with_its_signature(tmp_path: Path) -> None:
    file = torch_script(tmp_path / "m.pt")
    with pytest.raises(FailedPrecondition, match="TorchScript does not tell"):
        model_files.inspect(file)
    other = Signature(TOLD.inputs, TOLD.outputs, "other")
    local = model_files.inspect(file, signatures=[other, TOLD])
    told = json.loads(local.files["signatures.json"].read_text())["signatures"]
    assert [item["name"] for item in told] == ["serving_default"]
    assert told[0]["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": ["-1", "2"]}


def test_weights_without_a_program_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"")
    (tmp_path / "n.pth").write_bytes(b"pickle")
    for name in ("m.pt", "n.pth"):
        with pytest.raises(InvalidArgument, match=r"torch\.export\.save"):
            model_files.inspect(tmp_path / name, signatures=[TOLD])


@pytest.mark.parametrize("content", [b"", b"PK", b"nothing"])
def test_a_pt2_file_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"torch\.export\.save"):
        model_files.inspect(tmp_path / "m.pt2")


def test_a_pt2_file_of_another_layout_asks_for_signatures(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("m/models/model.json", '{"graph_module": {}}')
    with pytest.raises(FailedPrecondition, match="pass signatures"):
        model_files.inspect(tmp_path / "m.pt2")
    assert model_files.inspect(tmp_path / "m.pt2", signatures=[TOLD]).signatures == (TOLD,)


def test_what_lies_beside_a_model_travels(tmp_path: Path) -> None:
    onnx_model(tmp_path)
    (tmp_path / "sealane.json").write_text('{"device": "cpu", "dynamicBatching": {"maxBatchSize": 4}}')
    (tmp_path / "warmup.binpb").write_bytes(
        manifest_pb2.WarmUp(requests=[manifest_pb2.WarmUpRequest()]).SerializeToString()
    )
    (tmp_path / "package/inner/__pycache__").mkdir(parents=True)
    (tmp_path / "package/steps.py").write_text("")
    (tmp_path / "package/inner/more.py").write_text("")
    (tmp_path / "package/inner/__pycache__/more.pyc").write_text("")
    (tmp_path / "notes.txt").write_text("stays")
    local = model_files.inspect(tmp_path / "m.onnx")
    assert set(local.files) == {
        "m.onnx",
        "sealane.json",
        "warmup.binpb",
        "package/steps.py",
        "package/inner/more.py",
    }


@pytest.mark.parametrize(
    ("told", "word"),
    [
        ('{"devise": "cpu"}', "devise"),
        ('{"threads": "many"}', "threads"),
        ('{"dynamicBatching": {"maxBatch": 4}}', "maxBatch"),
        ("{", "sealane.json"),
        ("\ufeff{}", "sealane.json"),
    ],
)
def test_a_manifest_that_does_not_parse_is_refused_with_its_field(told: str, word: str, tmp_path: Path) -> None:
    onnx_model(tmp_path)
    (tmp_path / "sealane.json").write_text(told)
    with pytest.raises(InvalidArgument, match=word) as caught:
        model_files.inspect(tmp_path)
    assert (caught.value.reason, caught.value.field) == ("MANIFEST_INVALID", "sealane.json")


def test_steps_in_the_manifest_leave_the_signature_to_the_caller(tmp_path: Path) -> None:
    onnx_model(tmp_path)
    (tmp_path / "words.txt").write_text("one\ntwo\n")
    steps = {"after": [{"topK": {"input": "y", "k": 1}}, {"labels": {"input": "classes", "file": "words.txt"}}]}
    (tmp_path / "sealane.json").write_text(json.dumps(steps))
    with pytest.raises(FailedPrecondition, match="pass signatures") as caught:
        model_files.inspect(tmp_path)
    assert caught.value.reason == "SIGNATURES_NEEDED"
    local = model_files.inspect(tmp_path, signatures=[TOLD])
    assert local.signatures == (TOLD,)
    assert set(local.files) == {"m.onnx", "sealane.json", "words.txt"}
    collected = model_files.collect(tmp_path)
    assert (collected.files, collected.signatures) == (local.files, ()), "whoever loads it hears them from it"


def written(folder: Path, told: Signature) -> None:
    listed = {"signatures": [json_format.MessageToDict(item) for item in model_files.to_proto([told])]}
    (folder / "signatures.json").write_text(json.dumps(listed))


def test_signatures_beside_a_model_are_read(tmp_path: Path) -> None:
    (tmp_path / "remote.json").write_text('{"endpoint": "triton", "protocol": "oip", "model": "digits"}')
    other = Signature(TOLD.inputs, TOLD.outputs, "other")
    written(tmp_path, other)
    assert model_files.inspect(tmp_path).signatures == (other,)
    assert model_files.inspect(tmp_path, signatures=[TOLD]).signatures == (TOLD,), "what was passed comes first"
    (tmp_path / "signatures.json").write_text('{"signatures": []}')
    with pytest.raises(InvalidArgument, match="sealane models check PATH --output json"):
        model_files.inspect(tmp_path)
    assert model_files.collect(tmp_path).signatures == (), "the check is what writes that file"


def test_signatures_beside_torchscript_with_steps_are_its_own_and_not_its_callers(tmp_path: Path) -> None:
    torch_script(tmp_path / "m.pt")
    written(tmp_path, TOLD)
    (tmp_path / "sealane.json").write_text('{"after": [{"softmax": {"tensor": "y"}}]}')
    with pytest.raises(FailedPrecondition, match=r"sealane models check .* --output json"):
        model_files.inspect(tmp_path)
    outer = Signature(TOLD.inputs, (TensorSpec("z", "FP32", (-1, 2)),))
    local = model_files.inspect(tmp_path, signatures=[outer])
    assert local.signatures == (outer,)
    assert local.files["signatures.json"] == tmp_path / "signatures.json"


@pytest.mark.parametrize("name", ["absent.txt", "../../etc/passwd", "/etc/passwd"])
def test_a_file_named_by_a_step_has_to_lie_beside_the_model(name: str, tmp_path: Path) -> None:
    onnx_model(tmp_path)
    (tmp_path / "sealane.json").write_text(json.dumps({"after": [{"labels": {"input": "y", "file": name}}]}))
    with pytest.raises(InvalidArgument) as caught:
        model_files.inspect(tmp_path, signatures=[TOLD])
    assert caught.value.field == "after[0].labels.file"


def test_recorded_requests_that_are_none_are_refused(tmp_path: Path) -> None:
    onnx_model(tmp_path)
    (tmp_path / "warmup.binpb").write_bytes(b"\xff\xff")
    with pytest.raises(InvalidArgument) as caught:
        model_files.inspect(tmp_path)
    assert caught.value.reason == "WARM_UP_INVALID"


def test_a_caffe_model_becomes_onnx_in_a_folder_that_goes_with_it(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(
        'input: "x" input_shape { dim: 1 dim: 2 }\n'
        'layer { name: "y" type: "Power" bottom: "x" top: "y" power_param { scale: 2 } }'
    )
    with pytest.raises(InvalidArgument, match=r"net\.caffemodel"):
        model_files.inspect(tmp_path)
    (tmp_path / "net.caffemodel").write_bytes(b"")
    local = model_files.inspect(tmp_path)
    assert (local.format, local.signatures) == (pb.FORMAT_ONNX, (TOLD,))
    made = local.files["model.onnx"]
    assert made.is_file()
    del local
    gc.collect()
    assert not made.parent.exists()


def test_an_import_without_its_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.prototxt").write_text("")
    (tmp_path / "net.caffemodel").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SealaneError, match=r"pip install 'sealane\[import\]'") as caught:
        model_files.inspect(tmp_path)
    assert caught.value.kind == "UNIMPLEMENTED"


def test_half_an_mxnet_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m-symbol.json").write_text("{}")
    with pytest.raises(InvalidArgument, match=r"m-0000\.params"):
        model_files.inspect(tmp_path)
    (tmp_path / "other-0000.params").write_bytes(b"")
    with pytest.raises(InvalidArgument, match=r"other-symbol\.json"):
        model_files.inspect(tmp_path / "other-0000.params")


def test_a_folder_of_no_model_or_of_two_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="holds no model"):
        model_files.inspect(tmp_path)
    onnx_model(tmp_path)
    onnx_model(tmp_path, "n.onnx")
    with pytest.raises(InvalidArgument, match="holds 2 models"):
        model_files.inspect(tmp_path)
    with pytest.raises(InvalidArgument, match="is no model"):
        (tmp_path / "m.txt").write_text("")
        model_files.inspect(tmp_path / "m.txt")
    with pytest.raises(InvalidArgument, match="is not there"):
        model_files.inspect(tmp_path / "absent.onnx")
