"""A real tritonserver takes a repository that we wrote.

The server of the nvidia-pytriton wheel has the Python backend alone. With the configuration as it is it gets as far as
looking for the backend; with the backend's name changed, and nothing else but the name of the file, it serves.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from sealane.client import layouts, model_companions, model_files
from sealane.client.layouts import Outgoing
from sealane.type.v1 import manifest_pb2 as pb

ROOT = Path(__file__).resolve().parents[3]
PYTHON = Path(os.environ.get("SEALANE_PYTRITON_PYTHON", ROOT / ".venvs-peers/triton/bin/python"))
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not PYTHON.exists(), reason="no environment with nvidia-pytriton; make bench-peers makes it"),
]
ROWS = np.linspace(0, 1, 128, dtype=np.float32).reshape(2, 64)
ALIKE = np.ones((3, 64), np.float32)


@pytest.fixture
def repository(onnx_file: Path, tmp_path: Path) -> Path:
    manifest = pb.Manifest(
        instances=2, dynamic_batching=pb.DynamicBatching(preferred_batch_size=[4], priority_levels=3)
    )
    local = model_files.inspect(onnx_file)
    (tmp_path / "sealane.json").write_bytes(model_companions.manifest_file(manifest))
    (tmp_path / "warmup.binpb").write_bytes(
        model_companions.warm_up([{"pixels": ROWS}, {"pixels": ALIKE}], local.signatures)
    )
    ours = {name: tmp_path / name for name in ("sealane.json", "warmup.binpb")}
    model = Outgoing("digits", 4, local.format, {**local.files, **ours}, local.signatures)
    layouts.write(model, tmp_path / "repository", "triton")
    return tmp_path / "repository"


@contextmanager
def tritonserver(repository: Path, work: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """The server, its HTTP port and its log."""
    packages = next(PYTHON.parent.parent.glob("lib/python3.*/site-packages"))
    wheel = packages / "pytriton/tritonserver"
    backend = shutil.copytree(wheel / "backends/python", work / "backends/python")
    version = packages.parent.name.removeprefix("python")
    shutil.copy2(wheel / f"python_backend_stubs/{version}/triton_python_backend_stub", backend)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ask = [PYTHON, "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"]
    library = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{packages / 'nvidia_pytriton.libs'}:{library}",
        "PYTHONPATH": str(packages),
    }
    command = [wheel / "bin/tritonserver", f"--model-repository={repository}", f"--backend-directory={backend.parent}"]
    command += ["--allow-grpc=false", "--allow-metrics=false", "--http-address=127.0.0.1", f"--http-port={port}"]
    with (work / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process, port, work / "log"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_the_configuration_is_understood_up_to_the_backend(repository: Path, tmp_path: Path) -> None:
    with tritonserver(repository, tmp_path) as (process, _, log):
        assert process.wait(60) != 0
    told = log.read_text()
    assert "unable to find backend library for backend 'onnxruntime'" in told
    assert "digits" in told and "Error parsing" not in told


def test_the_repository_is_served_once_a_backend_is_there(repository: Path, onnx_file: Path, tmp_path: Path) -> None:
    config = repository / "digits/config.pbtxt"
    text = config.read_text()
    assert "default_model_filename" not in text
    config.write_text(text.replace('backend: "onnxruntime"', 'backend: "python"'))
    shutil.copy(Path(__file__).with_name("triton_onnx_model.py"), repository / "digits/4/model.py")
    with tritonserver(repository, tmp_path) as (process, port, log):
        address = f"http://127.0.0.1:{port}/v2/models/digits"
        deadline = time.monotonic() + 60
        while not ready(f"{address}/ready"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        warmed = (repository / "digits/asked.log").read_text().splitlines()
        tensor = {"name": "pixels", "datatype": "FP32", "shape": [2, 64], "data": ROWS.ravel().tolist()}
        answer = json.loads(asked(f"{address}/infer", json.dumps({"inputs": [tensor]}).encode()))
        served = json.loads(asked(f"{address}/config"))
    sums = [f"1 {float(row.sum(dtype=np.float64)):.3f}" for row in ROWS]
    # By each of the two instances, which do so at the same time.
    assert Counter(warmed) == Counter([*sums, *["1 64.000"] * 3] * 2), "the recorded requests, to their last element"
    (output,) = answer["outputs"]
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"pixels": ROWS})
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), wanted, atol=1e-6)
    assert (answer["model_version"], served["max_batch_size"]) == ("4", 32)
    assert served["dynamic_batching"]["preferred_batch_size"] == [4]
    assert served["instance_group"][0]["count"] == 2


def ready(address: str) -> bool:
    try:
        asked(address)
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


def asked(address: str, body: bytes | None = None) -> bytes:
    with urllib.request.urlopen(address, body, timeout=20) as answer:
        content: bytes = answer.read()
        return content
