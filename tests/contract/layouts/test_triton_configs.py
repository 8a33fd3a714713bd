"""Triton's own ModelConfig, out of tritonclient, reads what we write and writes what we read."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from sealane.client import layouts, model_companions, model_files
from sealane.client.layouts import Outgoing
from sealane.tensors import Signature
from sealane.type.v1 import manifest_pb2 as pb

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venv-triton/bin/python"
SCRIPT = Path(__file__).with_name("triton_configs.py")
pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="no environment with tritonclient; make conformance-clients"
)


def triton(action: str, file: Path, given: str = "") -> str:
    done = subprocess.run([PYTHON, SCRIPT, action, file], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


FULL = {
    "name": "digits",
    "platform": "onnxruntime_onnx",
    "max_batch_size": 16,
    "version_policy": {"specific": {"versions": [2, 5]}},
    "input": [{"name": "pixels", "data_type": "TYPE_FP32", "dims": [64]}],
    "output": [{"name": "probabilities", "data_type": "TYPE_FP32", "dims": [10], "label_filename": "digits.txt"}],
    "instance_group": [{"count": 2, "kind": "KIND_CPU"}, {"count": 1, "kind": "KIND_GPU", "gpus": [0]}],
    "dynamic_batching": {
        "preferred_batch_size": [4, 8],
        "max_queue_delay_microseconds": 500,
        "preserve_ordering": True,
        "priority_levels": 3,
        "default_priority_level": 2,
        "default_queue_policy": {
            "timeout_action": "DELAY",
            "default_timeout_microseconds": 9000,
            "allow_timeout_override": True,
            "max_queue_size": 77,
        },
        "priority_queue_policy": {"1": {"max_queue_size": 5}},
    },
    "optimization": {"graph": {"level": 1}},
    "parameters": {"intra_op_thread_count": {"string_value": "0"}},
    "response_cache": {"enable": True},
    "model_warmup": [
        {
            "name": 'zeros "and" more',
            "batch_size": 3,
            "count": 2,
            "inputs": {"pixels": {"data_type": "TYPE_FP32", "dims": [64], "zero_data": True}},
        },
        {
            "name": "kept",
            "batch_size": 1,
            "inputs": {"pixels": {"data_type": "TYPE_FP32", "dims": [64], "input_data_file": "row"}},
        },
        {
            "name": "random",
            "batch_size": 2,
            "inputs": {"pixels": {"data_type": "TYPE_FP32", "dims": [64], "random_data": True}},
        },
    ],
}


@pytest.fixture
def repository(onnx_file: Path, tmp_path: Path) -> Path:
    """A model with everything, whose configuration Triton's own classes wrote."""
    for number in (2, 3, 5):
        (tmp_path / f"digits/{number}").mkdir(parents=True)
        shutil.copy(onnx_file, tmp_path / f"digits/{number}/model.onnx")
    (tmp_path / "digits/digits.txt").write_text("\n".join("abcdefghij"))
    (tmp_path / "digits/warmup").mkdir()
    (tmp_path / "digits/warmup/row").write_bytes(np.arange(64, dtype="<f4").tobytes())
    triton("write", tmp_path / "digits/config.pbtxt", json.dumps(FULL))
    return tmp_path


def test_what_triton_writes_is_read(repository: Path) -> None:
    incoming = layouts.read(repository)
    assert [one.source for one in incoming] == ["digits/2", "digits/5"], "the versions of its policy"
    first = incoming[0]
    manifest = model_companions.manifest_of(first.model.files)
    batching = manifest.dynamic_batching
    assert (batching.max_batch_size, list(batching.preferred_batch_size)) == (16, [4, 8])
    assert (batching.max_queue_delay_microseconds, batching.max_queue_size) == (500, 77)
    assert (batching.priority_levels, batching.default_priority_level) == (3, 2)
    assert batching.timeout_action == pb.DynamicBatching.TIMEOUT_ACTION_DELAY
    assert batching.default_timeout_microseconds == 9000
    assert (manifest.instances, manifest.device, manifest.deterministic) == (3, "cuda", True)
    assert first.model.files["labels/probabilities.txt"].read_text().startswith("a\nb")
    zeros, again, kept, random = (example["pixels"] for example in first.examples)
    assert zeros.shape == again.shape == (3, 64) and not zeros.any()
    np.testing.assert_array_equal(kept, np.arange(64, dtype=np.float32)[None])
    assert random.shape == (2, 64) and len(np.unique(random)) > 60
    assert np.array_equal(random[0], random[1]), "one row, asked twice at a time"
    missed = " ".join(first.notes)
    for word in ("gpus", "preserve_ordering", "priority_queue_policy", "optimization", "parameters", "labels"):
        assert word in missed, word


def outgoing(folder: Path, manifest: pb.Manifest, signature: Signature | None = None) -> Outgoing:
    """The model of a folder as a variant that was pulled."""
    local = model_files.inspect(folder)
    files = dict(local.files)
    (folder / "sealane.json").write_bytes(model_companions.manifest_file(manifest))
    files["sealane.json"] = folder / "sealane.json"
    signatures = (signature,) if signature else local.signatures
    return Outgoing("digits", 4, local.format, files, signatures)


