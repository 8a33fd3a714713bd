"""MXNet models turned into ONNX answer as MXNet 1.9.1 does, which runs in an environment of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from small_models import Digits

from sealane.client import model_files
from sealane.errors import InvalidArgument
from sealane.importers import mxnet
from sealane.registry.v1 import variant_service_pb2 as pb
from sealane.tensors import Array, Signature, TensorSpec
from sealane_worker.runtimes import RuntimeOptions, create_runtime

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venv-mxnet/bin/python"
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not PYTHON.exists(), reason="no environment with mxnet; make .venv-mxnet/.ready"),
]
#: Models whose files tell the shape of their input.
TOLD = {"mobile", "labelled", "digits"}


@pytest.fixture(scope="module")
def folder(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files and answers of every model of the script."""
    folder = tmp_path_factory.mktemp("mxnet")
    np.savez(folder / "rows", x=digits.train, y=digits.train_labels, tx=digits.test, ty=digits.test_labels)
    script = Path(__file__).with_name("mxnet_models.py")
    command = [PYTHON, "-W", "ignore", script, folder / "rows.npz", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "names.json").write_text(done.stdout.splitlines()[-1])
    return folder


def answers_of(folder: Path, name: str) -> tuple[Array, list[Array]]:
    """What MXNet was asked, and answered."""
    with np.load(folder / f"{name}.npz") as kept:
        return kept["data"], [kept[f"o{place}"] for place in range(len(kept.files) - 1)]


def test_every_model_answers_as_mxnet(folder: Path, tmp_path: Path) -> None:
    names = json.loads((folder / "names.json").read_text())
    assert len(names) > 15
    for name in names:
        data, wanted = answers_of(folder, name)
        shapes = {} if name in TOLD else {"data": data.shape}
        content = mxnet.to_onnx(folder / f"{name}-symbol.json", folder / f"{name}-0000.params", shapes)
        (tmp_path / f"{name}.onnx").write_bytes(content)
        runtime = create_runtime("onnxruntime")
        (signature,) = runtime.load(tmp_path / f"{name}.onnx", RuntimeOptions())
        answer = runtime.run({"data": data}, signature.name)
        assert len(answer) == len(wanted), name
        for got, want in zip(answer.values(), wanted, strict=True):
            np.testing.assert_allclose(got, want, atol=2e-5, rtol=1e-5, err_msg=name)
        # The first dimension is free, whatever the files were written with.
        one = runtime.run({"data": data[:1]}, signature.name)
        for got, want in zip(one.values(), wanted, strict=True):
            np.testing.assert_allclose(got, want[:1], atol=2e-5, rtol=1e-5, err_msg=name)


def test_a_trained_model_is_pushed_as_onnx(folder: Path, digits: Digits, tmp_path: Path) -> None:
    for end in ("-symbol.json", "-0000.params"):
        (tmp_path / f"digits{end}").write_bytes((folder / f"digits{end}").read_bytes())
    for path in (tmp_path, tmp_path / "digits-symbol.json", tmp_path / "digits-0000.params"):
        local = model_files.inspect(path)
        assert (local.format, local.variant, set(local.files)) == (pb.FORMAT_ONNX, "onnx", {"model.onnx"})
        (signature,) = local.signatures
        assert signature.inputs == (TensorSpec("data", "FP32", (-1, 64)),)
        runtime = create_runtime("onnxruntime")
        runtime.load(local.files["model.onnx"], RuntimeOptions())
        (scores,) = runtime.run({"data": digits.test}, signature.name).values()
        assert np.mean(scores.argmax(1) == digits.test_labels) > 0.85


def test_a_shape_that_the_files_do_not_tell_comes_from_the_signature(folder: Path) -> None:
    file = folder / "heads-symbol.json"
    with pytest.raises(InvalidArgument, match="signatures") as caught:
        model_files.inspect(file)
    assert caught.value.reason == "INPUT_SHAPE_UNKNOWN"
    told = Signature((TensorSpec("data", "FP32", (-1, 3, 7, 9)),), ())
    local = model_files.inspect(file, signatures=[told])
    assert local.signatures == (told,)


def test_params_cut_anywhere_are_refused(folder: Path, tmp_path: Path) -> None:
    content = (folder / "mobile-0000.params").read_bytes()
    cut = tmp_path / "cut.params"
    for size in range(0, len(content), 97):
        cut.write_bytes(content[:size])
        with pytest.raises(InvalidArgument):
            mxnet.to_onnx(folder / "mobile-symbol.json", cut)


def test_weights_of_another_model_are_refused(folder: Path) -> None:
    with pytest.raises(InvalidArgument):
        mxnet.to_onnx(folder / "mobile-symbol.json", folder / "digits-0000.params", {"data": (1, 3, 16, 16)})
