"""Every runtime in a model process, as it is served: in whatever sandbox this kernel gives, over shared memory."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from small_models import Digits, Perceptron

from sealane.tensors import Array
from sealane_worker.box import Box
from sealane_worker.spec import HostPolicy, ModelSpec, Run, Serving

ROOT = Path(__file__).resolve().parents[3]
TRITON = ROOT / ".venv-triton/bin/python"


def ask(box: Box, signature: str, inputs: dict[str, Array]) -> dict[str, Array]:
    return box.run(Run(inputs, signature, time.monotonic() + 60)).outputs


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("instances", [1, 3])
def test_an_onnx_model(runtime: str, instances: int, onnx_digits: Path, digits: Digits, perceptron: Perceptron) -> None:
    box = Box.start(ModelSpec(runtime, onnx_digits, serving=Serving(instances=instances)))
    try:
        for rows in (1, 5, len(digits.test)):
            answer = ask(box, "serving_default", {"pixels": digits.test[:rows]})["probabilities"]
            np.testing.assert_allclose(answer, perceptron.answers[:rows], atol=1e-5)
    finally:
        box.close()


@pytest.mark.tensorflow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")
def test_models_of_keras_in_every_runtime_that_reads_them(digits: Digits, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow", reason="needs the [tensorflow] extra")
    import keras

    layers = [keras.layers.Dense(32, activation="relu"), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((64,), name="pixels"), *layers])
    model.save(tmp_path / "digits.keras")
    model.export(tmp_path / "saved", verbose=False)
    wanted = np.asarray(model(digits.test[:5]))
    for runtime, file in (("tensorflow", "saved"), ("keras", "digits.keras"), ("openvino", "saved")):
        box = Box.start(ModelSpec(runtime, tmp_path / file))
        try:
            answer = ask(box, "serving_default", {"pixels": digits.test[:5]})["output_0"]
            np.testing.assert_allclose(answer, wanted, atol=1e-5, err_msg=runtime)
        finally:
            box.close()


def test_a_model_behind_another_server(tmp_path: Path) -> None:
    if not TRITON.exists():
        pytest.skip("no environment with tritonclient; make .venv-triton/.ready")
    told = {"endpoint": "there", "protocol": "oip", "model": "sum"}
    (tmp_path / "remote.json").write_text(json.dumps(told))
    command = [TRITON, "-W", "ignore", Path(__file__).with_name("oip_server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = f"127.0.0.1:{int(process.stdout.readline())}"
        policy = HostPolicy(settings={"endpoint.there": address})
        box = Box.start(ModelSpec("remote", tmp_path), policy=policy)
        try:
            rows = np.array([[1, 2]], np.float32)
            inputs = {"a": rows, "b": rows, "word": np.array([b"abc"], np.object_)}
            answer = ask(box, "serving_default", inputs)
        finally:
            box.close()
            assert process.stdin is not None
            process.stdin.close()
    assert answer["sum"].tolist() == [[2, 4]]
    assert answer["turned"].tolist() == [b"cba"]
