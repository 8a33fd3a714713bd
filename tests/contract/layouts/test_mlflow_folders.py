"""Model folders that MLflow itself wrote: what comes over, and what is refused with what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from sealane.client import layouts
from sealane.client.layouts import Incoming
from sealane.errors import InvalidArgument
from sealane.registry.v1 import variant_service_pb2 as pb

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venv-mlflow/bin/python"
TORCH = Path(os.environ.get("SEALANE_TORCH_PYTHON", ROOT / ".venv-torch/bin/python"))
SCRIPT = Path(__file__).with_name("mlflow_folders.py")
ROWS = np.linspace(0, 1, 128, dtype=np.float32).reshape(2, 64)
pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not PYTHON.exists(), reason="no environment with mlflow; make .venv-mlflow/.ready"),
]


def written(folder: Path, onnx_file: Path, *more: str) -> Path:
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "TF_CPP_MIN_LOG_LEVEL": "3", "MLFLOW_ALLOW_FILE_STORE": "true"}
    command = [PYTHON, "-W", "ignore", SCRIPT, folder, onnx_file, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **quiet})
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def folder(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tensorflow", reason="needs the [tensorflow] extra")
    return written(tmp_path_factory.mktemp("mlflow"), onnx_file, sysconfig.get_paths()["purelib"])


def one(path: Path) -> Incoming:
    (incoming,) = layouts.read(path)
    return incoming


@pytest.mark.parametrize(
    ("name", "form", "main"),
    [
        ("onnx", pb.FORMAT_ONNX, "model.onnx"),
        ("onnx-frame", pb.FORMAT_ONNX, "model.onnx"),
        ("keras", pb.FORMAT_KERAS, "model.keras"),
        ("module", pb.FORMAT_SAVED_MODEL, "saved_model.pb"),
    ],
)
def test_flavors_with_files_that_need_no_code_come_over_with_their_example(
    name: str, form: pb.Format.ValueType, main: str, folder: Path
) -> None:
    incoming = one(folder / name)
    assert incoming.model.format == form
    assert {main, "MLmodel"} <= set(incoming.model.files), "what MLflow told of it travels"
    (example,) = incoming.examples
    assert list(example) == ["pixels"] and example["pixels"].dtype == np.float32
    np.testing.assert_array_equal(example["pixels"], ROWS)
    incoming.model.signatures[0].check_inputs(example)


def test_weights_beside_an_onnx_model_come_with_it(folder: Path) -> None:
    assert sum(name.endswith(".data") for name in one(folder / "onnx").model.files) == 1


def test_what_callers_would_be_wrong_about_is_told(folder: Path) -> None:
    assert one(folder / "onnx").notes == ()
    assert "callers send the model's own inputs, pixels" in one(folder / "onnx-frame").notes[0]
    odd = one(folder / "onnx-odd")
    assert odd.examples == () and "['other']" in odd.notes[0]


def test_a_logged_model_brings_its_metrics_and_its_commit(folder: Path) -> None:
    told = json.loads((folder / "logged.json").read_text())
    (artifacts,) = folder.glob(f"mlruns/*/models/{told['model']}/artifacts")
    incoming = one(artifacts)
    assert incoming.source == f"{told['run']}/{told['model']}"
    assert incoming.metrics == {"accuracy": 0.9375}, "the last value"
    assert incoming.commit == told["commit"]


@pytest.mark.parametrize(
    ("name", "word"), [("sklearn", r"flavor sklearn .* pickle"), ("keras-custom", "custom objects in a pickle")]
)
def test_pickles_are_refused_and_never_loaded(name: str, word: str, folder: Path) -> None:
    with pytest.raises(InvalidArgument, match=word) as caught:
        layouts.read(folder / name)
    assert caught.value.reason == "LAYOUT_NOT_SERVED"
    assert "push the object itself with client.models.push" in caught.value.message


def test_pytorch_comes_over_as_a_program_and_not_as_a_pickle(onnx_file: Path, tmp_path: Path) -> None:
    if not TORCH.exists():
        pytest.skip("no environment with torch; make .venv-torch/.ready (4.5 GB) or set SEALANE_TORCH_PYTHON")
    (packages,) = TORCH.parent.parent.glob("lib/python3*/site-packages")
    written(tmp_path, onnx_file, str(packages), "torch")
    incoming = one(tmp_path / "torch")
    assert (incoming.model.format, incoming.notes) == (pb.FORMAT_TORCH_EXPORT, ())
    np.testing.assert_array_equal(next(iter(incoming.examples[0].values())), ROWS)
    with pytest.raises(InvalidArgument, match="serialization_format='pt2'"):
        layouts.read(tmp_path / "torch-pickle")