def test_what_we_write_triton_reads_and_so_do_we(onnx_file: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(onnx_file, source / "digits.onnx")
    rows = {"pixels": np.arange(128, dtype=np.float32).reshape(2, 64)}
    manifest = pb.Manifest(
        instances=2,
        deterministic=True,
        threads=3,
        dynamic_batching=pb.DynamicBatching(
            max_batch_size=8,
            preferred_batch_size=[4],
            max_queue_delay_microseconds=100,
            priority_levels=4,
            timeout_action=pb.DynamicBatching.TIMEOUT_ACTION_DELAY,
            default_timeout_microseconds=5000,
            max_queue_size=9,
            latency_objective_ms=20,
        ),
    )
    model = outgoing(source, manifest)
    alike = {"pixels": np.ones((3, 64), np.float32)}
    (source / "warmup.binpb").write_bytes(model_companions.warm_up([rows, alike], model.signatures))
    (source / "classes.txt").write_text("zero\none")
    more = {"warmup.binpb": source / "warmup.binpb", "labels/probabilities.txt": source / "classes.txt"}
    model = Outgoing(model.name, model.number, model.format, {**model.files, **more}, model.signatures)
    place, notes = layouts.write(model, tmp_path / "out", "triton")
    told = json.loads(triton("read", place / "config.pbtxt"))
    assert (told["name"], told["backend"], told["max_batch_size"]) == ("digits", "onnxruntime", 8)
    assert told["default_model_filename"] == "digits.onnx"
    assert told["input"] == [{"name": "pixels", "data_type": "TYPE_FP32", "dims": ["64"]}]
    assert told["output"][0]["dims"] == ["10"]
    assert (place / told["output"][0]["label_filename"]).read_text() == "zero\none"
    assert told["dynamic_batching"]["default_queue_policy"]["timeout_action"] == "DELAY"
    assert told["dynamic_batching"]["default_priority_level"] == "2"
    assert told["instance_group"] == [{"count": 2, "kind": "KIND_CPU"}]
    assert [sample["batch_size"] for sample in told["model_warmup"]] == [1, 1, 3]
    assert {"threads", "latency_objective_ms"} <= {note.split(" ")[0] for note in notes}
    (back,) = layouts.read(tmp_path / "out")
    again = model_companions.manifest_of(back.model.files)
    kept = pb.Manifest()
    kept.CopyFrom(manifest)
    kept.threads, kept.dynamic_batching.latency_objective_ms = 0, 0
    kept.dynamic_batching.default_priority_level = 2
    assert again == kept
    one, two, three = (example["pixels"] for example in back.examples)
    np.testing.assert_array_equal(np.concatenate([one, two]), rows["pixels"])
    np.testing.assert_array_equal(three, alike["pixels"])
    assert back.model.files["digits.onnx"].read_bytes() == (source / "digits.onnx").read_bytes()
    assert back.model.files["labels/probabilities.txt"].read_text() == "zero\none"


def test_sequences_go_there_and_back(tmp_path: Path) -> None:
    tensors = {
        "x": TensorProto.FLOAT,
        "begins": TensorProto.INT32,
        "id": TensorProto.UINT64,
        "total": TensorProto.FLOAT,
    }
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "total"], ["sum"]),
            helper.make_node("Cast", ["begins"], ["b"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["id"], ["i"], to=TensorProto.FLOAT),
            helper.make_node("Sum", ["sum", "b", "i"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info(name, kind, ["n", 1]) for name, kind in tensors.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in ("y", "sum")],
    )
    source = tmp_path / "source"
    source.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (source / "model.onnx").write_bytes(model.SerializeToString())
    manifest = pb.Manifest()
    manifest.dynamic_batching.max_batch_size = 4
    manifest.sequence_batching.max_sequence_idle_microseconds = 7_000_000
    manifest.sequence_batching.control_inputs["begins"] = pb.SequenceBatching.CONTROL_START
    manifest.sequence_batching.control_inputs["id"] = pb.SequenceBatching.CONTROL_CORRID
    manifest.sequence_batching.states.add(input_name="total", output_name="sum")
    place, _ = layouts.write(outgoing(source, manifest), tmp_path / "out", "triton")
    told = json.loads(triton("read", place / "config.pbtxt"))
    assert [item["name"] for item in told["input"]] == ["x"]
    controls = {item["name"]: item["control"][0] for item in told["sequence_batching"]["control_input"]}
    assert controls["begins"] == {"int32_false_true": [0, 1]} and controls["id"]["data_type"] == "TYPE_UINT64"
    (back,) = layouts.read(tmp_path / "out")
    assert model_companions.manifest_of(back.model.files) == manifest
    (signature,) = back.model.signatures
    assert [spec.name for spec in signature.inputs] == ["x"], "callers send nothing else"
    assert [spec.name for spec in signature.outputs] == ["y"]
