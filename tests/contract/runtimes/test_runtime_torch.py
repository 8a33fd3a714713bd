"""PyTorch, in an environment of its own: 4.5 GB of CUDA libraries come with it.

``make .venv-torch/.ready`` makes it; ``SEALANE_TORCH_PYTHON`` names another one's interpreter. Skipped without.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import Digits

from sealane.client import model_files
from sealane.client.model_signatures import SIGNATURES_FILE
from sealane.registry.v1 import variant_service_pb2 as pb
from sealane.tensors import Signature, TensorSpec

ROOT = Path(__file__).resolve().parents[3]
PYTHON = Path(os.environ.get("SEALANE_TORCH_PYTHON", ROOT / ".venv-torch/bin/python"))
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not PYTHON.exists(), reason="no environment with torch; make .venv-torch/.ready (4.5 GB)"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torch")


@pytest.fixture(scope="module")
def found(folder: Path, digits: Digits) -> dict[str, Any]:
    """What the script found in the other environment."""
    np.savez(folder / "digits.npz", x=digits.train, y=digits.train_labels, tx=digits.test, ty=digits.test_labels)
    script = Path(__file__).with_name("torch_models.py")
    done = subprocess.run(
        [PYTHON, "-W", "ignore", script, folder / "digits.npz", folder],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'services/worker'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_an_exported_program_answers_as_torch(found: dict[str, Any]) -> None:
    export = found["export"]
    assert export["signature"]["inputs"] == [["pixels", "FP32", [-1, 64]]]
    assert export["signature"]["outputs"] == [["probabilities", "FP32", [-1, 10]], ["scores", "FP32", [-1, 10]]]
    assert export["difference"] < 1e-5
    assert export["accuracy"] > 0.85


def test_threads_get_their_own_answers_which_stay(found: dict[str, Any]) -> None:
    assert found["export"]["wrong"] == []
    assert found["export"]["overwritten"] is False


def test_arguments_may_be_nested_fixed_and_bfloat16(found: dict[str, Any]) -> None:
    mixed = found["mixed"]
    assert mixed["signature"]["inputs"] == [["both_0", "BF16", [2]], ["both_1", "FP32", [2]]]
    assert mixed["bits"] == [0x4040, 0x40C0]  # 3 and 6
    assert (mixed["back"], mixed["sum"]) == ([5.0, 6.0], [6.0, 8.0])


def test_torchscript_answers_as_torch_where_its_signature_lies_beside_it(found: dict[str, Any]) -> None:
    assert found["script"]["without"][1] == "MODEL_SIGNATURES"
    assert found["script"]["signature"]["inputs"] == [["pixels", "FP32", [-1, 64]]]
    assert found["script"]["difference"] < 1e-5


def test_refusals_say_what_to_do(found: dict[str, Any]) -> None:
    assert found["export"]["refused"][0] == "INVALID_ARGUMENT"
    assert found["export"]["device"][1] == "DEVICE_NOT_PRESENT"
    assert "cpu" in found["export"]["device"][2]
    assert found["export"]["closed"][0] == "FAILED_PRECONDITION"
    assert found["cut"][1] == "MODEL_UNREADABLE"


def test_an_archive_with_a_pickle_that_acts_is_refused_and_does_not_act(found: dict[str, Any]) -> None:
    assert found["hostile"]["acted"] is False
    assert found["hostile"]["error"][1] == "MODEL_UNREADABLE"


def test_both_formats_run_only_where_code_is_allowed(found: dict[str, Any]) -> None:
    assert found["executable"] == ["TORCH_EXPORT", "TORCH_SCRIPT"]


@pytest.mark.parametrize("name", ["digits", "mixed"])
def test_push_tells_without_torch_what_the_worker_loads(name: str, found: dict[str, Any], folder: Path) -> None:
    wanted = found["export" if name == "digits" else name]["signature"]
    local = model_files.inspect(folder / f"{name}.pt2")
    assert (local.format, local.variant) == (pb.FORMAT_TORCH_EXPORT, "torch-export")
    (signature,) = local.signatures
    assert [[spec.name, spec.datatype, list(spec.shape)] for spec in signature.inputs] == wanted["inputs"]
    assert [[spec.name, spec.datatype, list(spec.shape)] for spec in signature.outputs] == wanted["outputs"]


def test_push_writes_the_signature_beside_torchscript(found: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    assert found["script"]["difference"] < 1e-5
    (tmp_path / "digits.pt").write_bytes((folder / "digits.pt").read_bytes())
    told = Signature((TensorSpec("pixels", "FP32", (-1, 64)),), (TensorSpec("output_0", "FP32", (-1, 10)),))
    local = model_files.inspect(tmp_path / "digits.pt", signatures=[told])
    assert (local.format, local.variant) == (pb.FORMAT_TORCH_SCRIPT, "torchscript")
    assert set(local.files) == {"digits.pt", SIGNATURES_FILE}
    beside = tmp_path / SIGNATURES_FILE
    beside.write_bytes(local.files[SIGNATURES_FILE].read_bytes())
    assert model_files.inspect(tmp_path / "digits.pt").signatures == (told,)
