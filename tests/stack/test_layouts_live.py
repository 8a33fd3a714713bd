"""Folders of MLflow, TensorFlow Serving and Triton: imported, served, and written again as they were."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from framework_models import ROOT, Array, Models
from framework_site import deployed, serving
from light_site import LIGHT, LightSite

from sealane.cli import main
from sealane.client.layouts import records
from sealane.errors import FailedPrecondition
from sealane.registry.v1 import model_service_pb2 as pb

MLFLOW_PYTHON = ROOT / ".venv-mlflow/bin/python"
pytestmark = [
    pytest.mark.stack,
    pytest.mark.tensorflow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # the frameworks' own
]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    with serving(tmp_path_factory.mktemp("suite"), {}) as site:
        yield site


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def served(site: LightSite, version: pb.Version, rows: Array) -> tuple[Array, int]:
    """What it answers to the rows, and how many recorded requests it was warmed with."""
    with deployed(site, version.name, "imported") as name:
        (answer,) = site.client.inference.predict(name, {"pixels": rows}).values()
        (placement,) = site.client.deployments.get(name).placements
        return answer, placement.warmed_requests


def digests(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_tensorflow_serving_there_and_back(suite: LightSite, models: Models, tmp_path: Path) -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    built = models.build("savedmodel")
    for number in (1, 20):
        shutil.copytree(built.path, tmp_path / f"digits/{number}")
    request = predict_pb2.PredictRequest()
    request.inputs["pixels"].CopyFrom(tf.make_tensor_proto(models.rows[:3]))
    request.model_spec.name = "digits"
    log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
    (tmp_path / "digits/20/assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(tmp_path / "digits/20" / records.FILE)) as writer:
        writer.write(log.SerializeToString())
    old, new = suite.client.models.import_layout(tmp_path / "digits", "serving", versions="all", alias="production")
    assert (old.source, old.version.number, new.source, new.version.number) == ("digits/1", 1, "digits/20", 2)
    assert suite.client.models.get_version("serving@production").number == 2
    answer, warmed = served(suite, new.version, models.rows)
    np.testing.assert_allclose(answer, built.wanted["output_0"], atol=1e-5)
    assert warmed == 1
    out = suite.client.models.export_layout("serving@2", tmp_path / "out", layout="tensorflow-serving")
    assert digests(out.path / "2") == digests(tmp_path / "digits/20"), "nothing is lost and nothing added"
    (again,) = suite.client.models.import_layout(out.path, "serving-again")
    assert again.version.variants[0].digest == new.version.variants[0].digest


def test_triton_there_and_back(suite: LightSite, models: Models, tmp_path: Path) -> None:
    built = models.build("onnx")
    folder = tmp_path / "repository/digits"
    (folder / "7").mkdir(parents=True)
    shutil.copy(built.path, folder / "7/model.onnx")
    (folder / "warmup").mkdir()
    (folder / "warmup/row").write_bytes(models.rows[0].astype("<f4").tobytes())
    (folder / "config.pbtxt").write_text(
        """
        name: "digits" platform: "onnxruntime_onnx" max_batch_size: 8
        input [{ name: "pixels" data_type: TYPE_FP32 dims: [64] }]
        output [{ name: "probabilities" data_type: TYPE_FP32 dims: [10] }]
        dynamic_batching { preferred_batch_size: [4] max_queue_delay_microseconds: 100 }
        instance_group [{ count: 2 kind: KIND_CPU }]
        model_warmup [{ name: "row" batch_size: 2
          inputs { key: "pixels" value { data_type: TYPE_FP32 dims: [64] input_data_file: "row" } } }]
        """
    )
    (one,) = suite.client.models.import_layout(folder.parent, "triton")
    assert (one.source, one.notes) == ("digits/7", ())
    with deployed(suite, one.version.name, "imported") as name:
        answer = suite.client.inference.predict(name, {"pixels": models.rows[:8]})
        (placement,) = suite.client.deployments.get(name).placements
    np.testing.assert_allclose(answer["probabilities"], built.wanted["probabilities"][:8], atol=1e-5)
    assert placement.warmed_requests == 1
    assert {2, 4} <= set(placement.warmed_batch_sizes), "by the record and by the configuration"
    out = suite.client.models.export_layout("triton@1", tmp_path / "out", layout="triton", name="digits")
    assert digests(out.path / "1") == digests(folder / "7")
    (again,) = suite.client.models.import_layout(tmp_path / "out", "triton-again")
    assert again.version.variants[0].digest == one.version.variants[0].digest, "the manifest and the record too"


def test_mlflow_as_it_logs_a_model(suite: LightSite, models: Models, tmp_path: Path) -> None:
    if not MLFLOW_PYTHON.exists():
        pytest.skip("no environment with mlflow; make .venv-mlflow/.ready")
    built = models.build("onnx")
    script = ROOT / "tests/contract/layouts/mlflow_folders.py"
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "TF_CPP_MIN_LOG_LEVEL": "3", "MLFLOW_ALLOW_FILE_STORE": "true"}
    command = [MLFLOW_PYTHON, "-W", "ignore", script, tmp_path, built.path, sysconfig.get_paths()["purelib"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **quiet})
    assert done.returncode == 0, done.stderr[-3000:]
    (one,) = suite.client.models.import_layout(tmp_path / "onnx", "mlflow")
    answer, warmed = served(suite, one.version, models.rows)
    np.testing.assert_allclose(answer, built.wanted["probabilities"], atol=1e-5)
    assert warmed == 1
    told = json.loads((tmp_path / "logged.json").read_text())
    (artifacts,) = tmp_path.glob(f"mlruns/*/models/{told['model']}/artifacts")
    (logged,) = suite.client.models.import_layout(artifacts, "mlflow")
    assert (logged.version.number, logged.version.lineage.metrics["accuracy"]) == (2, 0.9375)
    assert (logged.version.lineage.commit, logged.version.lineage.job) == (told["commit"], told["run"])
    for flavor in ("keras", "module"):
        (one,) = suite.client.models.import_layout(tmp_path / flavor, f"mlflow-{flavor}")
        answer, warmed = served(suite, one.version, models.rows)
        assert (answer.shape[0], warmed) == (len(models.rows), 1)
        if flavor == "module":
            np.testing.assert_allclose(answer, models.rows * 2, atol=1e-6)


def test_by_the_command(suite: LightSite, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = str(suite.data)
    built = models.build("savedmodel")
    shutil.copytree(built.path, tmp_path / "base/3")
    assert main.run(["models", "import", str(tmp_path / "base"), "by-command", "--data", home]) == 0
    assert "base/3" in capsys.readouterr().out
    command = ["models", "export", "by-command@1", str(tmp_path / "out"), "--data", home, "-o", "json"]
    assert main.run([*command, "--to", "triton"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(tmp_path / "out/by-command")
    assert (tmp_path / "out/by-command/1/model.savedmodel/saved_model.pb").is_file()
    assert main.run(["models", "import", str(tmp_path), "none", "--data", home]) != 0
    assert "is laid out as none of mlflow, triton, tensorflow-serving" in capsys.readouterr().err
    suite.client.models.push(LIGHT / "litert-float.tflite", "light")
    with pytest.raises(FailedPrecondition, match="cannot hold litert"):
        suite.client.models.export_layout("light@1", tmp_path / "light", layout="triton")
