"""The official clients, unmodified, with TLS and a token, against the gateway."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gateway_harness import Gateway, LaneWorker

from sealane_inference.routing import Route

SCRIPTS = Path(__file__).resolve().parents[1] / "real_clients"
TRITON = Path(__file__).resolve().parents[3] / ".venv-triton" / "bin" / "python"
X = np.arange(8, dtype=np.float32).reshape(2, 4)


def run(python: Path | str, script: str, gateway: Gateway, inputs: Path) -> dict[str, object]:
    token = gateway.authority.token()
    command = [str(python), str(SCRIPTS / script), gateway.client, str(gateway.ca_file), token, "d", str(inputs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


@pytest.fixture
def inputs(gateway: Gateway, start_worker: Callable[..., LaneWorker], tmp_path: Path) -> Path:
    worker = start_worker("w1")
    gateway.routes(Route("p", "d", "m", "3", (worker.endpoint(),)))
    path = tmp_path / "inputs.npz"
    np.savez(path, x=X)
    return path


@pytest.mark.skipif(
    not TRITON.exists(), reason="tritonclient's environment .venv-triton is not built from requirements/triton.lock"
)
def test_tritonclient(gateway: Gateway, inputs: Path) -> None:
    assert run(TRITON, "triton_client.py", gateway, inputs) == {
        "live": True,
        "ready": True,
        "server": "sealane",
        "inputs": ["x"],
        "version": "3",
        "id": "r1",
        "outputs": {"y": (X * 2).tolist()},
    }


@pytest.mark.tensorflow
def test_tensorflow_serving_api(gateway: Gateway, inputs: Path) -> None:
    assert run(sys.executable, "tfs_client.py", gateway, inputs) == {
        "states": {"3": "AVAILABLE"},
        "signatures": ["serving_default"],
        "version": 3,
        "outputs": {"y": (X * 2).tolist()},
    }
